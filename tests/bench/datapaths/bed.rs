//! Namespaces behind one bridge: four backends in one, and each way to them with a client of its own.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    num::NonZeroU16,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use weft_lb::{
    Backend, BackendState, ClientTable, Datapath, Scheduler, Service,
    kernel::{EbpfDatapath, NftDatapath},
};
use weft_netlink::{
    netns::Netns,
    route::{Batch, NewLink, RouteSocket, VethPeer},
};
use weft_types::{EndpointId, NetworkId, ServiceId};

/// Where the backends listen, and the services' virtual address too.
pub const PORT: u16 = 8080;
pub const VIP: [u8; 4] = [10, 9, 0, 100];
pub const BACKENDS: u8 = 4;

/// How a client comes to the backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// To the first backend by its own address.
    Direct,
    Ebpf,
    Nft,
    /// `iptables` with `statistic`, in the client's namespace.
    Iptables,
    /// A virtual service that masquerades, in the client's namespace: both ways through a connection are translated there, as
    /// by the ways above. Without connection tracking, which is its default.
    Ipvs,
    /// In the client's namespace.
    Haproxy,
}

impl Way {
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::Ebpf,
        Self::Nft,
        Self::Iptables,
        Self::Ipvs,
        Self::Haproxy,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ebpf => "eBPF",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Ipvs => "IPVS",
            Self::Haproxy => "haproxy",
        }
    }

    /// Why it cannot be measured here.
    pub fn hindrance(self) -> Option<String> {
        if self != Self::Ipvs {
            return None;
        }
        match Command::new("ipvsadm").arg("--list").output() {
            Err(error) => Some(format!("`ipvsadm`: {error}")),
            Ok(listed) if listed.status.success() => None,
            Ok(listed) => Some(String::from_utf8_lossy(&listed.stderr).trim().replace('\n', " ")),
        }
    }

    pub fn knows(self, scheduler: Scheduler) -> bool {
        self != Self::Iptables || scheduler == Scheduler::RoundRobin
    }
}

/// Backends, and a client for each way.
pub struct Bed {
    pub server: Netns,
    clients: Vec<(Way, Netns)>,
    nft: NftDatapath,
    ebpf: EbpfDatapath,
    haproxy: Option<Running>,
    dir: tempfile::TempDir,
}

impl Bed {
    pub fn new(ways: &[Way]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let server = Netns::create().context("namespaces need root")?;
        ip(
            &server,
            "link add br0 type bridge\nlink set br0 up\nlink set lo up\n",
        )?;
        for n in 0..BACKENDS {
            ip(&server, &format!("addr add {}/24 dev br0\n", backend(n)))?;
        }
        let clients = ways.iter().zip(1..);
        let clients = clients.map(|(way, n)| Ok((*way, client(&server, n)?)));
        Ok(Self {
            clients: clients.collect::<Result<_>>()?,
            server,
            nft: NftDatapath::new()?,
            ebpf: EbpfDatapath::open(&dir.path().join("bpf"))?,
            haproxy: None,
            dir,
        })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn client(&self, way: Way) -> Result<&Netns> {
        let client = self.clients.iter().find(|(of, _)| *of == way);
        Ok(&client.context("there is no client for this way")?.1)
    }

    /// Where a client of this way sends.
    pub fn target(way: Way) -> Ipv4Addr {
        match way {
            Way::Direct => backend(0),
            _ => VIP.into(),
        }
    }

    /// Builds all ways anew, with a scheduler; `iptables` knows one. The hooks of eBPF are there until [`Bed::unhook`].
    pub fn balance(&mut self, scheduler: Scheduler) -> Result<()> {
        self.haproxy = None;
        for (way, client) in &self.clients {
            match way {
                Way::Direct => {}
                Way::Ebpf => self.hook(scheduler)?,
                Way::Nft => drop(self.nft.sync("nft", client, &tables(scheduler))?),
                Way::Iptables => iptables(client)?,
                Way::Ipvs => ipvs(client, scheduler)?,
                Way::Haproxy => {
                    let vip = Ipv4Addr::from(VIP);
                    ip(client, &format!("addr replace {vip}/32 dev lo\n"))?;
                    self.haproxy = Some(haproxy(client, self.dir.path(), scheduler)?);
                }
            }
        }
        Ok(())
    }

    /// The hooks of eBPF are on every socket of the machine.
    pub fn hook(&self, scheduler: Scheduler) -> Result<()> {
        if let Ok(client) = self.client(Way::Ebpf) {
            self.ebpf.sync("ebpf", client, &tables(scheduler))?;
        }
        Ok(())
    }

    pub fn unhook(&self) -> Result<()> {
        if let Ok(client) = self.client(Way::Ebpf) {
            self.ebpf.remove("ebpf", Some(client))?;
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = EbpfDatapath::clear(&self.dir.path().join("bpf"));
    }
}

pub fn backend(n: u8) -> Ipv4Addr {
    [10, 9, 0, 11 + n].into()
}

pub fn tables(scheduler: Scheduler) -> Vec<ClientTable> {
    let backends = (0..BACKENDS).map(|n| Backend {
        endpoint: EndpointId([n + 1; 16]),
        addrs: vec![IpAddr::V4(backend(n))],
        weight: NonZeroU16::MIN,
        state: BackendState::Active,
    });
    let service = Service {
        id: ServiceId([1; 16]),
        vips: vec![VIP.into()],
        ports: Vec::new(),
        scheduler,
        idle_timeout: None,
        is_watched: false,
        backends: backends.collect(),
    };
    vec![ClientTable::new(NetworkId([1; 16]), [service])]
}

/// A namespace on the bridge.
fn client(server: &Netns, n: u8) -> Result<Netns> {
    let client = Netns::create()?;
    let port = format!("c{n}");
    let mut batch = Batch::new();
    batch.add(NewLink::veth("eth0", VethPeer::new(&port).netns(server.as_fd())));
    RouteSocket::open(&client)?.execute(batch)?;
    ip(server, &format!("link set {port} master br0 up\n"))?;
    let lines = format!("link set lo up\nlink set eth0 up\naddr add 10.9.0.{n}/24 dev eth0\n");
    ip(&client, &lines)?;
    Ok(client)
}

fn ip(netns: &Netns, lines: &str) -> Result<()> {
    feed(netns, Command::new("ip").args(["-batch", "-"]), lines)
}

/// Runs a program inside with these lines as its input.
fn feed(netns: &Netns, command: &mut Command, lines: &str) -> Result<()> {
    netns.run(|| {
        let child = command.stdin(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("{command:?}"))?;
        let mut input = child.stdin.take().context("it has no input")?;
        input.write_all(lines.as_bytes())?;
        drop(input);
        if !child.wait()?.success() {
            bail!("{command:?} refused: {lines}");
        }
        Ok(())
    })?
}

/// One after the other, as Kubernetes' first proxies did it.
fn iptables(client: &Netns) -> Result<()> {
    let mut rules = String::from("*nat\n:OUTPUT ACCEPT\n");
    for n in 0..BACKENDS {
        let nth = match BACKENDS - n {
            1 => String::new(),
            left => format!("-m statistic --mode nth --every {left} --packet 0 "),
        };
        let (vip, to) = (Ipv4Addr::from(VIP), backend(n));
        writeln!(
            rules,
            "-A OUTPUT -d {vip}/32 -p tcp {nth}-j DNAT --to-destination {to}"
        )?;
    }
    rules.push_str("COMMIT\n");
    feed(client, &mut Command::new("iptables-restore"), &rules)
}

fn ipvs(client: &Netns, scheduler: Scheduler) -> Result<()> {
    let scheduler = match scheduler {
        Scheduler::LeastConnections => "lc",
        _ => "rr",
    };
    let mut lines = String::from("-C\n");
    for port in [PORT, super::rates::BULK] {
        let service = SocketAddr::from((VIP, port));
        writeln!(lines, "-A -t {service} -s {scheduler}")?;
        for n in 0..BACKENDS {
            writeln!(lines, "-a -t {service} -r {} -m", backend(n))?;
        }
    }
    feed(client, Command::new("ipvsadm").arg("--restore"), &lines)
}

fn haproxy(client: &Netns, dir: &Path, scheduler: Scheduler) -> Result<Running> {
    let balance = match scheduler {
        Scheduler::LeastConnections => "leastconn",
        _ => "roundrobin",
    };
    let mut text = String::from(
        "global\n maxconn 4000\n nbthread 1\ndefaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n",
    );
    for port in [PORT, super::rates::BULK] {
        writeln!(
            text,
            "listen p{port}\n bind {}:{port}\n balance {balance}",
            Ipv4Addr::from(VIP)
        )?;
        for n in 0..BACKENDS {
            writeln!(text, " server b{n} {}:{port}", backend(n))?;
        }
    }
    let config = dir.join("haproxy.cfg");
    std::fs::write(&config, text)?;
    let mut command = Command::new("haproxy");
    command
        .arg("-db")
        .arg("-f")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Running::start(client, command, SocketAddr::from((VIP, PORT)))
}

/// A program that ends with the value.
pub struct Running(Child);

impl Running {
    /// Starts it, and waits until it takes connections.
    pub fn start(netns: &Netns, mut command: Command, listens: SocketAddr) -> Result<Self> {
        let child = netns.run(|| command.spawn())?;
        let mut running = Self(child.with_context(|| format!("{command:?}"))?);
        let deadline = Instant::now() + Duration::from_secs(10);
        while netns.run(|| TcpStream::connect(listens))?.is_err() {
            if let Some(status) = running.0.try_wait()? {
                bail!("{command:?} ended: {status}");
            }
            if Instant::now() > deadline {
                bail!("{command:?} does not listen on {listens}");
            }
            std::thread::yield_now();
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A master takes its workers with it.
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
