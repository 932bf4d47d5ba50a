//! `packaging/systemd` in the hands of a real systemd: one in namespaces of its own, with our units and nothing else of the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use netns_harness::{Finished, Host, Inside as _, Lab, Output, Process, SwitchOptions, eventually};
use weft_tests::weft_binary;

use super::bed::{COMMAND, LOOK, SOON, alone, has_ebpf, soon, wait, within};

/// How often the agent ends while names are asked.
const ENDS: usize = 8;
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Makes the place and becomes systemd there. It runs in new namespaces but that of the network, and in a control group of its own.
const BOOT: &str = r#"
mount --make-rprivate /
for place in /run /var/lib /usr/local/bin; do mount -t tmpfs tmpfs $place; done
mkdir /run/lock
touch /usr/local/bin/weft
mount --bind "$WEFT" /usr/local/bin/weft
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip route add default via 10.1.0.254
export container=weft SYSTEMD_UNIT_PATH="$UNITS"
exec /lib/systemd/systemd --system --unit=multi-user.target
"#;

/// What the units of the package stand on, without what belongs to a machine.
const TARGETS: [&str; 6] = [
    "sysinit",
    "basic",
    "shutdown",
    "network-online",
    "multi-user",
    "sockets",
];

/// A host that systemd runs.
struct Machine {
    host: Host,
    outside: Process,
    /// Its first process, as it is called outside.
    init: u32,
    cgroup: PathBuf,
    dir: tempfile::TempDir,
}

impl Machine {
    /// With `more` in the unit of the agent.
    fn boot(host: Host, more: &str) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let units = dir.path().join("units");
        fs::create_dir(&units).unwrap();
        for target in TARGETS {
            fs::write(
                units.join(format!("{target}.target")),
                "[Unit]\nDefaultDependencies=no\n",
            )
            .unwrap();
        }
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
        for unit in ["weft.service", "weft-tunnels.service"] {
            fs::copy(ours.join(unit), units.join(unit)).unwrap();
            // There is no journal.
            let log = dir.path().join(unit).with_extension("log");
            let log = format!("[Service]\nStandardError=append:{}\n", log.display());
            let more = if unit == "weft.service" { more } else { "" };
            let beside = units.join(format!("{unit}.d"));
            fs::create_dir(&beside).unwrap();
            fs::write(beside.join("test.conf"), log + more).unwrap();
        }
        let wanted = units.join("multi-user.target.wants");
        fs::create_dir(&wanted).unwrap();
        std::os::unix::fs::symlink("../weft.service", wanted.join("weft.service")).unwrap();

        let cgroup = cgroups().join(format!("weft-{}", dir.path().file_name().unwrap().display()));
        fs::create_dir(&cgroup).unwrap();
        let mut boot = Command::new("bash");
        let into = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroup.display());
        let spaces = "--pid --mount --ipc --uts --cgroup --fork --kill-child --mount-proc";
        boot.args(["-ec", &into, "-", "unshare"]).args(spaces.split(' '));
        boot.args(["bash", "-ec", BOOT]);
        boot.env("WEFT", weft_binary()).env("UNITS", &units);
        let outside = host.spawn(&mut boot, Output::Keep).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outside.pid());
        let init = soon("the first process", || {
            let text = fs::read_to_string(&children).map_err(|error| error.to_string())?;
            text.trim().parse::<u32>().map_err(|error| error.to_string())
        });
        Self {
            host,
            outside,
            init,
            cgroup,
            dir,
        }
    }

    fn try_run(&self, line: &str) -> Finished {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-a", "sh", "-c", line]);
        self.host.exec(&mut command, COMMAND).unwrap()
    }

    fn run(&self, line: &str) -> String {
        let finished = self.try_run(line);
        let log = || fs::read_to_string(self.dir.path().join("weft.log")).unwrap_or_default();
        assert!(
            finished.status.success(),
            "{line}: {}{}\n{}",
            finished.stdout,
            finished.stderr,
            log()
        );
        finished.stdout
    }

    /// What systemd knows of the agent; nothing before it is up itself.
    fn property(&self, name: &str) -> String {
        let said = self.try_run(&format!("systemctl show weft.service --value --property {name}"));
        said.stdout.trim().to_owned()
    }

    /// Waits until an agent is ready that is not this one, and says which it is.
    fn another(&self, than: &str) -> String {
        within(COMMAND, "another agent that is ready", || {
            let agent = self.property("MainPID");
            let state = self.property("SubState");
            match state == "running" && agent != than && agent != "0" {
                true => Ok(agent),
                false => Err(format!("{agent} is {state}; {}", self.outside.stderr())),
            }
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With the first process all others end, and then nobody is in the groups.
        let _ = self.outside.kill();
        let mut remove = Command::new("find");
        remove
            .arg(&self.cgroup)
            .args("-depth -type d -exec rmdir {} +".split(' '));
        let gone = eventually("the control groups to be gone", SOON, LOOK, || {
            match remove.output().is_ok_and(|ended| ended.status.success()) {
                true => Ok(()),
                false => Err("somebody is in them"),
            }
        });
        if !thread::panicking() {
            gone.unwrap();
        }
    }
}

/// Where control groups of version 2 are.
fn cgroups() -> PathBuf {
    let found = Command::new("findmnt")
        .args(["-n", "-t", "cgroup2", "-o", "TARGET"])
        .output();
    let text = String::from_utf8(found.unwrap().stdout).unwrap();
    text.lines().next().expect("a cgroup2 file system").into()
}

/// Whether it can be run; says so if not.
fn can_run() -> bool {
    let is_there = Path::new(SYSTEMD).exists();
    if !is_there {
        weft_netlink::testing::skip("it needs the package systemd");
    }
    is_there && has_ebpf()
}

/// Runs the body of a test with a machine whose unit of the agent has `more` in it.
fn on_a_machine(more: &str, body: impl FnOnce(&Machine)) {
    alone(|| {
        if !can_run() {
            return;
        }
        let lab = Lab::new("systemd").unwrap();
        let subnet: ipnet::IpNet = "10.1.0.0/24".parse().unwrap();
        let lan = lab.switch("lan", SwitchOptions::new().subnet(subnet)).unwrap();
        let hosts = lab.hosts(&["h1"]).unwrap();
        lab.plug(&lan, &hosts).unwrap();
        let machine = Machine::boot(hosts.into_iter().next().unwrap(), more);
        body(&machine);
        drop(machine);
        lab.close().unwrap();
    });
}

/// Questions that are asked one after the other, until this is dropped: also if a test fails meanwhile.
#[derive(Default)]
struct Questions {
    asked: AtomicUsize,
    is_over: AtomicBool,
}

struct Until<'q>(&'q Questions);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Questions {
    /// What went wrong, and the longest time that one took.
    fn ask(&self, machine: &Machine) -> (Vec<String>, Duration) {
        let (mut wrong, mut longest) = (Vec::new(), Duration::ZERO);
        while !self.is_over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            // Twice, as resolvers do: what an agent had read when it was killed is lost.
            let line = "ip netns exec one dig +noall +answer +comments +tries=2 +time=3 @169.254.53.53 two.app.weft.internal";
            let said = machine.try_run(line);
            longest = longest.max(begun.elapsed());
            self.asked.fetch_add(1, Ordering::Relaxed);
            let is_right =
                said.status.success() && said.stdout.contains("\tA\t") && !said.stdout.contains("refused");
            if !is_right {
                wrong.push(said.stdout + &said.stderr);
            }
        }
        (wrong, longest)
    }

    /// Waits for the answers to one that was asked already, and to one that is asked from now on.
    fn go_on(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        soon("two more answers", || match self.asked.load(Ordering::Relaxed) {
            now if now >= before + 2 => Ok(()),
            now => Err(format!("{now}, and {before} before")),
        });
    }
}

#[test]
fn names_are_answered_over_restarts_and_kills_of_the_agent() {
    on_a_machine("", |machine| {
        let mut agent = machine.another("");
        machine.run("weft init");
        machine.run("weft network create --driver overlay app");
        for name in ["one", "two"] {
            machine.run(&format!("ip netns add {name} && weft network connect app {name}"));
        }
        let questions = Questions::default();
        let (wrong, longest) = thread::scope(|scope| {
            let asking = scope.spawn(|| questions.ask(machine));
            let until = Until(&questions);
            for way in ["restart", "kill --signal KILL"].repeat(ENDS / 2) {
                machine.run(&format!("systemctl {way} weft.service"));
                agent = machine.another(&agent);
                questions.go_on();
            }
            drop(until);
            asking.join().unwrap()
        });
        let asked = questions.asked.into_inner();
        println!("{asked} questions over {ENDS} ends of the agent, the longest {longest:?}");
        assert!(wrong.is_empty(), "of {asked}: {wrong:?}");
        // One for each protocol: the network has IPv4 only.
        assert_eq!(machine.property("NFileDescriptorStore"), "2");
        let tcp = "ip netns exec one dig +short +tcp @169.254.53.53 two.app.weft.internal";
        assert!(machine.run(tcp).starts_with("10."));
        for name in ["one", "two"] {
            machine.run(&format!("weft network disconnect app {name}"));
        }
        machine.run("weft network rm app");
        soon("no sockets are kept", || {
            match machine.property("NFileDescriptorStore").as_str() {
                "0" => Ok(()),
                some => Err(some.to_owned()),
            }
        });
    });
}

#[test]
fn an_agent_that_stands_still_is_started_anew() {
    on_a_machine("WatchdogSec=2\nTimeoutAbortSec=1\n", |machine| {
        let agent = machine.another("");
        // Longer than the patience, with nothing to do.
        wait(Duration::from_secs(5));
        assert_eq!(machine.property("MainPID"), agent, "it is at work");
        machine.run(&format!("kill -STOP {agent}"));
        machine.another(&agent);
        assert_eq!(machine.property("Result"), "success");
        assert_eq!(machine.property("NRestarts"), "1");
    });
}
