//! `bench-datapaths`: the datapaths for virtual addresses beside each other and beside no virtual address at all.
//!
//! Clients and four backends (nginx) are namespaces behind one bridge, so that little else than the translation is
//! measured. Rounds and ratios are as in `bench`. Needs root outside of user namespaces, nginx and wrk.

#[path = "table.rs"]
#[allow(dead_code, reason = "`bench` measures more kinds of things")]
mod table;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpStream},
    num::NonZeroU16,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use weft_lb::{
    Backend, BackendState, ClientTable, Datapath, Scheduler, Service,
    kernel::{EbpfDatapath, NftDatapath},
};
use weft_netlink::{
    netns::Netns,
    route::{Batch, NewLink, RouteSocket, VethPeer},
};
use weft_types::{EndpointId, NetworkId, ServiceId};

use table::{Table, Unit};

const PORT: u16 = 8080;
const VIP: [u8; 4] = [10, 9, 0, 100];
const BACKENDS: u8 = 4;

/// Ways to a service beside each other, as ratios
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Connections that wrk keeps busy
    #[arg(long, default_value_t = 16)]
    connections: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let server = Netns::create().context("namespaces need root")?;
    ip(
        &server,
        "link add br0 type bridge\nlink set br0 up\nlink set lo up\n",
    )?;
    for n in 0..BACKENDS {
        ip(
            &server,
            &format!("addr add 10.9.0.{}/24 dev br0\n", backend_addr(n).3),
        )?;
    }
    let clients = [client(&server, 1)?, client(&server, 2)?, client(&server, 3)?];
    let [plain, by_nft, by_ebpf] = &clients;
    let _nginx = Nginx::start(&server, dir.path())?;

    let nft = NftDatapath::new()?;
    let ebpf = EbpfDatapath::open(&dir.path().join("bpf"))?;
    let mut table = Table::default();
    let direct = SocketAddr::from(([10, 9, 0, 11], PORT));
    let vip = SocketAddr::from((VIP, PORT));
    for scheduler in [Scheduler::RoundRobin, Scheduler::LeastConnections] {
        let tables = tables(scheduler);
        nft.sync("nft", by_nft, &tables)?;
        for keep_alive in [false, true] {
            let what = format!(
                "{}, {scheduler}",
                if keep_alive {
                    "keep-alive"
                } else {
                    "new connections"
                }
            );
            let [mut none, mut nfts, mut ebpfs, mut beside] = [const { Vec::new() }; 4];
            for round in 0..args.rounds {
                eprintln!("{what}: round {} of {}", round + 1, args.rounds);
                none.push(wrk("direct", plain, direct, &args, keep_alive)?);
                nfts.push(wrk("nft", by_nft, vip, &args, keep_alive)?);
                ebpf.sync("ebpf", by_ebpf, &tables)?;
                ebpfs.push(wrk("ebpf", by_ebpf, vip, &args, keep_alive)?);
                beside.push(wrk("direct", plain, direct, &args, keep_alive)?);
                ebpf.remove("ebpf", Some(by_ebpf))?;
            }
            table.compare(
                &format!("eBPF, {what}"),
                Unit::Rate,
                &ebpfs,
                &[("direct", &none), ("nft", &nfts)],
            );
            table.compare(&format!("nft, {what}"), Unit::Rate, &nfts, &[("direct", &none)]);
            table.compare(
                &format!("direct beside hooks, {what}"),
                Unit::Rate,
                &beside,
                &[("direct", &none)],
            );
        }
    }
    println!("{table}");
    Ok(())
}

fn backend_addr(n: u8) -> (u8, u8, u8, u8) {
    (10, 9, 0, 11 + n)
}

fn tables(scheduler: Scheduler) -> Vec<ClientTable> {
    let backend = |n: u8| {
        let (a, b, c, d) = backend_addr(n);
        Backend {
            endpoint: EndpointId([n + 1; 16]),
            addrs: vec![IpAddr::from([a, b, c, d])],
            weight: NonZeroU16::MIN,
            state: BackendState::Active,
        }
    };
    let service = Service {
        id: ServiceId([1; 16]),
        vips: vec![VIP.into()],
        ports: Vec::new(),
        scheduler,
        backends: (0..BACKENDS).map(backend).collect(),
    };
    vec![ClientTable {
        network: NetworkId([1; 16]),
        services: vec![service],
    }]
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
    netns.run(|| {
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        ip.stdin
            .take()
            .context("it has no input")?
            .write_all(lines.as_bytes())?;
        if !ip.wait()?.success() {
            bail!("`ip` refused: {lines}");
        }
        Ok(())
    })?
}

/// Ends with the value.
struct Nginx(Child);

impl Nginx {
    fn start(netns: &Netns, dir: &Path) -> Result<Self> {
        let config = dir.join("nginx.conf");
        let text = format!(
            "daemon off; worker_processes 2; error_log /dev/null; pid {0}/pid;
             events {{ worker_connections 4096; }}
             http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {0}/b; proxy_temp_path {0}/p;
               fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
               server {{ listen {PORT} backlog=4096; location / {{ return 200 ok; }} }} }}",
            dir.display()
        );
        std::fs::write(&config, text)?;
        let child = netns.run(|| {
            Command::new("nginx")
                .arg("-c")
                .arg(&config)
                .stderr(Stdio::null())
                .spawn()
        })?;
        let nginx = Self(child.context("nginx is missing")?);
        let deadline = Instant::now() + Duration::from_secs(10);
        let to = SocketAddr::from(([10, 9, 0, 11], PORT));
        while netns.run(|| TcpStream::connect(to))?.is_err() {
            if Instant::now() > deadline {
                bail!("nginx does not listen");
            }
            std::thread::yield_now();
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its workers with it.
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Requests answered per second.
fn wrk(way: &str, from: &Netns, to: SocketAddr, args: &Args, keep_alive: bool) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args([
        "-t1",
        &format!("-c{}", args.connections),
        &format!("-d{}", args.seconds),
    ]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{to}/"));
    let output = from.run(|| command.output())?.context("wrk is missing")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(errors) = text.lines().find(|line| line.contains("Socket errors")) {
        eprintln!("  {way}: {}", errors.trim());
    }
    let rate = text
        .split_once("Requests/sec:")
        .map(|(_, rest)| rest.trim_start());
    rate.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("wrk did not say how many: {text}"))
}
