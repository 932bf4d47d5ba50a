//! Which settings below `/proc/sys` a broker reads and writes.

/// Of a device, or of `all` or `default`: `net/ipv4/conf/DEVICE/…`.
const OF_DEVICES: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &["arp_ignore", "route_localnet", "rp_filter", "send_redirects"],
    ),
    ("ipv6", &["accept_ra", "forwarding"]),
];
const OTHERS: [&str; 5] = [
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
    "net/netfilter/nf_conntrack_events",
];

pub(super) fn is_listed(name: &str) -> bool {
    if OTHERS.contains(&name) {
        return true;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let ["net", version, "conf", device, setting] = parts[..] else {
        return false;
    };
    let is_device = (1..libc::IFNAMSIZ).contains(&device.len())
        && !matches!(device, "." | "..")
        && !device.contains('\0');
    is_device
        && OF_DEVICES
            .iter()
            .any(|(of, settings)| *of == version && settings.contains(&setting))
}

/// All of them are small numbers.
pub(super) fn is_value(value: &str) -> bool {
    matches!(value.as_bytes(), [b'0'..=b'9'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_networks_need_is_listed_and_nothing_beside_it() {
        for name in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/send_redirects",
            "net/ipv4/conf/weft-0123456789/route_localnet",
            "net/ipv6/conf/eth0.100/accept_ra",
            "net/netfilter/nf_conntrack_events",
        ] {
            assert!(is_listed(name), "{name}");
        }
        for name in [
            "",
            "kernel/core_pattern",
            "kernel/modprobe",
            "/proc/sys/kernel/core_pattern",
            "net/ipv4/ip_forward/",
            "net/ipv4/../../kernel/core_pattern",
            "net/ipv4/conf/../rp_filter",
            "net/ipv4/conf//rp_filter",
            "net/ipv4/conf/a/b/rp_filter",
            "net/ipv4/conf/sixteen-letters-/rp_filter",
            "net/ipv6/conf/all/rp_filter",
            "net/ipv4/conf/e\0/rp_filter",
            "net/ipv4/ip_unprivileged_port_start",
        ] {
            assert!(!is_listed(name), "{name}");
        }
        for (value, is) in [
            ("0", true),
            ("2", true),
            ("", false),
            ("10", false),
            ("|/x", false),
            ("1\n", false),
        ] {
            assert_eq!(is_value(value), is, "{value}");
        }
    }
}
