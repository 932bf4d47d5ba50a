use std::{
    fs,
    io::{self, IsTerminal, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};

use super::drain::grace;
use crate::{
    cli::{
        failure::Failure,
        format::print,
        session::{Host, Session, runtime},
    },
    docker::{
        proxy::{self, ProxyOptions},
        setup::{self, Plan},
    },
    options::{DEFAULT_DOCKER_SOCKET, DEFAULT_PROXY_SOCKET},
};

/// The verbs of `weft docker`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) enum DockerCommand {
    /// Serve Docker's API on a socket where the driver `overlay` is Weft's, without Swarm
    Proxy(ProxyArgs),
    /// Show or write what /etc/docker/daemon.json needs so that containers ask Weft for names
    Setup(SetupArgs),
}

const EXAMPLES: &str = "\
Examples:
  weft docker setup
  sudo weft docker setup --write
  sudo weft docker proxy &
  docker -H unix:///run/weft/docker.sock network create --driver overlay app
  DOCKER_HOST=unix:///run/weft/docker.sock docker compose up -d";

/// What `weft docker proxy` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct ProxyArgs {
    /// Where to serve it. Who may use Docker's own socket may use this one
    #[arg(long, value_name = "unix:///PATH", default_value = DEFAULT_PROXY_SOCKET)]
    listen: Host,
    /// The socket of Docker's API
    #[arg(long, value_name = "PATH", default_value = DEFAULT_DOCKER_SOCKET)]
    docker_socket: PathBuf,
    /// The name by which Docker knows Weft's driver
    #[arg(long, value_name = "NAME", default_value = "weft")]
    driver: String,
    /// What connections to a container that serves something may take to end before it is told to stop. New ones go to
    /// others by then
    #[arg(long, value_name = "TIME", value_parser = grace, default_value = "2s")]
    stop_grace: Duration,
}

/// What `weft docker setup` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct SetupArgs {
    /// Write the file, after asking, instead of showing what it would be
    #[arg(long)]
    write: bool,
    /// Do not ask
    #[arg(long, requires = "write")]
    yes: bool,
    /// Docker's settings
    #[arg(long, value_name = "PATH", default_value = "/etc/docker/daemon.json")]
    file: PathBuf,
}

pub(in crate::cli) fn run(session: Session, command: DockerCommand) -> Result<(), Failure> {
    match command {
        DockerCommand::Proxy(args) => {
            let options = ProxyOptions {
                listen: args.listen.into_path(),
                docker: args.docker_socket,
                driver: args.driver,
                agent: session.into_client(),
                grace: args.stop_grace,
            };
            Ok(runtime()?.block_on(proxy::serve(options))?)
        }
        DockerCommand::Setup(args) => setup(&args),
    }
}

fn setup(args: &SetupArgs) -> Result<(), Failure> {
    let file = &args.file;
    let cannot = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(format!("{} cannot be {what}: {error}", file.display()))
    };
    let now = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(cannot("read", &error)),
    };
    let plan = setup::plan(&now, &resolvers()).map_err(|error| {
        cannot("changed", &error).with_help("mend it first; dockerd would not start with it either")
    })?;
    if plan.is_done {
        eprintln!(
            "{} has containers ask Weft for names already; nothing is to be done",
            file.display()
        );
        return Ok(());
    }
    print(&plan.text)?;
    if !args.write {
        eprintln!(
            "\nThat is what {} has to be; `weft docker setup --write` writes it.",
            file.display()
        );
        return Ok(());
    }
    if !args.yes && !agreed(file)? {
        return Err(Failure::new(format!("{} was not written", file.display())));
    }
    write(file, &plan.text).map_err(|error| cannot("written", &error))?;
    eprint!("{}", what_next(file, &plan));
    Ok(())
}

fn resolvers() -> Vec<IpAddr> {
    // Where systemd-resolved answers on the loopback, the second file names those that it asks.
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let read = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let found = read.map(|text| setup::resolvers(&text));
    found
        .into_iter()
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

fn agreed(file: &Path) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is nobody to ask whether to write the file")
            .with_help("`weft docker setup --write --yes` writes it without asking"));
    }
    eprint!("\nWrite this to {}? [y/N] ", file.display());
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| Failure::new(format!("the answer cannot be read: {error}")))?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// The whole file or none of it, whatever happens meanwhile; where it is a link, what it leads to.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = target.with_extension("json.weft");
    let mut to = fs::File::create(&new)?;
    to.write_all(text.as_bytes())?;
    if let Ok(known) = fs::metadata(&target) {
        to.set_permissions(known.permissions())?;
    }
    to.sync_all()?;
    fs::rename(new, target)
}

fn what_next(file: &Path, plan: &Plan) -> String {
    let running = match plan.live_restore {
        true => {
            "Containers go on running meanwhile (`live-restore`); each asks Weft once it was started again."
        }
        false => {
            "That stops the containers of this host; those with a restart policy come back by themselves. \
             With `\"live-restore\": true` they would go on running."
        }
    };
    format!(
        "\n{} is written. Restart Docker: `systemctl restart docker`.\n{running}\n\
         If dockerd is started with `--dns`, take that out: it does not start with both.\n",
        file.display()
    )
}
