//! Reverse names: `5.0.32.10.in-addr.arpa` (RFC 1035, section 3.5) and `….ip6.arpa` (RFC 3596).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What a reverse name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reverse {
    /// A whole address.
    Address(IpAddr),
    /// The start of addresses: other reverse names are below it.
    Prefix(IpNet),
    /// Something below a reverse name that is not a part of an address, such as `lb._dns-sd._udp.…`.
    Below(IpNet),
}

impl Reverse {
    /// Reads a lower-case name without the dot at its end; `None` when it is not a reverse name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if let Some(labels) = below(name, "in-addr.arpa") {
            let mut octets = [0; 4];
            let (count, extra) = fill(labels, &mut octets, octet);
            let net = Ipv4Net::new(octets.into(), 8 * count).ok()?;
            return Some(Self::new(net.into(), Ipv4Addr::BITS, extra));
        }
        let mut nibbles = [0; 32];
        let (count, extra) = fill(below(name, "ip6.arpa")?, &mut nibbles, nibble);
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(nibbles.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        let net = Ipv6Net::new(bytes.into(), 4 * count).ok()?;
        Some(Self::new(net.into(), Ipv6Addr::BITS, extra))
    }

    fn new(net: IpNet, bits: u32, extra: bool) -> Self {
        if extra {
            Self::Below(net)
        } else if u32::from(net.prefix_len()) == bits {
            Self::Address(net.addr())
        } else {
            Self::Prefix(net)
        }
    }

    pub(crate) fn net(&self) -> IpNet {
        match self {
            Self::Address(address) => (*address).into(),
            Self::Prefix(net) | Self::Below(net) => *net,
        }
    }
}

/// How many labels the reverse zone has that lies in `subnet`: 10.32.0.0/20 is cut at the whole octet
/// below it, which an address of the subnet is always under.
pub(crate) fn zone_labels(subnet: &IpNet) -> usize {
    let bits_per_label = if matches!(subnet, IpNet::V4(_)) { 8 } else { 4 };
    usize::from(subnet.prefix_len()).div_ceil(bits_per_label) + 2
}

fn below<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    let labels = name.strip_suffix(zone)?;
    if labels.is_empty() {
        Some(labels)
    } else {
        labels.strip_suffix('.')
    }
}

/// Reads labels from the right while they are parts of an address, and says whether any are left.
fn fill(labels: &str, parts: &mut [u8], read: impl Fn(&str) -> Option<u8>) -> (u8, bool) {
    let mut labels = labels.rsplit('.').filter(|_| !labels.is_empty()).peekable();
    let mut count = 0;
    for part in parts {
        let Some(value) = labels.peek().and_then(|label| read(label)) else {
            break;
        };
        *part = value;
        count += 1;
        labels.next();
    }
    (count, labels.next().is_some())
}

fn octet(label: &str) -> Option<u8> {
    // `u8::from_str` would take `+5` and `005`, which are other names.
    let is_canonical = label == "0" || !label.starts_with(['0', '+']);
    label.parse().ok().filter(|_| is_canonical)
}

fn nibble(label: &str) -> Option<u8> {
    let digit = label.chars().next().filter(|_| label.len() == 1)?;
    digit.to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_read_as_addresses_and_prefixes() {
        let address = |text: &str| Some(Reverse::Address(text.parse().unwrap()));
        let prefix = |text: &str| Some(Reverse::Prefix(text.parse().unwrap()));
        let under = |text: &str| Some(Reverse::Below(text.parse().unwrap()));
        let loopback = format!("1.{}ip6.arpa", "0.".repeat(31));
        for (name, expected) in [
            ("5.0.32.10.in-addr.arpa", address("10.32.0.5")),
            ("0.32.10.in-addr.arpa", prefix("10.32.0.0/24")),
            ("in-addr.arpa", prefix("0.0.0.0/0")),
            ("005.0.32.10.in-addr.arpa", under("10.32.0.0/24")),
            ("256.0.32.10.in-addr.arpa", under("10.32.0.0/24")),
            ("+5.0.32.10.in-addr.arpa", under("10.32.0.0/24")),
            ("9.5.0.32.10.in-addr.arpa", under("10.32.0.5/32")),
            ("b._dns-sd._udp.0.32.10.in-addr.arpa", under("10.32.0.0/24")),
            ("d.f.ip6.arpa", prefix("fd00::/8")),
            ("ip6.arpa", prefix("::/0")),
            ("dd.f.ip6.arpa", under("f000::/4")),
            (&loopback, address("::1")),
            ("xin-addr.arpa", None),
            ("arpa", None),
            ("example.com", None),
        ] {
            assert_eq!(Reverse::parse(name), expected, "{name}");
        }
    }

    #[test]
    fn a_reverse_zone_is_cut_inside_its_subnet() {
        for (subnet, labels) in [
            ("10.32.0.0/20", 5),
            ("10.0.0.0/8", 3),
            ("fd00:1::/64", 18),
            ("fd00::/63", 18),
        ] {
            assert_eq!(zone_labels(&subnet.parse().unwrap()), labels, "{subnet}");
        }
    }
}
