//! What an agent is told at its start; the command line fills it, labs and tests may too.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use weft_dns::SplitDomain;

/// The UDP and TCP port of gossip, when none is given.
pub const DEFAULT_GOSSIP_PORT: u16 = 7946;
/// The UDP port of VXLAN (RFC 7348), when none is given.
pub const DEFAULT_VXLAN_PORT: u16 = 4789;
/// The UDP port of WireGuard, when none is given.
pub const DEFAULT_WIREGUARD_PORT: u16 = 51820;
/// Where durable state is kept, when no directory is given.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/weft";
/// Where sockets and namespaces are kept, when no directory is given.
pub const DEFAULT_RUN_DIR: &str = "/run/weft";

/// The group that may change things by the API's socket, when none is given and this host has it.
pub const DEFAULT_SOCKET_GROUP: &str = "weft";
/// The group that may look, when none is given and this host has it.
pub const DEFAULT_READ_GROUP: &str = "weft-read";

/// Where Docker's API is, when no socket is given.
pub const DEFAULT_DOCKER_SOCKET: &str = "/run/docker.sock";

/// Where `weft docker proxy` serves Docker's API, when no socket is given.
pub const DEFAULT_PROXY_SOCKET: &str = "unix:///run/weft/docker.sock";

/// The domain that names on all networks end in.
pub const DOMAIN: &str = "weft.internal";

/// How the agent writes its log, on standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line of text per event.
    #[default]
    Text,
    /// A JSON object per event.
    Json,
}

/// Where Docker finds its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerPlugin {
    /// In the usual place, on a host that has Docker.
    Auto,
    /// Nowhere.
    Off,
    /// At this socket. Its name, without `.sock`, is the name of the driver.
    At(PathBuf),
}

/// What translates the virtual addresses of services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DatapathChoice {
    /// eBPF where the kernel takes it, else nf_tables.
    #[default]
    Auto,
    /// nf_tables, which also works without root.
    Nft,
    /// eBPF, or the agent does not start.
    Ebpf,
}

/// What encrypts what goes to other hosts on encrypted networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WireguardChoice {
    /// The kernel's WireGuard where there is one, else the process `weft tunnels`.
    #[default]
    Auto,
    /// The process `weft tunnels`.
    Userspace,
    /// The kernel's WireGuard, or the agent does not start.
    Kernel,
}

/// Who starts the process that encrypts, and starts it again when it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TunnelsStart {
    /// The agent, when an encrypted network needs it; the agent also ends it when none does.
    #[default]
    Agent,
    /// A service manager.
    Service,
}

/// What names are asked and answered beside those of the networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsOptions {
    /// Domains with servers of their own.
    pub forward: Vec<SplitDomain>,
    /// Where programs of this host may ask.
    pub host: Option<SocketAddr>,
    /// What they are shown; all networks on this host when none is named.
    pub host_networks: Vec<String>,
}

/// What `weft agent` runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// Durable state: identity, owned blocks, networks, services, endpoints.
    pub data_dir: PathBuf,
    /// State that ends with the boot: sockets and the namespaces of networks.
    pub run_dir: PathBuf,
    /// The Unix socket of the API.
    pub socket: PathBuf,
    /// The group, by name or number, that may give every command; [`DEFAULT_SOCKET_GROUP`] if there is one when not given.
    pub socket_group: Option<String>,
    /// The group that may look, by a socket of its own in `run_dir`; [`DEFAULT_READ_GROUP`] if there is one when not given.
    pub read_group: Option<String>,
    /// The name other nodes show for this one; the host's name when not given.
    pub node_name: Option<String>,
    /// The underlay address and gossip port that other nodes reach this one at; found from the routing
    /// table when not given.
    pub advertise: Option<SocketAddr>,
    /// The UDP port of VXLAN. All nodes of a cluster use the same.
    pub vxlan_port: u16,
    /// The UDP port of WireGuard, which encrypted networks use.
    pub wireguard_port: u16,
    /// Whether networks that are made here are encrypted if nobody says otherwise.
    pub encrypt: bool,
    /// How old the key of this node may get, with which encrypted networks reach it.
    pub rotate_keys: Option<Duration>,
    /// How old the key of the cluster may get, with which agents seal what they say to each other.
    pub rotate_gossip_key: Option<Duration>,
    /// What encrypts; changed by a restart, which interrupts encrypted networks for a moment.
    pub wireguard: WireguardChoice,
    /// Who starts the process that encrypts.
    pub tunnels: TunnelsStart,
    /// Whether the agent, and that process where the agent starts it, are kept from this host's files, and the agent from system calls.
    pub sandbox: bool,
    /// Where Docker finds its driver.
    pub docker_plugin: DockerPlugin,
    /// The socket of Docker's API, which is used where Docker's driver is served.
    pub docker_socket: PathBuf,
    /// What translates virtual addresses; changed by a restart, which no connection notices.
    pub datapath: DatapathChoice,
    /// Whether the health checks of services may be commands. Every node of the cluster can set such a check.
    pub health_commands: bool,
    /// What names are asked and answered beside those of the networks.
    pub dns: DnsOptions,
    /// Where metrics are served beside the API's socket; nowhere when not given.
    pub metrics: Option<SocketAddr>,
    /// How the log is written.
    pub log_format: LogFormat,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            data_dir: DEFAULT_DATA_DIR.into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            socket: PathBuf::from(DEFAULT_RUN_DIR).join("weft.sock"),
            socket_group: None,
            read_group: None,
            node_name: None,
            advertise: None,
            vxlan_port: DEFAULT_VXLAN_PORT,
            wireguard_port: DEFAULT_WIREGUARD_PORT,
            encrypt: false,
            rotate_keys: None,
            rotate_gossip_key: None,
            wireguard: WireguardChoice::Auto,
            tunnels: TunnelsStart::Agent,
            sandbox: true,
            docker_plugin: DockerPlugin::Auto,
            docker_socket: DEFAULT_DOCKER_SOCKET.into(),
            datapath: DatapathChoice::Auto,
            health_commands: false,
            dns: DnsOptions::default(),
            metrics: None,
            log_format: LogFormat::Text,
        }
    }
}
