//! `planted`: the faults that overlay networks are known for, each built into Weft on purpose, to see that a test catches it.
//!
//! A fault is an edit of one place of the source, so there is nothing in Weft that could be switched on by accident. The edits
//! are made in a copy below `target/planted`; the checkout is left alone. Every test run checks that each edit still finds its
//! place and its test (`tests`); making them takes minutes for each and has this command.

mod faults;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use faults::{Fault, Suite, all};

/// A test that has not failed after this has not caught its fault.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Plants known faults, one at a time, and sees that a test catches each
#[derive(Debug, Parser)]
#[command(name = "planted", after_help = AFTER)]
struct Args {
    /// Only the faults whose names contain one of these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Show the faults and plant none
    #[arg(long)]
    list: bool,
}

const AFTER: &str = "\
Faults whose test needs real namespaces need root. The first one takes the time of a whole build, each further one about a
minute. What a test said is left in target/planted/NAME.log.";

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let is_meant =
        |fault: &&Fault| args.names.is_empty() || args.names.iter().any(|name| fault.name.contains(name));
    let meant: Vec<&Fault> = all().filter(is_meant).collect();
    ensure!(
        !meant.is_empty(),
        "no fault is called so; `--list` shows them all"
    );
    let width = meant.iter().map(|fault| fault.name.len()).max().unwrap_or(0);
    if args.list {
        for fault in meant {
            println!("{:width$}  {}", fault.name, fault.known);
        }
        return Ok(true);
    }
    let garden = Garden::lay_out()?;
    garden.is_sound(&meant)?;
    let mut missed = 0;
    for (number, fault) in meant.iter().enumerate() {
        print!("{:2}/{} {:width$}  ", number + 1, meant.len(), fault.name);
        std::io::stdout().flush()?;
        let begin = Instant::now();
        let verdict = garden.plant(fault)?;
        println!("{} ({} s)", verdict.sentence(fault), begin.elapsed().as_secs());
        missed += usize::from(verdict != Verdict::Caught);
    }
    println!("{} of {} caught", meant.len() - missed, meant.len());
    Ok(missed == 0)
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Caught,
    Missed,
    /// It does not build, so it says nothing.
    Withered,
    Endless,
}

impl Verdict {
    fn sentence(&self, fault: &Fault) -> String {
        match self {
            Self::Caught => format!("caught by {}", fault.caught_by),
            Self::Missed => format!("MISSED by {}", fault.caught_by),
            Self::Withered => "cannot be built".to_owned(),
            Self::Endless => format!("{} had not ended after {} s", fault.caught_by, LIMIT.as_secs()),
        }
    }
}

/// A copy of the checkout, in which faults grow.
struct Garden {
    tree: PathBuf,
    build: PathBuf,
    logs: PathBuf,
}

pub(crate) fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

impl Garden {
    fn lay_out() -> Result<Self> {
        let logs = checkout().join("target/planted");
        let garden = Self {
            tree: logs.join("tree"),
            build: logs.join("build"),
            logs,
        };
        fs::create_dir_all(&garden.tree)?;
        // What is not committed is tried as it is; what has not changed keeps its time, and is not built again.
        let list = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(checkout())
            .output()
            .context("git does not run")?;
        ensure!(
            list.status.success(),
            "`git ls-files` fails: is this a git checkout?"
        );
        for file in list
            .stdout
            .split(|byte| *byte == 0)
            .filter(|file| !file.is_empty())
        {
            let file = std::str::from_utf8(file)?;
            let (from, to) = (checkout().join(file), garden.tree.join(file));
            let Ok(wanted) = fs::read(&from) else { continue };
            if fs::read(&to).is_ok_and(|there| there == wanted) {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file in no folder")?)?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {file}"))?;
        }
        Ok(garden)
    }

    /// What fails without any fault catches none.
    fn is_sound(&self, meant: &[&Fault]) -> Result<()> {
        let mut of_suite: BTreeMap<Suite, BTreeSet<&str>> = BTreeMap::new();
        for fault in meant {
            of_suite.entry(fault.suite).or_default().insert(fault.caught_by);
        }
        for (suite, tests) in of_suite {
            println!("without a fault: {suite:?}");
            let log = self.logs.join("sound.log");
            let tests: Vec<&str> = tests.into_iter().collect();
            let is_built = self.build(suite, &log)?;
            ensure!(
                is_built
                    && self.cargo(&[&suite.arguments()[..], &["--"], &tests].concat(), &log)? == Some(true),
                "these tests fail as the tree is, and can catch nothing; {} says why",
                log.display()
            );
        }
        Ok(())
    }

    fn plant(&self, fault: &Fault) -> Result<Verdict> {
        let path = self.tree.join(fault.file);
        let sound = fs::read_to_string(&path).with_context(|| format!("cannot read {}", fault.file))?;
        ensure!(
            sound.matches(fault.right).count() == 1,
            "what `{}` replaces is not in {} once",
            fault.name,
            fault.file
        );
        fs::write(&path, sound.replacen(fault.right, fault.wrong, 1))?;
        let verdict = self.try_it(fault);
        fs::write(&path, sound)?;
        verdict
    }

    fn try_it(&self, fault: &Fault) -> Result<Verdict> {
        let log = self.logs.join(format!("{}.log", fault.name));
        if !self.build(fault.suite, &log)? {
            return Ok(Verdict::Withered);
        }
        let mut test = fault.suite.arguments();
        test.push(fault.caught_by);
        Ok(match self.cargo(&test, &log)? {
            None => Verdict::Endless,
            Some(true) => Verdict::Missed,
            Some(false) => {
                // Not any failure: this test's.
                let said = fs::read_to_string(&log)?;
                match said.contains("test result: FAILED") && said.contains(fault.caught_by) {
                    true => Verdict::Caught,
                    false => bail!("the tests did not run; {} says why", log.display()),
                }
            }
        })
    }

    fn build(&self, suite: Suite, log: &Path) -> Result<bool> {
        if suite.needs_the_program()
            && self.cargo(&["build", "--quiet", "--package=weft"], log)? != Some(true)
        {
            return Ok(false);
        }
        let mut build = suite.arguments();
        build.push("--no-run");
        Ok(self.cargo(&build, log)? == Some(true))
    }

    /// Whether it ended well; nothing if it did not end.
    fn cargo(&self, args: &[&str], log: &Path) -> Result<Option<bool>> {
        let file = fs::File::create(log)?;
        let mut child = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(args)
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.build)
            .env("WEFT_BINARY", self.build.join("debug/weft"))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .context("cargo does not run")?;
        let (sender, receiver) = std::sync::mpsc::channel();
        let group = Pid::from_raw(i32::try_from(child.id())?);
        std::thread::scope(|scope| {
            scope.spawn(move || sender.send(child.wait()));
            if let Ok(ended) = receiver.recv_timeout(LIMIT) {
                return Ok(Some(ended?.success()));
            }
            killpg(group, Signal::SIGKILL)?;
            Ok(None)
        })
    }
}
