//! What `weft agent` is told about names.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use weft_dns::SplitDomain;

use crate::options::{DOMAIN, DnsOptions};

#[derive(Debug, Args)]
pub(super) struct DnsArgs {
    /// Ask these servers, and nobody else, about names below a domain or of a subnet's addresses (10.0.0.0/8=…);
    /// the longest domain wins; `.` is everything
    #[arg(long, value_name = "DOMAIN=IP[:PORT][,…]", value_parser = parse_forward)]
    dns_forward: Vec<SplitDomain>,
    /// Answer names under weft.internal to programs of this host at this loopback address; see below
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_host)]
    dns_host: Option<SocketAddr>,
    /// Show programs of this host the names of this network [default: all that are on this host]
    #[arg(long, value_name = "NETWORK", requires = "dns_host")]
    dns_host_network: Vec<String>,
}

pub(super) const DNS_HELP: &str = "\
Names on this host:
  `weft agent --dns-host 127.53.53.53` answers NAME.NETWORK.weft.internal and names of addresses
  in subnets there, to programs of this host alone. All other names it refuses: the host's own
  resolver goes on asking its own servers about them. Tell it who knows ours:
    systemd-resolved   in /etc/systemd/resolved.conf.d/weft.conf:
                         [Resolve]
                         DNS=127.53.53.53
                         Domains=~weft.internal
    dnsmasq            server=/weft.internal/127.53.53.53
    none of them       in /etc/resolv.conf, before the others: nameserver 127.53.53.53";

impl DnsArgs {
    pub(super) fn options(self) -> DnsOptions {
        DnsOptions {
            forward: self.dns_forward,
            host: self.dns_host,
            host_networks: self.dns_host_network,
        }
    }
}

fn parse_forward(text: &str) -> Result<SplitDomain, String> {
    let domain: SplitDomain = text.parse().map_err(|error| format!("{error}"))?;
    if domain.is_within(DOMAIN) {
        return Err(format!(
            "names below {DOMAIN} are Weft's own, and nobody else is asked about them"
        ));
    }
    Ok(domain)
}

fn parse_host(text: &str) -> Result<SocketAddr, String> {
    let address = text
        .parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, 53))
        .or_else(|_| text.parse::<SocketAddr>())
        .map_err(|_| "expected an address such as 127.53.53.53 or 127.53.53.53:5353".to_owned())?;
    if !address.ip().is_loopback() || address.port() == 0 {
        return Err(
            "only programs of this host may ask: expected a loopback address such as 127.53.53.53".to_owned(),
        );
    }
    Ok(address)
}
