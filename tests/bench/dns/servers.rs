//! The servers beside ours, all on the same address in the network's namespace.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use netns_harness::{Inside as _, Output, Process};
use weft_dns::{Asker, Endpoint, Forwarder, ForwarderConfig, NetworkZone, Server, Zone};
use weft_types::{EndpointId, NetworkId};

use super::SERVER;
use crate::{cluster::Node, tools::command};

/// Who is called what.
pub type Names = Vec<(String, IpAddr)>;

pub const DOMAIN: &str = "dns.weft.internal";

/// So many names; the responder of the same number knows the same.
pub fn many(count: u32) -> Names {
    (0..count)
        .map(|n| {
            (
                format!("many-{n}.{DOMAIN}"),
                Ipv4Addr::from_bits(0x0a64_0000 + n).into(),
            )
        })
        .collect()
}

/// Enters the namespace of a network.
pub struct Namespace<'a> {
    pub node: &'a Node,
    pub network: &'a str,
}

impl Namespace<'_> {
    pub fn command(&self, program: &OsStr) -> Command {
        let mut command = command(&format!("nsenter --net=/run/weft/netns/{}", &self.network[..12]));
        command.arg(program);
        command
    }

    /// dnsmasq, with a table that has room for all names.
    pub fn dnsmasq(&self, port: u16, names: &Names, upstream: IpAddr, dir: &Path) -> Result<Process> {
        let hosts = dir.join(format!("hosts-{port}"));
        let mut text = String::new();
        for (name, address) in names {
            writeln!(text, "{address} {name}")?;
        }
        std::fs::write(&hosts, text)?;
        let mut command = self.command("dnsmasq".as_ref());
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="])
            .args([
                "--user=root",
                "--group=",
                "--no-resolv",
                "--no-hosts",
                "--no-poll",
            ])
            .args([
                "--bind-interfaces",
                "--local=/weft.internal/",
                "--cache-size=10000",
                "--dns-forward-max=1000",
            ])
            .arg(format!("--listen-address={SERVER}"))
            .arg(format!("--port={port}"))
            .arg(format!("--server={upstream}"))
            .arg(format!("--addn-hosts={}", hosts.display()));
        Ok(self.node.host.spawn(&mut command, Output::Keep)?)
    }

    /// aardvark-dns, which goes to the background and ends with the namespaces of the bench.
    pub fn aardvark(
        &self,
        program: &Path,
        port: u16,
        names: &Names,
        upstream: IpAddr,
        dir: &Path,
    ) -> Result<()> {
        let config = dir.join(format!("aardvark-{port}"));
        std::fs::create_dir(&config)?;
        let mut text = format!("{SERVER} {upstream}\n");
        for (place, (name, address)) in names.iter().enumerate() {
            let name = name.strip_suffix(DOMAIN).and_then(|name| name.strip_suffix('.'));
            writeln!(
                text,
                "{place:064x} {address}  {}",
                name.context("a name of another domain")?
            )?;
        }
        std::fs::write(config.join("dns"), text)?;
        let mut command = self.command(program.as_os_str());
        command
            .arg("--config")
            .arg(config)
            .args(["--port", &port.to_string()]);
        command.args(["--filter-search-domain", &format!(".{DOMAIN}"), "run"]);
        // Its own background process keeps the output open.
        let process = self.node.host.spawn(&mut command, Output::Keep)?;
        let ended = process.wait(Duration::from_secs(10))?;
        ensure!(ended.success(), "aardvark-dns did not start: {ended}");
        Ok(())
    }
}

/// Where Debian and others put it.
pub fn find_aardvark() -> Option<PathBuf> {
    let given = std::env::var_os("AARDVARK_DNS").map(PathBuf::from);
    given
        .into_iter()
        .chain(["/usr/lib/podman/aardvark-dns", "/usr/libexec/podman/aardvark-dns"].map(PathBuf::from))
        .find(|path| path.is_file())
}

/// Our server with [`many`] names and no agent around it, until killed.
pub async fn serve_many(at: SocketAddr, count: u32, ready: impl FnOnce()) -> Result<()> {
    let id = NetworkId([1; 16]);
    let mut network = NetworkZone::new("dns", false, vec!["10.100.0.0/14".parse()?]);
    for (n, (name, address)) in many(count).into_iter().enumerate() {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        let names = vec![name.split('.').next().unwrap_or_default().to_owned()];
        network.set_endpoint(
            EndpointId(bytes),
            Endpoint {
                names,
                addresses: vec![address],
            },
        );
    }
    let mut zone = Zone::new("weft.internal")?;
    zone.set_network(id, network);
    let _server = Server::spawn(
        UdpSocket::bind(at)?,
        TcpListener::bind(at)?,
        Arc::new(ArcSwap::from_pointee(zone)),
        Arc::new(move |_| Asker::on(vec![id])),
        Forwarder::new(ForwarderConfig::default()),
    )?;
    ready();
    std::future::pending().await
}
