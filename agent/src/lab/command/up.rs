//! `weft lab up`: start a holder, relay its progress, and take everything down if it fails or Ctrl-C comes.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{
    super::{
        dir::LabDir,
        model::Workload,
        resolve::{ReplicaPlan, Topology, resolve},
        wire::Progress,
    },
    UpArgs, load,
    show::say,
};
use crate::api::ApiError;

/// Of a log, this much is shown.
const TAIL_LINES: usize = 12;

pub(super) fn run(args: &UpArgs) -> Result<ExitCode> {
    let lab = load(&args.file)?;
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let given = args.name.as_deref().or(lab.name.as_deref());
    let name = given.unwrap_or(&stem);
    let topology = resolve(&lab, name);
    let dir = LabDir::of(name).map_err(|mut error| {
        if given.is_none() {
            error.help =
                Some("the file's name is taken where none is given; give one with --name".to_owned());
        }
        error
    })?;

    // From here on a Ctrl-C is read from a descriptor, so that it always finds us able to clean up.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;

    let started = Instant::now();
    let lock = dir.create(&topology)?;
    let title = format!(
        "lab {name}: {}, {}, {}, {}\n",
        count(topology.hosts.len(), "host"),
        count(topology.networks.len(), "network"),
        count(lab.services.len(), "service"),
        count(topology.replicas.len(), "replica"),
    );
    let child = say(&title).and_then(|()| spawn(&dir, lock));
    let outcome = child.and_then(|mut child| {
        let outcome = follow(&mut child, &signals, started);
        if !matches!(outcome, Ok(Outcome::Ready)) {
            // Its end ends everything in the lab.
            let _ = child.kill();
            let _ = child.wait();
        }
        outcome
    });
    match outcome {
        Ok(Outcome::Ready) => {
            farewell(&topology, started)?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(Outcome::Interrupted { signal }) => {
            clean(&dir)?;
            eprintln!("interrupted: the lab `{name}` was taken down, and nothing of it is left");
            // What shells report for a death by this signal.
            Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)))
        }
        Ok(Outcome::Failed { error, causes, log }) => {
            let tails = tails(&dir, log.as_deref());
            clean(&dir)?;
            eprint!("{tails}");
            let mut error = error;
            error.message = format!(
                "the lab `{name}` cannot be built, and everything was taken down again: {}",
                [vec![error.message], causes].concat().join(": ")
            );
            Err(error.into())
        }
        Err(error) => {
            clean(&dir)?;
            Err(error.context(format!(
                "the lab `{name}` cannot be built, and everything was taken down again"
            )))
        }
    }
}

enum Outcome {
    Ready,
    Interrupted {
        signal: i32,
    },
    Failed {
        error: ApiError,
        causes: Vec<String>,
        log: Option<String>,
    },
}

/// Starts the holder. The lock becomes its standard input: it is kept by every process of the holder.
fn spawn(dir: &LabDir, lock: File) -> Result<Child> {
    let log = File::create(dir.log("holder")).context("cannot make the log of the lab's holder")?;
    Command::new("/proc/self/exe")
        .args(["lab", "hold"])
        .arg(dir.path())
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("cannot start the process that holds the lab")
}

/// Relays progress until the lab is ready or fails, or a signal comes.
fn follow(child: &mut Child, signals: &SignalFd, started: Instant) -> Result<Outcome> {
    let mut stdout = child.stdout.take().context("the holder has no standard output")?;
    let mut bytes = Vec::new();
    loop {
        let mut ready = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.context("cannot wait for the holder")?,
        };
        if ready[0].any().unwrap_or(false) {
            let signal = signals.read_signal().context("cannot read a signal")?;
            let signal = signal.and_then(|signal| signal.ssi_signo.try_into().ok());
            return Ok(Outcome::Interrupted {
                signal: signal.unwrap_or(Signal::SIGINT as i32),
            });
        }
        if !read_more(&mut stdout, &mut bytes)? {
            return Ok(Outcome::Failed {
                error: ApiError::internal("the process that holds the lab ended without a word"),
                causes: Vec::new(),
                log: None,
            });
        }
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            match serde_json::from_slice(&line).context("the holder's progress cannot be read")? {
                Progress::Step { step, result } => {
                    say(&format!(
                        "  {:>6.2} s  {step:<9} {result}\n",
                        started.elapsed().as_secs_f64()
                    ))?;
                }
                Progress::Ready => return Ok(Outcome::Ready),
                Progress::Failed { error, causes, log } => return Ok(Outcome::Failed { error, causes, log }),
            }
        }
    }
}

/// Whether there was more.
fn read_more(stdout: &mut ChildStdout, bytes: &mut Vec<u8>) -> Result<bool> {
    let mut buffer = [0; 4096];
    let length = stdout
        .read(&mut buffer)
        .context("cannot read the holder's progress")?;
    bytes.extend_from_slice(&buffer[..length]);
    Ok(length > 0)
}

/// Waits until all processes are gone, and removes the lab's files.
fn clean(dir: &LabDir) -> Result<()> {
    dir.wait_until_free()?;
    dir.remove()
}

/// The last lines of the logs that may say why.
fn tails(dir: &LabDir, log: Option<&str>) -> String {
    let mut text = String::new();
    for (whose, path) in [
        log.map(|log| (log, dir.log(log))),
        Some(("the holder", dir.log("holder"))),
    ]
    .into_iter()
    .flatten()
    {
        let tail = tail(&path);
        if !tail.is_empty() {
            text.push_str(&format!("the log of {whose} ends with:\n{tail}"));
        }
    }
    text
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("  | {line}\n"))
        .collect()
}

fn farewell(topology: &Topology, started: Instant) -> Result<()> {
    let name = &topology.name;
    let mut text = format!(
        "lab {name} is up after {:.1} s\n\nlook further:\n",
        started.elapsed().as_secs_f64()
    );
    // Somebody to call from, best a client that does nothing else, and a service with another name to call.
    let is_idle = |replica: &&ReplicaPlan| replica.workload == Workload::Idle;
    let idle = topology.replicas.iter().filter(is_idle);
    let pairs = idle
        .chain(&topology.replicas)
        .flat_map(|from| topology.services.iter().map(move |to| (from, to)));
    let call = pairs
        .filter(|(from, to)| {
            from.attachments.iter().any(|one| one.network == to.network) && from.service != to.name
        })
        .find(|(_, to)| {
            let backend = to.replicas.first().and_then(|replica| topology.replica(replica));
            backend.is_some_and(|backend| backend.workload == Workload::Whoami && backend.port == 80)
        });
    if let Some((from, to)) = call {
        text.push_str(&format!(
            "  weft lab call {name} {} http://{}/ --times 12\n",
            from.name, to.name
        ));
    }
    text.push_str(&format!(
        "  weft lab inspect {name}\n  weft lab exec {name} {} -- weft status\n",
        topology.hosts[0].name
    ));
    text.push_str(&format!(
        "  weft lab graph {name} --format svg -o {name}.svg\n  weft lab down {name}\n"
    ));
    say(&text)?;
    std::io::stdout().flush()?;
    Ok(())
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
