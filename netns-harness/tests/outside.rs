//! A lab held by a background process, entered and ended from outside. Without libtest, because the processes that isolate
//! themselves or enter a lab must have one thread.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use netns_harness::{
    EnterSpec, Footprint, Inside, Isolate, Lab, Output, enter_and_exec, eventually, isolate, left_behind,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().and_then(|arg| arg.into_string().ok()).as_deref() {
        Some("hold") => hold(),
        Some("enter") => enter(args.collect()),
        Some("--list") => println!("outside: test"),
        _ => {
            let probe = Command::new(exe())
                .arg("hold")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            if !probe.status.success() && std::env::var_os("NETNS_HARNESS_SKIP").is_some() {
                println!("skipped: {}", String::from_utf8_lossy(&probe.stderr));
                return ExitCode::SUCCESS;
            }
            a_command_runs_in_a_sandbox_from_outside();
            signals_are_passed_on_and_deaths_reported();
            whichever_process_of_the_holder_dies_nothing_is_left();
            a_dead_lab_cannot_be_entered();
            println!("outside: ok");
        }
    }
    ExitCode::SUCCESS
}

/// The holder: a lab with a sandbox and processes, until standard input ends.
fn hold() {
    if let Err(error) = isolate(&Isolate::new()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
    let lab = Lab::new("held").unwrap();
    let host = lab.host("h1").unwrap();
    let sandbox = host.sandbox("box").unwrap();
    sandbox.set_resolv_conf("nameserver 192.0.2.53\n").unwrap();
    let mut daemon = Command::new("sh");
    // It leaves its process group and session, and so escapes whoever kills by those.
    daemon.args(["-c", "setsid sleep 1000 & setsid sleep 1000 & wait"]);
    let process = sandbox.spawn(&mut daemon, Output::Discard).unwrap();
    let specs = (
        host.enter_spec().unwrap(),
        sandbox.enter_spec().unwrap(),
        lab.footprint().unwrap(),
    );
    println!("{}", serde_json::to_string(&specs).unwrap());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(process);
    lab.close().unwrap();
}

fn enter(args: Vec<OsString>) {
    let spec: EnterSpec = serde_json::from_str(args[0].to_str().unwrap()).unwrap();
    match enter_and_exec(&spec, &args[1..], &[("COLOUR".into(), "blue".into())]) {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprint!("{error}");
            std::process::exit(200);
        }
    }
}

struct Held {
    outer: Child,
    host: EnterSpec,
    sandbox: EnterSpec,
    footprint: Footprint,
}

impl Held {
    fn new() -> Self {
        let mut outer = Command::new(exe())
            .arg("hold")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(outer.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (host, sandbox, footprint) = serde_json::from_str(&line).unwrap();
        Self {
            outer,
            host,
            sandbox,
            footprint,
        }
    }

    fn enter(&self, spec: &EnterSpec, script: &str) -> Command {
        let mut command = Command::new(exe());
        command
            .arg("enter")
            .arg(serde_json::to_string(spec).unwrap())
            .args(["sh", "-c", script]);
        command
    }

    /// The worker's id out here: it is in the paths.
    fn worker(&self) -> Pid {
        let path = self.host.net.path.display().to_string();
        Pid::from_raw(path.split('/').nth(2).unwrap().parse().unwrap())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

fn entering(spec: &EnterSpec, script: &str) -> Command {
    let mut command = Command::new(exe());
    command
        .arg("enter")
        .arg(serde_json::to_string(spec).unwrap())
        .args(["sh", "-c", script]);
    command
}

fn exe() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

fn a_command_runs_in_a_sandbox_from_outside() {
    let held = Held::new();
    let script = "cat /etc/resolv.conf; uname -n; echo $COLOUR; pwd; ls /proc | grep -c '^[0-9]'; exit 9";
    let output = held
        .enter(&held.sandbox, script)
        .current_dir("/usr")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("nameserver 192.0.2.53"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(lines.next(), Some("box"));
    assert_eq!(lines.next(), Some("blue"));
    assert_eq!(lines.next(), Some("/usr"));
    let processes: usize = lines.next().unwrap().parse().unwrap();
    // Init, worker, three of the daemon, and those of this very command.
    assert!((5..=9).contains(&processes), "only those of the lab: {processes}");
    assert_eq!(output.status.code(), Some(9));
    let output = held
        .enter(&held.host, "uname -n; ls /run/netns")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "h1\nbox\n");

    let mut outer = Command::new(exe());
    outer
        .arg("enter")
        .arg(serde_json::to_string(&held.host).unwrap())
        .arg("/no/such/program");
    let output = outer.output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "could not execute /no/such/program in host h1"
    );
}

fn signals_are_passed_on_and_deaths_reported() {
    let held = Held::new();
    let mut command = entering(
        &held.host,
        "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done",
    );
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut String::new())
        .unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    let status = entering(&held.host, "kill -KILL $$").status().unwrap();
    assert_eq!(status.code(), Some(128 + 9));
}

fn whichever_process_of_the_holder_dies_nothing_is_left() {
    let parent = |pid: Pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap();
        Pid::from_raw(line.trim().parse().unwrap())
    };
    for victim in ["outer", "init", "worker", "terminated", "nobody"] {
        let mut held = Held::new();
        let footprint = held.footprint.clone();
        eventually("the start of the daemons", SOON, Duration::from_millis(5), || {
            let alive = left_behind(&footprint, Duration::ZERO).unwrap();
            let sleeps = alive
                .iter()
                .filter(|thing| thing.contains("(sleep) of the lab is still running"))
                .count();
            if sleeps == 2 {
                Ok(())
            } else {
                Err(alive.join("; "))
            }
        })
        .unwrap();
        let worker = held.worker();
        let init = parent(worker);
        assert_eq!(parent(init).as_raw(), held.outer.id() as i32);
        match victim {
            "outer" => held.outer.kill().unwrap(),
            "init" => kill(init, Signal::SIGKILL).unwrap(),
            "worker" => kill(worker, Signal::SIGKILL).unwrap(),
            "terminated" => kill(Pid::from_raw(held.outer.id() as i32), Signal::SIGTERM).unwrap(),
            // End of its input: it closes the lab itself.
            _ => drop(held.outer.stdin.take()),
        }
        let left = left_behind(&footprint, SOON).unwrap();
        assert!(left.is_empty(), "after the end of {victim}: {left:?}");
        let status = held.outer.wait().unwrap();
        assert_eq!(status.success(), victim == "nobody");
        assert_eq!(
            status.code() == Some(128 + 15),
            victim == "terminated",
            "{status}"
        );
        let path = std::env::temp_dir();
        let left = left_behind(&footprint.clone().path(&path), Duration::ZERO).unwrap();
        assert_eq!(left, [format!("{} still exists", path.display())]);
    }
}

fn a_dead_lab_cannot_be_entered() {
    let held = Held::new();
    let (spec, footprint) = (held.host.clone(), held.footprint.clone());
    let mut command = entering(&spec, "true");
    drop(held);
    // Its processes are killed together, and some take a moment to die.
    assert_eq!(left_behind(&footprint, SOON).unwrap(), Vec::<String>::new());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text, "host h1 is gone: its lab has ended or the host has crashed");
}
