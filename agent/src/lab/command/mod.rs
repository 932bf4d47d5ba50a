//! The verbs of `weft lab`.

mod down;
mod enter;
mod show;
mod up;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use super::{
    dir::LabDir,
    fetch::{self, FetchArgs},
    file::{self, FileError},
    graph::GraphFormat,
    holder::{self, HoldArgs},
    model::LabFile,
    wire::{Killed, Request, ask},
};
use crate::api::ApiError;

/// Labs: a whole cluster in network namespaces on this machine, without root
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum LabCommand {
    /// Build a lab from a Compose file and keep it in the background
    Up(UpArgs),
    /// End a lab, and check that nothing of it is left
    Down(NameArgs),
    /// List the labs of this user
    Ls(FormatArgs),
    /// Show a lab: hosts, networks, services, replicas
    Inspect(InspectArgs),
    /// Run a command on a host or inside a replica
    Exec(ExecArgs),
    /// Call a URL from inside a replica, and show who answered
    Call(CallArgs),
    /// Crash a host: off the network, all its processes killed
    Kill(KillArgs),
    /// Draw a lab, or a lab file
    Graph(GraphArgs),
    /// Hold a lab (what `up` starts)
    #[command(hide = true)]
    Hold(HoldArgs),
    /// Call a URL from here (what `call` runs inside)
    #[command(hide = true)]
    Fetch(FetchArgs),
}

const EXAMPLES: &str = "\
Examples:
  weft lab up examples/shop.yaml
  weft lab call shop client-1 http://web/ --times 12
  weft lab kill shop h3
  weft lab exec shop h1 -- weft node ls
  weft lab exec shop client-1 -- ping -c 3 api-1
  weft lab graph shop --format svg -o shop.svg
  weft lab down shop

A lab file is a Compose file; an `x-weft` section says what Compose lacks: hosts, placement, schedulers.
Each host is a network namespace with a real agent, each replica a namespace with its command running.";

/// What `weft lab up` takes.
#[derive(Debug, Args)]
#[command(after_help = UP_EXAMPLES)]
pub struct UpArgs {
    /// The lab file
    file: PathBuf,
    /// The lab's name [default: `name` in the file, else the file's name]
    #[arg(long)]
    name: Option<String>,
}

const UP_EXAMPLES: &str = "\
Examples:
  weft lab up examples/shop.yaml
  weft lab up examples/shop.yaml --name shop2     (a second one beside it; they do not see each other)

Ctrl-C, or a step that fails, takes everything down again.";

/// What verbs on one lab take.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The lab's name
    name: String,
}

/// How something is printed.
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: a stable contract
    Json,
}

/// What `weft lab inspect` takes.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    lab: NameArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft lab exec` takes.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES)]
pub struct ExecArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// A host or a replica, such as h1 or web-1
    target: String,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

const EXEC_EXAMPLES: &str = "\
Examples:
  weft lab exec shop client-1 -- ip addr
  weft lab exec shop client-1 -- sh                 (a shell in the replica's namespaces)
  weft lab exec shop h1 -- weft service inspect web (asks the agent of h1)
  weft lab exec shop h1 -- ping 198.18.0.2          (over the underlay)

The exit code is the command's. `weft` is this program, wherever it is installed; in a replica it has no agent.";

/// What `weft lab call` takes.
#[derive(Debug, Args)]
#[command(after_help = CALL_EXAMPLES)]
pub struct CallArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// The replica or host to call from
    from: String,
    /// `http://NAME[:PORT][/PATH]`
    url: String,
    /// How often, each time on a new connection
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    times: u32,
    /// What one call may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
}

const MAX_TIMEOUT: Duration = Duration::from_secs(600);

fn timeout(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|timeout| (Duration::from_millis(1)..=MAX_TIMEOUT).contains(timeout))
        .ok_or_else(|| "expected a time such as 500ms or 5s, up to 10min".to_owned())
}

const CALL_EXAMPLES: &str = "\
Examples:
  weft lab call shop client-1 http://web/ --times 12
  weft lab call shop api-1 http://db:5432/

Names are resolved inside, by the system's resolver. No other program is needed.";

/// What `weft lab kill` takes.
#[derive(Debug, Args)]
pub struct KillArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// The host
    // Not `host`: that is the id of the global option.
    #[arg(value_name = "HOST")]
    target: String,
}

/// What `weft lab graph` takes.
#[derive(Debug, Args)]
#[command(after_help = GRAPH_EXAMPLES)]
pub struct GraphArgs {
    /// The name of a lab that is up, or a lab file
    #[arg(value_name = "NAME|FILE")]
    what: PathBuf,
    /// How to draw it
    #[arg(long, value_enum, default_value_t)]
    format: GraphFormat,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const GRAPH_EXAMPLES: &str = "\
Examples:
  weft lab graph shop                                (Mermaid, with addresses and what is down)
  weft lab graph shop --format svg -o shop.svg
  weft lab graph examples/shop.yaml                  (before it is built)";

/// Runs one of the verbs. The process must have one thread.
///
/// # Errors
///
/// An [`ApiError`](crate::api::ApiError) in the chain brings the exit code and a way out.
pub fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Up(args) => up::run(&args),
        LabCommand::Down(args) => down::run(&LabDir::of(&args.name)?),
        LabCommand::Ls(args) => show::ls(args.format),
        LabCommand::Inspect(args) => show::inspect(&LabDir::of(&args.lab.name)?, args.format.format),
        LabCommand::Exec(args) => enter::exec(&LabDir::of(&args.lab.name)?, &args.target, &args.command),
        LabCommand::Call(args) => enter::call(&LabDir::of(&args.lab.name)?, &args),
        LabCommand::Kill(args) => kill(&LabDir::of(&args.lab.name)?, &args.target),
        LabCommand::Graph(args) => show::graph(&args),
        LabCommand::Hold(args) => holder::run(&args),
        LabCommand::Fetch(args) => fetch::run(&args),
    }
}

/// Reads a lab file, and tells what is to be known about it.
fn load(path: &Path) -> Result<LabFile, ApiError> {
    let (lab, notes) = file::load(path).map_err(|error| match &error {
        FileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ApiError::not_found(format!("{error}: {source}"))
        }
        FileError::Read { source, .. } => ApiError::invalid(format!("{error}: {source}")),
        _ => ApiError::invalid(error.to_string()),
    })?;
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(lab)
}

fn kill(dir: &LabDir, host: &str) -> Result<ExitCode> {
    let killed: Killed = ask(
        dir,
        &Request::KillHost {
            host: host.to_owned(),
        },
    )?;
    match killed.replicas.as_slice() {
        [] => println!("host {host} is down; no replica was on it"),
        replicas => println!("host {host} is down, and with it {}", replicas.join(" ")),
    }
    Ok(ExitCode::SUCCESS)
}
