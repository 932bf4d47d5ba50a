//! What our objects are called.

use std::path::{Path, PathBuf};

use weft_netlink::nft::{Family, Table};
use weft_types::{EndpointId, NetworkId};

use super::Kernel;

pub(super) const BRIDGE: &str = "br0";
/// The port of a network's bridge that leads to the other hosts.
pub const TUNNEL: &str = "vx0";
pub(super) const UPLINK: &str = "up0";
pub(super) const UPLINK_ALIAS: &str = "weft:uplink";
pub(super) const INGRESS: &str = "in0";
/// The ingress as a port of the bridge.
pub(super) const INGRESS_PORT: &str = "in0-port";
pub(super) const INGRESS_ALIAS: &str = "weft:ingress";
pub(super) const VXLAN_ALIAS: &str = "weft:vxlan";
/// Of a VXLAN device whose socket is in the namespace of the tunnels. What is not marked so is taken to be in the open.
pub(super) const SEALED_ALIAS: &str = "weft:vxlan in wireguard";
pub(super) const TAP_ALIAS: &str = "weft:tap";
/// What every alias of ours starts with.
pub(super) const MARK: &str = "weft:";

/// Interface indexes in a namespace of ours, above those that the kernel gives to devices which some modules
/// put into every namespace (`tunl0`, `sit0`).
pub(super) const BRIDGE_INDEX: u32 = 100;
pub(super) const TUNNEL_INDEX: u32 = 101;
pub(super) const UPLINK_INDEX: u32 = 102;
pub(super) const INGRESS_INDEX: u32 = 103;
pub(super) const INGRESS_PORT_INDEX: u32 = 104;
pub(super) const FIRST_PORT_INDEX: u32 = 1000;
/// Interface indexes of our links in the host's own namespace, where others make links at any time: far above those that
/// the kernel has given out.
pub(super) const FIRST_HOST_INDEX: u32 = 0x0077_0000;

/// The protocol number of our routes (`ip route` shows `proto 119`): not in iproute2's `rt_protos`.
pub(super) const ROUTE_PROTOCOL: u8 = b'w';

pub(super) fn table() -> Table {
    Table::new(Family::Inet, "weft-overlay")
}

/// What the names of the host's ends of uplinks begin with.
pub(super) const UPLINK_HOST: &str = "weft-";

/// The host's end of an uplink; an interface name has at most 15 characters.
pub(super) fn uplink_host(network: NetworkId) -> String {
    uplink_host_of(&network.short())
}

/// The same, of a network's short id.
pub(super) fn uplink_host_of(short: &str) -> String {
    format!("{UPLINK_HOST}{}", short.get(..10).unwrap_or(short))
}

/// The host's own link into a network.
pub(super) fn host_link(short: &str) -> String {
    format!("wefth{}", short.get(..10).unwrap_or(short))
}

/// Settings of [`host_link`], its own: nobody on a network gives the host routes, or asks it for addresses it has elsewhere.
pub(super) fn host_link_settings(link: &str) -> [(String, &'static str); 2] {
    [
        (format!("net/ipv6/conf/{link}/accept_ra"), "0"),
        (format!("net/ipv4/conf/{link}/arp_ignore"), "1"),
    ]
}

/// The setting that lets the host's loopback addresses in by its end of an uplink.
pub(super) fn route_localnet(network: NetworkId) -> String {
    format!("net/ipv4/conf/{}/route_localnet", uplink_host(network))
}

/// Settings of a network's namespace with an ingress: a packet may come in by another link than the one that its answer
/// leaves by.
pub(super) const NO_RETURN_PATH: [(&str, &str); 2] = [
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/in0/rp_filter", "0"),
];

pub(super) fn uplink_host_alias(network: NetworkId) -> String {
    format!("{UPLINK_ALIAS} {}", network.short())
}

pub(super) fn port(endpoint: EndpointId) -> String {
    format!("p{}", endpoint.short())
}

/// On both ends of an endpoint's veth pair.
pub(super) fn endpoint_alias(endpoint: EndpointId) -> String {
    format!("{MARK}{endpoint}")
}

pub(super) fn bridge_alias(name: &str) -> String {
    format!("{MARK}{name}")
}

impl Kernel {
    /// The path that keeps a network's namespace.
    pub(super) fn netns_path(&self, network: NetworkId) -> PathBuf {
        self.netns_dir.join(network.short())
    }
}

/// The path that keeps a network's namespace where this is the run directory.
pub fn namespace_path(run_dir: &Path, network: NetworkId) -> PathBuf {
    netns_dir(run_dir).join(network.short())
}

/// The path that keeps the namespace of the kernel's WireGuard where this is the run directory.
pub fn wireguard_path(run_dir: &Path) -> PathBuf {
    netns_dir(run_dir).join("wireguard")
}

/// The folder of both.
pub fn netns_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("netns")
}
