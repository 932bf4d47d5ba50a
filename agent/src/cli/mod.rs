//! The command line: Docker's grammar, noun then verb.
//!
//! [`main`] is synchronous: `weft lab` changes namespaces, which a process with threads cannot do, so a
//! runtime is made only by the commands that need one.

mod broker;
mod dns;
mod failure;
mod format;
mod nouns;
mod progress;
mod session;
mod table;
mod tunnels;
mod warning;
pub mod whoami;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use crate::{
    lab::LabCommand,
    options::{
        AgentOptions, DEFAULT_DATA_DIR, DEFAULT_DOCKER_SOCKET, DEFAULT_GOSSIP_PORT, DEFAULT_RUN_DIR,
        DEFAULT_VXLAN_PORT, DEFAULT_WIREGUARD_PORT, DatapathChoice, DockerPlugin, LogFormat, TunnelsStart,
        WireguardChoice,
    },
};
use failure::Failure;
use nouns::{cluster, docker, doctor, event, network, node, report, service, status, token, why};
use session::{Host, Session};

/// One network for containers, namespaces and processes on many hosts.
#[derive(Debug, Parser)]
#[command(name = "weft", version, disable_help_subcommand = true, max_term_width = 100, after_help = TOP_EXAMPLES)]
struct Cli {
    /// The socket of the agent, for commands that talk to one
    #[arg(
        long,
        env = "WEFT_HOST",
        hide_env_values = true,
        default_value = "unix:///run/weft/weft.sock",
        global = true,
        value_name = "unix:///PATH",
        help_heading = "Global options"
    )]
    host: Host,
    #[command(subcommand)]
    command: Command,
}

const TOP_EXAMPLES: &str = "\
Examples:
  A cluster of two hosts, and a network on both:
    host1# weft agent &
    host1# weft init                       (prints the command for host2)
    host2# weft agent &
    host2# weft join --token … host1:7946
    host1# weft network create app
    host1# weft network connect app NETNS --name a --service web

  The same and more on one machine, without root:
    weft lab up examples/shop.yaml

Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not found, 4 conflict, 5 agent not reachable";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this host
    Agent(AgentArgs),
    /// Make a cluster of which this host is the first node
    Init(cluster::InitArgs),
    /// Join the cluster of another host
    Join(cluster::JoinArgs),
    /// Leave the cluster: remove this host's endpoints and hand over what it owns
    Leave(cluster::LeaveArgs),
    /// Tokens that let a host join
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The hosts of the cluster
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Networks, and what is attached to them
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Services: a name and an address in front of several endpoints
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Docker on this host: its command `overlay` without Swarm, and names for containers
    #[command(subcommand)]
    Docker(docker::DockerCommand),
    /// Clusters in namespaces on this machine, from a Compose file, without root
    #[command(subcommand)]
    Lab(LabCommand),
    /// One screen: this node, its peers, the networks, what is wrong
    Status(status::StatusArgs),
    /// Compare what should be with what is, name every difference, and put it right
    Doctor(doctor::DoctorArgs),
    /// Follow one question: which record, which answer, which backend and why it, which way
    Why(why::WhyArgs),
    /// Pack what helps to find a fault into one archive, without secrets
    Report(report::ReportArgs),
    /// What happens, as JSON lines
    Events(event::EventsArgs),
    /// The versions of this program and of the agent
    Version(status::VersionArgs),
    /// Answer HTTP and UDP with who one is: a workload for labs and tests
    Whoami(whoami::WhoamiArgs),
    /// Carry the packets of encrypted networks; the agent starts it, or its service does
    #[command(hide = true)]
    Tunnels(tunnels::TunnelsArgs),
    /// Enter namespaces and mount for an agent, which starts it
    #[command(hide = true)]
    Broker(broker::BrokerArgs),
    /// Print the completions of a shell
    Completion(CompletionArgs),
}

/// What `weft agent` takes.
#[derive(Debug, Args)]
#[command(after_help = AGENT_EXAMPLES, after_long_help = format!("{AGENT_EXAMPLES}\n\n{}", dns::DNS_HELP))]
struct AgentArgs {
    /// Where durable state is kept: identity, owned addresses, networks, services, endpoints
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Where sockets and namespaces are kept until the next boot
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// The socket of the API [default: weft.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The group, by name or number, that may give every command: with it one is as good as root on this host [default: weft, if there is one, else only root may]
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// The group that may look and change nothing, by the socket weft-read.sock in the run directory [default: weft-read, if there is one, else only root may]
    #[arg(long, value_name = "GROUP")]
    read_group: Option<String>,
    /// The name other nodes show for this one [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The address and gossip port that other hosts reach this one at [default: found from the routes, port 7946]
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_advertise)]
    advertise: Option<SocketAddr>,
    /// The UDP port of VXLAN, the same on all hosts of a cluster
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_VXLAN_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
    /// Encrypt networks that are made here, by whatever way, unless they are made with `--opt encrypted=false`
    #[arg(long)]
    encrypt: bool,
    /// Change this host's key for encrypted networks when it is so old, 90d say; no packet is lost [default: only by `weft node rotate-key`]
    #[arg(long, value_name = "TIME", value_parser = key_age)]
    rotate_keys: Option<Duration>,
    /// Change the cluster's gossip key when it is so old, 30d say; one agent of the cluster is enough [default: only by `weft token rotate-key`]
    #[arg(long, value_name = "TIME", value_parser = key_age)]
    rotate_gossip_key: Option<Duration>,
    /// The UDP port of WireGuard, by which encrypted networks reach this host
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_WIREGUARD_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    wireguard_port: u16,
    /// What encrypts; a restart changes it, and encrypted networks stand still for a moment. Hosts of a cluster may differ
    #[arg(long, value_enum, default_value_t)]
    wireguard: WireguardChoice,
    /// Who starts `weft tunnels`, which encrypts: this agent when there is an encrypted network, or a service manager
    #[arg(long, value_name = "WHO", value_enum, default_value_t)]
    tunnels: TunnelsStart,
    /// Do without what keeps the agent and `weft tunnels` from this host's files (Landlock) and system calls (seccomp), should that be in
    /// their way
    #[arg(long)]
    no_sandbox: bool,
    /// The socket of Docker's driver, `off` for none [default: /run/docker/plugins/weft.sock on hosts with Docker]
    #[arg(long, value_name = "PATH|off")]
    docker_plugin: Option<PathBuf>,
    /// The socket of Docker's API, by which networks are made in Docker and names of containers learned
    #[arg(long, value_name = "PATH", default_value = DEFAULT_DOCKER_SOCKET)]
    docker_socket: PathBuf,
    /// What translates the virtual addresses of services; a restart changes it, which no connection notices
    #[arg(long, value_enum, default_value_t)]
    datapath: DatapathChoice,
    /// Run commands that services have as health checks; whoever is in the cluster can then run them on this host
    #[arg(long)]
    health_commands: bool,
    /// Serve /metrics, /live and /ready there too, to whoever reaches it; the API's socket always has them
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    dns: dns::DnsArgs,
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

const AGENT_EXAMPLES: &str = "\
Examples:
  sudo weft agent
  sudo weft agent --advertise 192.0.2.10 --node-name alpha
  sudo weft agent --advertise [2001:db8::10]:7946 --data-dir /srv/weft
  sudo weft agent --dns-forward corp.example=10.0.0.53 --dns-forward 10.0.0.0/8=10.0.0.53
  sudo weft agent --dns-host 127.53.53.53

The agent stays in the foreground; a service manager restarts it. Networks go on carrying packets
while it is away. WEFT_LOG sets what is logged, as in WEFT_LOG=weft=debug.";

/// What `weft completion` takes.
#[derive(Debug, Args)]
#[command(after_help = COMPLETION_EXAMPLES)]
struct CompletionArgs {
    /// The shell
    shell: clap_complete::Shell,
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  weft completion bash > /etc/bash_completion.d/weft
  weft completion zsh > /usr/share/zsh/site-functions/_weft
  weft completion fish > ~/.config/fish/completions/weft.fish";

impl AgentArgs {
    fn options(self) -> AgentOptions {
        AgentOptions {
            socket: self.socket.unwrap_or_else(|| self.run_dir.join("weft.sock")),
            socket_group: self.socket_group,
            read_group: self.read_group,
            data_dir: self.data_dir,
            run_dir: self.run_dir,
            node_name: self.node_name,
            advertise: self.advertise,
            vxlan_port: self.vxlan_port,
            wireguard_port: self.wireguard_port,
            encrypt: self.encrypt,
            rotate_keys: self.rotate_keys,
            rotate_gossip_key: self.rotate_gossip_key,
            wireguard: self.wireguard,
            tunnels: self.tunnels,
            sandbox: !self.no_sandbox,
            docker_socket: self.docker_socket,
            docker_plugin: match self.docker_plugin {
                None => DockerPlugin::Auto,
                Some(path) if path.as_os_str() == "off" => DockerPlugin::Off,
                Some(path) => DockerPlugin::At(path),
            },
            datapath: self.datapath,
            health_commands: self.health_commands,
            metrics: self.metrics,
            dns: self.dns.options(),
            log_format: self.log_format,
        }
    }
}

/// How old a key may get. A change takes minutes where a node is silent, so it is not to come as often.
fn key_age(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(age) if age >= Duration::from_secs(3600) => Ok(age),
        Ok(_) => Err("a key has to be used for an hour at least".to_owned()),
        Err(_) => Err("expected a time such as 90d, 4weeks or 12h".to_owned()),
    }
}

/// `IP` or `IP:PORT`; IPv6 with a port in brackets, without one either way.
fn parse_advertise(text: &str) -> Result<SocketAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address = match bare.parse() {
        Ok(ip) => SocketAddr::new(ip, DEFAULT_GOSSIP_PORT),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| {
            "expected an address such as 192.0.2.10, 192.0.2.10:7946 or [2001:db8::10]:7946".to_owned()
        })?,
    };
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        return Err("other hosts cannot reach that: expected an address and port of this host".to_owned());
    }
    Ok(address)
}

/// Runs the command that the process was given.
pub fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Failure> {
    let mut definition = Cli::command();
    let parsed = definition.try_get_matches_from_mut(args).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        let host_given = matches.value_source("host") == Some(ValueSource::CommandLine);
        if host_given && !cli.command.talks_to_an_agent() {
            let message = "`--host` says which agent to talk to, and this command talks to none";
            return Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        Ok(cli)
    });
    // clap prints help to standard output with exit code 0, errors to standard error with 2.
    let cli = parsed.unwrap_or_else(|error| error.exit());

    let session = Session::new(cli.host);
    match cli.command {
        Command::Agent(args) => crate::daemon::run(args.options())?,
        Command::Lab(command) => return Ok(crate::lab::run(command)?),
        Command::Docker(command) => docker::run(session, command)?,
        Command::Whoami(args) => whoami::run(args)?,
        Command::Tunnels(args) => tunnels::run(&args)?,
        Command::Broker(args) => crate::broker::run(args.options())?,
        Command::Completion(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "weft", &mut std::io::stdout());
        }
        Command::Init(args) => cluster::init(&session, args)?,
        Command::Join(args) => cluster::join(&session, args)?,
        Command::Leave(args) => cluster::leave(&session, args)?,
        Command::Token(command) => token::run(&session, command)?,
        Command::Node(command) => node::run(&session, command)?,
        Command::Network(command) => network::run(&session, command)?,
        Command::Service(command) => service::run(&session, command)?,
        Command::Doctor(args) => return doctor::doctor(&session, args),
        Command::Report(args) => report::report(&session, args)?,
        Command::Why(args) => return why::why(&session, args),
        Command::Status(args) => status::status(&session, args)?,
        Command::Events(args) => event::run(&session, args)?,
        Command::Version(args) => status::version(&session, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Command {
    fn talks_to_an_agent(&self) -> bool {
        !matches!(
            self,
            Self::Agent(_)
                | Self::Docker(docker::DockerCommand::Setup(_))
                | Self::Lab(_)
                | Self::Whoami(_)
                | Self::Tunnels(_)
                | Self::Broker(_)
                | Self::Completion(_)
        )
    }
}

#[cfg(test)]
mod tests;
