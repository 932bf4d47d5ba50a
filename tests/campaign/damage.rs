//! What somebody else does to kernel objects of ours.

use std::{fs, process::Command};

use netns_harness::Inside as _;
use weft_netlink::netns::Netns;

use crate::{
    bed::{items, soon, text},
    world::{NETWORK, World},
};

#[derive(Clone, Copy)]
enum Place {
    /// The namespace of the network on the host.
    Network,
    Host,
}

/// Names an endpoint's end in the network's namespace, and the host's end of a network's uplink.
const NAMES: &str = "UPLINK=$(ip -o link | awk -F'[ :@]+' '/weft:uplink/ { print $2; exit }'); PORT=$(ip -o link | awk -F'[ :@]+' '$2 ~ /^p[0-9a-f]+$/ { print $2; exit }')";

/// A line of a shell, where it runs, and whether the kernel tells nobody of it: then the doctor has to be asked.
const DAMAGES: [(Place, &str, bool); 15] = [
    (Place::Network, "ip link set br0 down", false),
    (Place::Network, "ip link set vx0 down", false),
    (Place::Network, "ip link set vx0 nomaster", false),
    (Place::Network, "ip link delete vx0", false),
    (Place::Network, "ip link delete br0", false),
    (Place::Network, "ip link set $PORT down", false),
    (Place::Network, "ip link set $PORT nomaster", false),
    (Place::Network, "ip link delete $PORT", false),
    (Place::Network, "nft flush ruleset", false),
    (Place::Host, "nft flush ruleset", false),
    (
        Place::Network,
        "bridge fdb show dev vx0 | awk '$2 == \"dst\" { print $1 }' | \
         xargs -I MAC bridge fdb del MAC dev vx0 self",
        true,
    ),
    (
        Place::Network,
        "ip neigh flush dev vx0; ip neigh flush dev br0 nud permanent",
        true,
    ),
    (Place::Network, "ip route flush table main", true),
    (Place::Host, "ip route flush proto kernel dev $UPLINK", true),
    (Place::Network, "sysctl -qw net.ipv4.ip_forward=0", true),
];

fn damage_of(detail: u32) -> (Place, &'static str, bool) {
    DAMAGES[detail as usize % DAMAGES.len()]
}

pub fn words(detail: u32) -> &'static str {
    damage_of(detail).1
}

pub fn damage(world: &World, host: usize, detail: u32) {
    let (place, line, is_silent) = damage_of(detail);
    let node = world.node(host);
    let networks = node.json("network ls");
    let id = items(&networks)
        .find(|network| text(&network["name"]) == NETWORK)
        .map(|network| text(&network["id"]).to_owned())
        .unwrap();
    let find = || match place {
        Place::Host => Netns::current().unwrap(),
        Place::Network => of_network(&id),
    };
    let netns = node.host.run(find).unwrap();
    // With the machine's files: a host of the lab has few.
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("{NAMES}; {line}")]);
    let output = netns.run(|| command.output()).unwrap().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complaint}");
    if is_silent {
        soon("the doctor to put it right", || {
            match node.try_weft("doctor --passive --fix") {
                ended if ended.code == 0 => Ok(()),
                ended => Err(ended.stdout),
            }
        });
    }
}

/// By the file's name, which begins as the network's id does.
fn of_network(id: &str) -> Netns {
    let mut entries = fs::read_dir("/run/weft/netns").unwrap().flatten();
    let entry = entries.find(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        id.starts_with(&name) || name.starts_with(id)
    });
    Netns::open(entry.expect("the network is in use here").path()).unwrap()
}
