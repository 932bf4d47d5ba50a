//! Hosts with a real dockerd and a real agent each.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use netns_harness::{
    Finished, Host, Inside as _, Lab, LabError, Output, Process, Signal, SwitchOptions, eventually,
};
use tempfile::TempDir;

use crate::door::Door;

const SOON: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(50);

/// The image that containers are made from: busybox with a page to serve.
pub const IMAGE: &str = "busybox";
const APPLETS: [&str; 12] = [
    "sh", "ping", "httpd", "wget", "nslookup", "ip", "sleep", "cat", "nc", "hostname", "echo", "true",
];

/// Runs the body of a test in namespaces of its own, one test at a time: several dockerds beside those of another test would be
/// too slow for what each of them is waited for. Skips it where dockerd or one of these programs, each with its package, is not there.
pub fn with_dockerds<F: FnOnce()>(and: &[(&str, &str)], body: F) {
    static TURN: Mutex<()> = Mutex::new(());
    if let Some(missing) = missing(and) {
        return weft_netlink::testing::skip(format_args!("it needs {missing}"));
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    netns_harness::isolated(body);
}

fn missing(and: &[(&str, &str)]) -> Option<String> {
    let docker = [
        ("dockerd", "docker.io"),
        ("docker", "docker.io"),
        ("busybox", "busybox-static"),
    ];
    for (program, package) in docker.iter().chain(and) {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir: PathBuf| dir.join(program).exists());
        if !found {
            return Some(format!("`{program}` of the package {package}"));
        }
    }
    (!nix::unistd::geteuid().is_root()).then(|| "root".to_owned())
}

pub struct Site {
    pub hosts: Vec<DockerHost>,
    lab: Lab,
    dir: TempDir,
}

pub struct DockerHost {
    pub host: Host,
    pub dir: PathBuf,
    /// The socket of Docker's driver, if it is held as systemd would.
    pub door: Option<Door>,
    agent: Option<Process>,
    dockerd: Option<Process>,
}

impl Site {
    /// One cluster of agents, each beside a dockerd that has the image and asks them for names.
    pub fn new(name: &str, count: usize) -> Self {
        Self::with(name, count, r#"{"dns": ["169.254.53.53"]}"#)
    }

    /// The same with other settings of Docker's.
    pub fn with(name: &str, count: usize, settings: &str) -> Self {
        Self::made(name, count, settings, |_| None)
    }

    /// The same with the sockets of Docker's driver held open while no agent runs.
    pub fn held(name: &str, count: usize, settings: &str) -> Self {
        Self::made(name, count, settings, |host| Some(Door::open(host)))
    }

    fn made(name: &str, count: usize, settings: &str, door: impl Fn(&Host) -> Option<Door>) -> Self {
        let dir = tempfile::Builder::new().prefix("weft-docker-").tempdir().unwrap();
        let lab = Lab::new(name).unwrap();
        let options = SwitchOptions::new().subnet("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap());
        let switch = lab.switch("lan", options).unwrap();
        let names: Vec<_> = (1..=count).map(|n| format!("h{n}")).collect();
        let hosts = lab.hosts(&names).unwrap();
        lab.plug(&switch, &hosts).unwrap();
        let image = make_image(dir.path());
        let mut hosts: Vec<_> = hosts
            .into_iter()
            .map(|host| DockerHost {
                dir: dir.path().join(host.name()),
                door: door(&host),
                host,
                agent: None,
                dockerd: None,
            })
            .collect();
        for host in &mut hosts {
            fs::create_dir(&host.dir).unwrap();
            host.set_up_docker(settings);
            host.start_agent();
            host.start_dockerd();
        }
        for host in &hosts {
            host.wait_for_agent();
            host.wait_for_dockerd();
            host.docker(&format!("import {} {IMAGE}", image.display()));
        }
        hosts[0].weft("init");
        let made = hosts[0].weft("token create --reusable --format json");
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        let token = made["token"].as_str().unwrap();
        for host in &hosts[1..] {
            host.weft(&format!("join --token {token} 192.0.2.1:7946"));
        }
        Self { hosts, lab, dir }
    }

    /// Ends everything and fails if anything is left.
    pub fn close(mut self) {
        for host in &mut self.hosts {
            host.stop_dockerd();
            host.stop_agent();
        }
        self.hosts.clear();
        self.lab.close().unwrap();
        self.dir.close().unwrap();
    }
}

/// A root file system in a tar file.
fn make_image(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for part in ["bin", "etc", "tmp", "www"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("www/index.html"), "served\n").unwrap();
    let image = dir.join("root.tar");
    let tar = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&image)
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    image
}

impl DockerHost {
    /// Docker's settings from its next start on.
    pub fn set_up_docker(&self, settings: &str) {
        fs::write(self.dir.join("daemon.json"), settings).unwrap();
    }

    pub fn start_agent(&mut self) {
        let weft = weft_tests::weft_binary();
        let mut command = match &self.door {
            Some(door) => door.pass_to(weft),
            None => Command::new(weft),
        };
        command
            .arg("agent")
            .arg("--data-dir")
            .arg(self.dir.join("weft"))
            .args(["--run-dir", "/run/weft", "--node-name", self.host.name()])
            .args(["--docker-plugin", "/run/docker/plugins/weft.sock"])
            // Programs would be at the root of this machine's control groups, once for every host of the lab.
            .args(["--datapath", "nft"]);
        let advertise = format!("192.0.2.{}", &self.host.name()[1..]);
        command
            .args(["--advertise", &advertise])
            .env("WEFT_LOG", "info,weft::docker=debug");
        self.agent = Some(
            self.host
                .spawn(&mut command, Output::File(self.dir.join("agent.log")))
                .unwrap(),
        );
    }

    pub fn start_dockerd(&mut self) {
        let mut command = Command::new("dockerd");
        command
            .arg("--config-file")
            .arg(self.dir.join("daemon.json"))
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("exec"))
            .args([
                "--pidfile",
                "/run/docker.pid",
                "--host",
                "unix:///run/docker.sock",
            ]);
        self.dockerd = Some(
            self.host
                .spawn(&mut command, Output::File(self.dir.join("dockerd.log")))
                .unwrap(),
        );
    }

    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    pub fn wait_for_agent(&self) {
        let what = format!("an agent on {}", self.host.name());
        eventually(what, SOON, OFTEN, || self.try_weft("version")).unwrap();
    }

    pub fn wait_for_dockerd(&self) {
        let what = format!("a dockerd on {}", self.host.name());
        let answered = eventually(what, SOON, OFTEN, || self.try_docker("version"));
        answered.unwrap_or_else(|error| panic!("{error}\n{}", self.log("dockerd")));
    }

    pub fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
    }

    pub fn kill_dockerd(&mut self) {
        self.dockerd.take().unwrap().kill().unwrap();
    }

    pub fn stop_agent(&mut self) {
        end(self.agent.take());
    }

    pub fn stop_dockerd(&mut self) {
        end(self.dockerd.take());
    }

    pub fn log(&self, of: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{of}.log"))).unwrap_or_default()
    }

    pub fn try_docker(&self, line: &str) -> Result<String, LabError> {
        self.try_docker_with(line.split_whitespace())
    }

    fn try_docker_with<'a>(&self, args: impl Iterator<Item = &'a str>) -> Result<String, LabError> {
        self.run(self.docker_command().args(args))
    }

    fn docker_command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", "unix:///run/docker.sock");
        command.env_remove("HTTP_PROXY").env_remove("http_proxy");
        command
    }

    /// What a shell on the host says, with `docker` and `weft` of its own.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        self.try_shell(script).unwrap_or_else(|error| {
            panic!(
                "{script}\non {}: {error}\n{}",
                self.host.name(),
                self.log("agent")
            )
        })
    }

    pub fn try_shell(&self, script: &str) -> Result<String, LabError> {
        let weft = weft_tests::weft_binary();
        let mut command = Command::new("sh");
        command
            .args(["-euc", script])
            .env("DOCKER_HOST", "unix:///run/docker.sock")
            .env("weft", weft)
            .env("dir", &self.dir)
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy");
        self.run(&mut command)
    }

    /// Begins something that `docker` does.
    pub fn spawn_docker(&self, line: &str) -> Process {
        let mut command = self.docker_command();
        let spawned = self
            .host
            .spawn(command.args(line.split_whitespace()), Output::Discard);
        spawned.unwrap()
    }

    /// The dockerd, for somebody else to end.
    pub fn take_dockerd(&mut self) -> Process {
        self.dockerd.take().unwrap()
    }

    /// Runs `weft` until it is dropped.
    pub fn spawn_weft(&self, line: &str) -> Process {
        let mut command = Command::new(weft_tests::weft_binary());
        command.args(line.split_whitespace()).env("WEFT_LOG", "debug");
        let log = Output::File(self.dir.join("weft.log"));
        self.host.spawn(&mut command, log).unwrap()
    }

    pub fn try_weft(&self, line: &str) -> Result<String, LabError> {
        let mut command = Command::new(weft_tests::weft_binary());
        self.run(command.args(line.split_whitespace()))
    }

    fn run(&self, command: &mut Command) -> Result<String, LabError> {
        let finished = self.host.exec(command, Duration::from_secs(90))?;
        finished.success().map(|finished: Finished| finished.stdout)
    }

    #[track_caller]
    pub fn docker(&self, line: &str) -> String {
        let done = self.try_docker(line);
        done.unwrap_or_else(|error| {
            panic!(
                "docker {line} on {}: {error}\n{}",
                self.host.name(),
                self.log("agent")
            )
        })
    }

    /// What Docker refuses to do says why.
    #[track_caller]
    pub fn docker_error(&self, line: &str) -> String {
        self.try_docker(line).expect_err("docker refuses it").to_string()
    }

    #[track_caller]
    pub fn weft(&self, line: &str) -> String {
        let done = self.try_weft(line);
        done.unwrap_or_else(|error| panic!("weft {line} on {}: {error}", self.host.name()))
    }

    /// A part of what `docker inspect` says, by a template.
    #[track_caller]
    pub fn inspect(&self, what: &str, template: &str) -> String {
        let said = self.try_docker_with(["inspect", "--format", template, what].into_iter());
        said.unwrap_or_else(|error| panic!("docker inspect {what} on {}: {error}", self.host.name()))
            .trim()
            .to_owned()
    }

    /// The address a container has on a network.
    #[track_caller]
    pub fn address(&self, container: &str, network: &str) -> String {
        let template = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
        self.inspect(container, &template)
    }

    /// Waits until a look finds nothing.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut look: impl FnMut() -> Result<String, LabError>) {
        let looked = eventually(
            format!("{what} on {}", self.host.name()),
            SOON,
            OFTEN,
            || match look() {
                Ok(left) if left.trim().is_empty() => Ok(()),
                Ok(left) => Err(left),
                Err(error) => Err(error.to_string()),
            },
        );
        looked.unwrap_or_else(|error| panic!("{error}\n{}", self.log("agent")));
    }

    /// Waits until a service has so many backends that are ready.
    #[track_caller]
    pub fn eventually_ready(&self, service: &str, backends: u64) {
        self.eventually(&format!("{backends} backends of {service}"), || {
            let detail = self.try_weft(&format!("service inspect --format json {service}"))?;
            let detail: serde_json::Value = serde_json::from_str(&detail).unwrap();
            let ready = detail["ready_count"].as_u64() == Some(backends);
            Ok(if ready { String::new() } else { detail.to_string() })
        });
    }

    /// Waits until `docker` does it.
    #[track_caller]
    pub fn eventually_docker(&self, line: &str) -> String {
        let what = format!("docker {line} on {}", self.host.name());
        let done = eventually(what, SOON, OFTEN, || self.try_docker(line));
        done.unwrap_or_else(|error| panic!("{error}\n{}", self.log("agent")))
    }

    /// Waits until a command in a container succeeds, and says what it wrote.
    #[track_caller]
    pub fn eventually_in(&self, container: &str, line: &str) -> String {
        self.eventually_docker(&format!("exec {container} {line}"))
    }

    /// Names of the links in the host's own namespace that are of Weft's making.
    pub fn links(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .host
            .run(|| {
                let links = fs::read_dir("/proc/sys/net/ipv4/conf").unwrap();
                links
                    .map(|link| link.unwrap().file_name().into_string().unwrap())
                    .collect::<Vec<_>>()
            })
            .unwrap();
        names.retain(|name| name.starts_with("wf") || name.starts_with("weft"));
        names
    }
}

fn end(process: Option<Process>) {
    if let Some(process) = process {
        process.signal(Signal::SIGTERM).unwrap();
        process.wait(SOON).unwrap();
    }
}
