//! Domains whose names are asked of servers of their own, and of nobody else.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::upstreams::{Resolvers, Upstreams};

/// A domain, or a subnet with the names of its addresses, and who is asked about it; written `corp.example=10.0.0.53`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitDomain {
    /// What was written before the equals sign.
    pub domain: String,
    /// The servers, the preferred one first.
    pub servers: Vec<SocketAddr>,
    zones: Vec<Name>,
}

/// What is not a split domain, and what one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitDomainError {
    /// There is no equals sign.
    #[error("expected DOMAIN=SERVER[,SERVER], such as corp.example=10.0.0.53")]
    NoServer,
    /// The first part is neither a domain nor a subnet.
    #[error("`{0}` is neither a domain, such as corp.example, nor a subnet, such as 10.0.0.0/8")]
    Domain(String),
    /// The subnet has an address in it.
    #[error("`{0}` is in the subnet {1}: write that")]
    Subnet(IpNet, IpNet),
    /// What comes after it is no list of servers.
    #[error(
        "`{0}` is not a server: expected an address such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:5353"
    )]
    Server(String),
}

impl SplitDomain {
    /// Whether all names below `domain` are asked there, and no others.
    pub fn is_within(&self, domain: &str) -> bool {
        Name::from_ascii(domain).is_ok_and(|domain| self.zones.iter().all(|zone| domain.zone_of(zone)))
    }
}

impl FromStr for SplitDomain {
    type Err = SplitDomainError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (domain, servers) = text.split_once('=').ok_or(SplitDomainError::NoServer)?;
        let servers: Vec<_> = servers.split(',').map(server).collect::<Result<_, _>>()?;
        let zones = match domain.parse::<IpNet>() {
            Ok(subnet) => reverse_zones(subnet)?,
            Err(_) => vec![zone(domain)?],
        };
        Ok(Self {
            domain: domain.to_owned(),
            servers,
            zones,
        })
    }
}

fn server(text: &str) -> Result<SocketAddr, SplitDomainError> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>();
    let server = match address {
        Ok(address) => Ok(SocketAddr::new(address, 53)),
        Err(_) => text.parse::<SocketAddr>(),
    };
    server
        .ok()
        .filter(|server| !server.ip().is_unspecified() && !server.ip().is_multicast() && server.port() != 0)
        .ok_or_else(|| SplitDomainError::Server(text.to_owned()))
}

fn zone(text: &str) -> Result<Name, SplitDomainError> {
    let error = || SplitDomainError::Domain(text.to_owned());
    let is_label = |label: &str| {
        let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_usual)
    };
    let labels = text.strip_suffix('.').unwrap_or(text);
    // `.` is everything, and an empty word a mistake. An address is one too: it would be taken for labels.
    if text != "." && (!labels.split('.').all(is_label) || text.parse::<IpAddr>().is_ok()) {
        return Err(error());
    }
    Name::from_ascii(format!("{labels}.")).map_err(|_| error())
}

/// The zones of a subnet's addresses: several where it does not end with a whole label.
fn reverse_zones(subnet: IpNet) -> Result<Vec<Name>, SplitDomainError> {
    if subnet != subnet.trunc() {
        return Err(SplitDomainError::Subnet(subnet, subnet.trunc()));
    }
    let bits = if subnet.addr().is_ipv4() { 8 } else { 4 };
    let whole = subnet.prefix_len().next_multiple_of(bits);
    let parts = subnet.subnets(whole).into_iter().flatten();
    let labels = usize::from(whole / bits) + 2;
    Ok(parts
        .map(|part| Name::from(part.addr()).trim_to(labels))
        .collect())
}

/// The servers of each domain.
#[derive(Debug, Default)]
pub(super) struct Splits(Vec<(Name, Arc<Resolvers>)>);

impl Splits {
    /// A domain that is given twice has the servers of both.
    pub(super) fn new(domains: &[SplitDomain], exclude: &[IpAddr]) -> Self {
        let mut merged: Vec<SplitDomain> = Vec::new();
        for domain in domains {
            match merged.iter_mut().find(|known| known.zones == domain.zones) {
                Some(known) => known.servers.extend(&domain.servers),
                None => merged.push(domain.clone()),
            }
        }
        let with_resolvers = merged.into_iter().flat_map(|domain| {
            let resolvers = Arc::new(Resolvers::new(Upstreams::List(domain.servers), exclude.to_vec()));
            domain
                .zones
                .into_iter()
                .map(move |zone| (zone, Arc::clone(&resolvers)))
        });
        Self(with_resolvers.collect())
    }

    /// Who alone is asked about a name; the longest domain wins.
    pub(super) fn of(&self, name: &Name) -> Option<&Resolvers> {
        let above = self.0.iter().filter(|(zone, _)| zone.zone_of(name));
        above
            .max_by_key(|(zone, _)| zone.num_labels())
            .map(|(_, resolvers)| &**resolvers)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn servers(splits: &Splits, name: &str) -> String {
        let found = splits.of(&Name::from_ascii(name).unwrap());
        let list = found.map(|resolvers| resolvers.in_order(Instant::now()));
        format!("{:?}", list.unwrap_or_default())
    }

    #[test]
    fn the_longest_domain_wins_and_nothing_else_is_touched() {
        let domains = [
            "corp.example=10.0.0.53",
            "Lab.Corp.Example.=10.0.0.54:5353,[fd00::54]:5353",
            "corp.example.=fd00::53",
            "10.0.0.0/8=10.0.0.55",
            "172.16.0.0/12=[fd00::55]",
            "fd00:6::/31=10.0.0.56",
            "0.0.10.in-addr.arpa=10.0.0.57",
        ];
        let domains = domains.map(|text| text.parse().unwrap());
        let splits = Splits::new(&domains, &[[10, 0, 0, 56].into()]);
        let of_v6 = |nibbles: &str| format!("1.{nibbles}ip6.arpa.");
        for (name, expected) in [
            ("corp.example.", "[10.0.0.53:53, [fd00::53]:53]"),
            ("WWW.corp.EXAMPLE.", "[10.0.0.53:53, [fd00::53]:53]"),
            ("a.lab.corp.example.", "[10.0.0.54:5353, [fd00::54]:5353]"),
            ("lab.corp.example.", "[10.0.0.54:5353, [fd00::54]:5353]"),
            ("notcorp.example.", "[]"),
            ("example.", "[]"),
            (".", "[]"),
            ("5.1.0.10.in-addr.arpa.", "[10.0.0.55:53]"),
            ("5.0.0.10.in-addr.arpa.", "[10.0.0.57:53]"),
            ("1.0.16.172.in-addr.arpa.", "[[fd00::55]:53]"),
            ("1.0.31.172.in-addr.arpa.", "[[fd00::55]:53]"),
            ("1.0.32.172.in-addr.arpa.", "[]"),
            ("172.in-addr.arpa.", "[]"),
        ] {
            assert_eq!(servers(&splits, name), expected, "{name}");
        }
        // fd00:6:: and fd00:7::. Its server is one of our own addresses: nobody is asked, not somebody else.
        for (nibbles, is_known) in [
            ("7.0.0.0.0.0.d.f.", true),
            ("6.0.0.0.0.0.d.f.", true),
            ("8.0.0.0.0.0.d.f.", false),
        ] {
            let name = of_v6(nibbles);
            assert_eq!(
                splits.of(&Name::from_ascii(&name).unwrap()).is_some(),
                is_known,
                "{name}"
            );
            assert_eq!(servers(&splits, &name), "[]");
        }
        let all = Splits::new(&[".=10.0.0.58".parse().unwrap()], &[]);
        assert_eq!(servers(&all, "www.example."), "[10.0.0.58:53]");
    }

    #[test]
    fn what_is_no_split_domain_is_told_what_one_is() {
        for (text, says) in [
            ("corp.example", "expected DOMAIN=SERVER"),
            ("=10.0.0.53", "`` is neither"),
            ("..=10.0.0.53", "`..` is neither"),
            ("*.corp.example=10.0.0.53", "`*.corp.example` is neither"),
            ("10.0.0.1=10.0.0.53", "`10.0.0.1` is neither"),
            ("10.0.0.1/8=10.0.0.53", "is in the subnet 10.0.0.0/8: write that"),
            ("corp.example=", "`` is not a server"),
            (
                "corp.example=dns.corp.example",
                "`dns.corp.example` is not a server",
            ),
            ("corp.example=10.0.0.53,", "`` is not a server"),
            ("corp.example=10.0.0.53:0", "`10.0.0.53:0` is not a server"),
            ("corp.example=0.0.0.0", "`0.0.0.0` is not a server"),
        ] {
            let error = text.parse::<SplitDomain>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_domain_within_another_is_told_from_one_that_holds_it() {
        let within = |text: &str| text.parse::<SplitDomain>().unwrap().is_within("weft.internal.");
        assert!(within("weft.internal=10.0.0.53") && within("app.WEFT.internal=10.0.0.53"));
        assert!(!within("internal=10.0.0.53") && !within("10.0.0.0/8=10.0.0.53") && !within(".=10.0.0.53"));
    }
}
