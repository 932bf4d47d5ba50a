//! The program, run as somebody, and the labs it makes.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::IpAddr,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use netns_harness::eventually;
use serde_json::Value;
use tempfile::TempDir;
use weft_tests::weft_binary;

/// For one command, on a machine that is busy with other things.
const COMMAND: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
pub const LOOK: Duration = Duration::from_millis(20);

/// The shop of the README.
pub fn shop_yaml() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop.yaml")
}

/// The text of the shop of the README with one thing changed.
pub fn shop_with(old: &str, new: &str) -> String {
    let text = fs::read_to_string(shop_yaml()).unwrap();
    assert!(text.contains(old), "the shop has no `{old}`");
    text.replace(old, new)
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Its standard output, if it succeeded.
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

/// Somebody who uses the program, with a runtime directory of their own.
pub struct User {
    prefix: Vec<OsString>,
    program: PathBuf,
    pub dir: TempDir,
}

impl User {
    /// Whoever runs the test.
    pub fn me() -> Self {
        Self {
            prefix: Vec::new(),
            program: weft_binary().to_owned(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Nobody in particular. Only root can be somebody else.
    pub fn nobody() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        // They may not be able to read the directory it was built in.
        let program = dir.path().join("weft");
        fs::copy(weft_binary(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime).unwrap();
        std::os::unix::fs::chown(&runtime, Some(65534), Some(65534)).unwrap();
        let prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        Self {
            prefix: prefix.map(OsString::from).to_vec(),
            program,
            dir,
        }
    }

    /// Any command, as this user.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self
            .prefix
            .iter()
            .map(OsString::as_os_str)
            .chain([program.as_ref()]);
        let mut command = Command::new(words.next().expect("there is at least the program"));
        command.args(words).stdin(Stdio::null());
        let runtime = self.dir.path().join("run");
        command
            .env(
                "XDG_RUNTIME_DIR",
                if runtime.exists() {
                    &runtime
                } else {
                    self.dir.path()
                },
            )
            .current_dir("/")
            .env_remove("WEFT_HOST");
        command
    }

    /// `weft …`, not started yet.
    pub fn weft(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.args(args);
        command
    }

    /// Runs `weft …` to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        run(&mut self.weft(args))
    }

    /// A file with this text that the user can read.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A name that no other lab on this machine has.
    pub fn lab_name(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The directory's name is random: process ids repeat across namespaces.
        let random = self.dir.path().file_name().unwrap().to_str().unwrap();
        let random: String = random.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("it{random}{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Brings the shop of the README up.
    pub fn shop(&self) -> Lab<'_> {
        self.up(&shop_yaml())
    }

    pub fn up(&self, file: &Path) -> Lab<'_> {
        let lab = self.claim();
        self.run(&["lab", "up", path(file), "--name", &lab.name]).good();
        lab
    }

    /// The name of a lab that is to be built, and ended with what is returned.
    pub fn claim(&self) -> Lab<'_> {
        Lab {
            user: self,
            name: self.lab_name(),
        }
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A lab. However the test ends, the lab does, too.
pub struct Lab<'u> {
    user: &'u User,
    pub name: String,
}

impl Lab<'_> {
    pub fn user(&self) -> &User {
        self.user
    }

    /// `weft lab VERB NAME …`.
    pub fn lab(&self, verb: &str, rest: &[&str]) -> Ended {
        self.user.run(&[&["lab", verb, &self.name], rest].concat())
    }

    /// Runs a command on a host or in a replica.
    pub fn exec(&self, target: &str, command: &[&str]) -> Ended {
        self.lab("exec", &[&[target, "--"], command].concat())
    }

    /// The same, not started yet.
    pub fn exec_command(&self, target: &str, command: &[&str]) -> Command {
        self.user
            .weft(&[&["lab", "exec", &self.name, target, "--"], command].concat())
    }

    /// Calls a service so many times, and tells how often each replica answered. Every call must be answered.
    pub fn calls(&self, from: &str, url: &str, times: u32) -> BTreeMap<String, u32> {
        answers(
            &self
                .lab("call", &[from, url, "--times", &times.to_string()])
                .good(),
        )
    }

    /// What a replica that is called says: the lines of `weft whoami`, by their keys.
    pub fn whoami(&self, from: &str, url: &str) -> BTreeMap<String, String> {
        let body = self
            .exec(
                from,
                &["curl", "--silent", "--show-error", "--max-time", "10", url],
            )
            .good();
        let pairs = body.lines().filter_map(|line| line.split_once(": "));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    pub fn inspect(&self) -> Live {
        let text = self.lab("inspect", &["--format", "json"]).good();
        Live(serde_json::from_str(&text).unwrap())
    }

    /// Ends it, and is told that nothing is left.
    pub fn down(self) {
        let ended = self.lab("down", &[]).good();
        assert!(
            ended.contains("no process, namespace, mount or file of it is left"),
            "{ended}"
        );
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        // After `down`, and where nothing was built, there is no such lab; that is fine.
        let ended = self.lab("down", &[]);
        if ended.code != 0 && !ended.stderr.contains("there is no lab") {
            let complaint = format!("the lab {} did not go down: {ended:?}", self.name);
            assert!(thread::panicking(), "{complaint}");
            eprintln!("{complaint}");
        }
    }
}

/// What `weft lab inspect` tells.
pub struct Live(Value);

impl Live {
    /// A replica's addresses on a network, IPv4 first.
    pub fn addresses(&self, replica: &str, network: &str) -> Vec<IpAddr> {
        let endpoints = &self.0["live"]["replicas"][replica]["endpoints"];
        let on = |endpoint: &&Value| endpoint["network"] == network;
        let endpoint = endpoints.as_array().unwrap().iter().find(on).unwrap();
        addresses(&endpoint["addresses"])
    }

    /// A service's virtual addresses on a network, IPv4 first.
    pub fn vips(&self, service: &str, network: &str) -> Vec<IpAddr> {
        let services = self.0["live"]["services"].as_array().unwrap();
        let wanted = |entry: &&Value| entry["name"] == service && entry["network"] == network;
        addresses(&services.iter().find(wanted).unwrap()["vips"])
    }

    pub fn replica_state(&self, replica: &str) -> &Value {
        &self.0["live"]["replicas"][replica]["state"]
    }

    pub fn host_state(&self, host: &str) -> &Value {
        &self.0["live"]["hosts"][host]
    }
}

fn addresses(list: &Value) -> Vec<IpAddr> {
    let list = list.as_array().unwrap().iter();
    list.map(|address| address.as_str().unwrap().parse().unwrap())
        .collect()
}

/// The last line of `weft lab call`, by replica.
pub fn answers(output: &str) -> BTreeMap<String, u32> {
    let tally = output.lines().find_map(|line| line.strip_prefix("answered: "));
    let tally = tally.unwrap_or_else(|| panic!("no tally in {output}"));
    let pairs = tally.split(", ").map(|pair| pair.rsplit_once(' ').unwrap());
    pairs
        .map(|(who, count)| (who.to_owned(), count.parse().unwrap()))
        .collect()
}

/// What `answers` should be, when each of these replicas answered as often.
pub fn each(replicas: &[&str], count: u32) -> BTreeMap<String, u32> {
    replicas
        .iter()
        .map(|replica| ((*replica).to_owned(), count))
        .collect()
}

/// `http://ADDRESS/`, with brackets where needed.
pub fn url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ended {
    start(command).end()
}

/// Starts a command.
pub fn start(command: &mut Command) -> Running {
    // Files, so that a command that writes much does not wait for us, nor we for a child that it left behind.
    let (stdout, stderr) = (
        tempfile::NamedTempFile::new().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let writer = |file: &tempfile::NamedTempFile| File::options().append(true).open(file.path()).unwrap();
    let child = command
        .stdout(writer(&stdout))
        .stderr(writer(&stderr))
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    Running {
        what: format!("{command:?}"),
        child,
        stdout,
        stderr,
    }
}

/// A command that runs. It is killed when dropped.
pub struct Running {
    what: String,
    child: Child,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
}

impl Running {
    pub fn id(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.stdout.path()).unwrap()
    }

    /// Waits for its end. A death by signal n is told as shells do.
    pub fn end(mut self) -> Ended {
        let child = &mut self.child;
        let status = eventually(
            format!("the end of {}", self.what),
            COMMAND,
            Duration::from_millis(2),
            || child.try_wait().unwrap().ok_or("it, running"),
        );
        let code = match status {
            Ok(status) => status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            Err(error) => panic!(
                "{error}; it said {} and {:?}",
                self.stdout(),
                fs::read_to_string(self.stderr.path())
            ),
        };
        Ended {
            code,
            stdout: self.stdout(),
            stderr: fs::read_to_string(self.stderr.path()).unwrap(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
