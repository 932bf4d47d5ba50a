//! What tests of encrypted networks have in common.

use std::{
    net::{IpAddr, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use netns_harness::{CaptureOptions, Inside};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use serde_json::Value;
use weft_netlink::{
    netns::Netns,
    route::{Batch, Link, RouteSocket, delete_link},
    tap,
    testing::skip,
};
use weft_tests::{flow::Flow, queues};

use super::{
    bed::{Bed, Endpoint, Node, SOON, items, soon, text, within},
    traffic::Server,
};

/// Replicas have it in their names, which they tell everybody who calls.
pub const CANARY: &str = "canary-7f21c0ffee";
/// The same on a network that is not encrypted: it shows that a canary is seen.
pub const OPEN: &str = "canary-0pen0pen00";
pub const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Whether a TAP device can be made here; says so if not.
pub fn has_tap() -> bool {
    let made = Netns::create().map(|netns| tap::create_persistent(&netns, "t", 9));
    match made {
        Ok(Err(error @ tap::TapError::Open(_))) => {
            skip(format_args!("it needs TAP devices: {error}"));
            false
        }
        _ => true,
    }
}

/// Does something while every host's underlay is watched, and says how often each canary was seen meanwhile.
pub fn watched<T>(bed: &Bed, phase: &str, work: impl FnOnce() -> T) -> (T, [u64; 2]) {
    let captures = [CANARY, OPEN].map(|canary| {
        let on = |node: &Node| {
            let options = CaptureOptions::new().containing(canary);
            node.host.capture("eth0", options).unwrap()
        };
        bed.nodes()
            .filter(|node| node.host.is_up())
            .map(on)
            .collect::<Vec<_>>()
    });
    let done = work();
    let mut frames = 0;
    let seen = captures.map(|captures| {
        let each = captures.into_iter().map(|capture| {
            let seen = capture.stop().unwrap();
            assert_eq!(seen.missed, 0, "{phase}: too many frames to look at");
            frames += seen.frames / 2;
            seen.matched
        });
        each.sum::<u64>()
    });
    println!(
        "{phase}: {frames} frames on the underlay, {} with the canary, {} with the open one",
        seen[0], seen[1]
    );
    (done, seen)
}

/// The same, where nothing may be seen.
pub fn unseen<T>(bed: &Bed, phase: &str, work: impl FnOnce() -> T) -> T {
    let (done, [secret, _]) = watched(bed, phase, work);
    assert_eq!(secret, 0, "{phase}: the canary was seen");
    done
}

/// The process that encrypts on a host.
pub fn process_of(node: &Node) -> Option<Pid> {
    let stream = node
        .host
        .run(|| UnixStream::connect("/run/weft/tunnels.sock"))
        .unwrap();
    let peer = getsockopt(&stream.ok()?, PeerCredentials).unwrap();
    Some(Pid::from_raw(peer.pid()))
}

pub fn encryption(node: &Node) -> Value {
    node.json("status")["encryption"].clone()
}

/// Waits until this host has had a handshake with so many others, and says nothing is wrong.
pub fn tunnels(node: &Node, count: usize) {
    tunnels_within(SOON, node, count);
}

pub fn tunnels_within(deadline: Duration, node: &Node, count: usize) {
    within(
        deadline,
        format!("{count} tunnels of {}", node.host.name()),
        || {
            let encryption = encryption(node);
            let shaken = items(encryption.get("tunnels").unwrap_or(&Value::Array(Vec::new())))
                .map(|tunnel| tunnel["handshake_ms_ago"].is_u64())
                .collect::<Vec<_>>();
            match node.problems() {
                problems if problems.is_empty() && shaken == vec![true; count] => Ok(()),
                problems => Err(format!("{encryption}, {problems:?}")),
            }
        },
    );
}

/// Makes the network `secret`, known to all.
pub fn make_secret(bed: &Bed) {
    bed["h1"].weft("network create --opt encrypted secret");
    bed.everywhere("the network", |node| {
        match items(&node.json("network ls")).count() {
            1 => Ok(()),
            count => Err(count),
        }
    });
}

/// An endpoint on each host that says the canary to whoever calls, and tunnels between all of them.
pub fn ends(bed: &Bed, flags: &str) -> Vec<Endpoint> {
    let mut ends: Vec<_> = HOSTS
        .map(|name| bed[name].connected(&format!("end-{name}"), "secret", flags))
        .into();
    for end in &mut ends {
        let name = format!("{CANARY}-{}", text(&end.said["name"]));
        end.server = Some(Server::start(&end.sandbox, &name));
    }
    for name in HOSTS {
        tunnels(&bed[name], HOSTS.len() - 1);
    }
    ends
}

/// Datagrams with the canary.
pub fn flow(from: &Endpoint, to: &Endpoint) -> Flow {
    let bind = |endpoint: &Endpoint, address: IpAddr| {
        let bound = endpoint.sandbox.run(|| UdpSocket::bind((address, 0)));
        bound.unwrap().unwrap()
    };
    Flow::start(
        bind(from, [0; 4].into()),
        bind(to, to.address()),
        CANARY.as_bytes(),
    )
}

/// Waits until a host has so manieth key, no change goes on, and all others say that they use it.
pub fn uses(bed: &Bed, name: &str, epoch: u64) {
    soon(format!("key {epoch} of {name}"), || {
        let own = encryption(&bed[name]);
        if own["epoch"] != epoch || !own["change"].is_null() {
            return Err(own.to_string());
        }
        for other in HOSTS.iter().filter(|other| **other != name) {
            let seen = encryption(&bed[*other]);
            let mut tunnels = items(&seen["tunnels"]);
            let tunnel = tunnels.find(|tunnel| tunnel["node_name"] == name);
            if tunnel.is_none_or(|tunnel| tunnel["epoch"] != epoch) {
                return Err(format!("{other}: {seen}"));
            }
        }
        Ok(())
    });
}

/// Deletes links under everybody, in these namespaces of a host.
pub fn delete_links(node: &Node, namespaces: &[PathBuf], which: impl Fn(&Link) -> bool + Sync) {
    let delete = || {
        for path in namespaces {
            let mut route = RouteSocket::open(&Netns::open(path).unwrap()).unwrap();
            let links = route.links().unwrap();
            let links = links.iter().filter(|link| which(link));
            let mut batch = Batch::new();
            batch.add(links.map(|link| delete_link(link.index)));
            route.execute(batch).unwrap();
        }
    };
    node.host.run(delete).unwrap();
}

/// How many packets found a queue full on these hosts so far.
pub fn overflows(bed: &Bed, ends: &[Endpoint]) -> u64 {
    let on_host = |node: &Node| {
        let networks = || {
            let entries = std::fs::read_dir("/run/weft/netns").unwrap().flatten();
            let each =
                entries.map(|entry| Netns::open(entry.path()).unwrap().run(queues::overflows).unwrap());
            each.sum::<u64>()
        };
        node.host.run(queues::overflows).unwrap() + node.host.run(networks).unwrap()
    };
    let at_ends = ends.iter().map(|end| end.sandbox.run(queues::overflows).unwrap());
    bed.nodes().map(on_host).sum::<u64>() + at_ends.sum::<u64>()
}

/// Has all that is left of a test's processes end.
pub fn end(bed: Bed) {
    for node in bed.nodes().filter(|node| node.host.is_up()) {
        if let Some(pid) = process_of(node) {
            kill(pid, Signal::SIGKILL).unwrap();
        }
    }
    bed.close();
}
