//! The tests of aardvark-dns (`test/*.bats`), which answers names for Podman, told again for this server. Each is called
//! what it is called there; where we do something else, the comment says what and why.
//!
//! Elsewhere: "nameservers updated when resolv.conf is modified" and "host dns on ipv6 link local" beside the code that
//! reads that file (`forward/upstreams.rs`). "should fail when udp/tcp port is already bound" and "closes inherited file
//! descriptors" are about a program of its own, which this server is not.

mod support;

use std::net::{Ipv4Addr, SocketAddr};

use support::{BACK, Behaviour, FRONT, Resolver, nobody, start, upstreams};
use weft_dns::{Endpoint, ForwarderConfig, NetworkZone};
use weft_types::EndpointId;

const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

fn endpoint(names: &[&str], addresses: &[&str]) -> Endpoint {
    Endpoint {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

/// `aone` on `front`, `bone` on `back`, `abtwo` on both. 127.0.0.1 asks as the first, .2 as the second, .3 as the third.
fn podman(forwarder: ForwarderConfig, is_internal: bool) -> support::Running {
    let running = start(forwarder);
    let subnets = |list: &[&str]| list.iter().map(|subnet| subnet.parse().unwrap()).collect();
    let mut front = NetworkZone::new("front", is_internal, subnets(&["10.32.0.0/16", "fd00:32::/64"]));
    front.set_endpoint(
        EndpointId([0xa1; 16]),
        endpoint(&["aone", "a1", "1a"], &["10.32.0.11", "fd00:32::11"]),
    );
    front.set_endpoint(
        EndpointId([0xa2; 16]),
        endpoint(&["abtwo", "a2", "2a"], &["10.32.0.12"]),
    );
    let mut back = NetworkZone::new("back", is_internal, subnets(&["10.33.0.0/16"]));
    back.set_endpoint(EndpointId([0xb1; 16]), endpoint(&["bone"], &["10.33.0.11"]));
    back.set_endpoint(EndpointId([0xb2; 16]), endpoint(&["abtwo"], &["10.33.0.12"]));
    let mut zone = running.zone.load().as_ref().clone();
    zone.set_network(FRONT, front);
    zone.set_network(BACK, back);
    running.zone.store(std::sync::Arc::new(zone));
    running
}

impl support::Running {
    async fn gives(&self, args: &str, expected: &str) {
        assert_eq!(self.dig(&format!("{args} +short")).await, expected, "{args}");
    }

    async fn says(&self, args: &str, expected: &str) {
        let shown = self.dig(args).await;
        assert!(shown.contains(expected), "{args}: {shown}");
        assert!(
            !shown.contains("recursion requested but not available"),
            "{args}: {shown}"
        );
    }
}

#[tokio::test]
async fn basic_container_dns_itself_custom_bad_dns_server() {
    let nobody_there: SocketAddr = ([127, 0, 0, 255], 53).into();
    let running = podman(upstreams(&[nobody_there]), false);
    running.gives("aone", "10.32.0.11").await;
    running.says("aone", "NOERROR").await;
    // There the client waits until it gives up; here it is told.
    running.says("example.com", "SERVFAIL").await;
}

#[tokio::test]
async fn basic_container_dns_itself_custom_good_dns_server() {
    // "basic container - dns itself (bad and good should fall back)" as well.
    let good = Resolver::start(Behaviour::Answer(ANSWER));
    let bad = Resolver::start(Behaviour::Silent);
    for list in [vec![good.address], vec![bad.address, good.address]] {
        let running = podman(upstreams(&list), false);
        running.gives("aone", "10.32.0.11").await;
        running.gives("example.com", "192.0.2.53").await;
        running.says("example.com", "NOERROR").await;
    }
}

#[tokio::test]
async fn basic_container_dns_itself_custom() {
    let resolver = Resolver::start(Behaviour::Answer(ANSWER));
    let running = podman(upstreams(&[resolver.address]), false);
    running.gives("aone", "10.32.0.11").await;
    running.gives("aone +tcp", "10.32.0.11").await;
    running
        .gives("+tcp +keepopen aone a1 1a", "10.32.0.11\n10.32.0.11\n10.32.0.11")
        .await;
    running.gives("example.com", "192.0.2.53").await;
    running.gives("example.com +tcp", "192.0.2.53").await;
    // The name and a time to live that nobody can take for long; theirs is 0, ours a second.
    running.says("aone", "aone.\t\t\t1\tIN\tA\t10.32.0.11").await;
}

/// And "ndots incomplete entry": theirs forwards single labels since, ours never lets them off the host.
#[tokio::test]
async fn basic_container_ndots_incomplete_bad_entry_must_nxdomain_instead_of_forwarding_and_timing_out() {
    let silent = Resolver::start(Behaviour::Silent);
    let running = podman(upstreams(&[silent.address]), false);
    running.says("bone", "NXDOMAIN").await;
    running.says("bone AAAA", "NXDOMAIN").await;
    assert_eq!(silent.asked(), 0);
}

#[tokio::test]
async fn basic_container_dns_itself_on_container_with_ipaddress_v6() {
    let running = podman(nobody(), false);
    running.gives("aone AAAA", "fd00:32::11").await;
    running.says("abtwo AAAA", "NOERROR").await;
}

#[tokio::test]
async fn basic_container_dns_itself_with_long_network_name() {
    let running = podman(nobody(), false);
    let long = format!("podman{}", "1".repeat(105));
    let mut network = NetworkZone::new(&long, false, vec!["10.34.0.0/16".parse().unwrap()]);
    network.set_endpoint(EndpointId([0xc1; 16]), endpoint(&["cone"], &["10.34.0.11"]));
    let mut zone = running.zone.load().as_ref().clone();
    zone.set_network(FRONT, network);
    running.zone.store(std::sync::Arc::new(zone));
    running.gives("cone", "10.34.0.11").await;
    // A label has 63 bytes at most, so such a network has no name to be pointed to by.
    running.says("-x 10.34.0.11", "NOERROR").await;
}

#[tokio::test]
async fn two_containers_on_the_same_network() {
    let running = podman(nobody(), false);
    running.gives("-b 127.0.0.1 abtwo", "10.32.0.12").await;
    running.gives("-b 127.0.0.1 aone", "10.32.0.11").await;
}

#[tokio::test]
async fn basic_container_internal_network_has_no_dns() {
    let resolver = Resolver::start(Behaviour::Answer(ANSWER));
    let running = podman(upstreams(&[resolver.address]), true);
    running.gives("aone", "10.32.0.11").await;
    running.gives("aone AAAA", "fd00:32::11").await;
    running.says("example.com NS", "NXDOMAIN").await;
    assert_eq!(resolver.asked(), 0);
}

#[tokio::test]
async fn two_containers_on_different_networks() {
    let running = podman(nobody(), false);
    for (asker, own, address, other) in [
        ("127.0.0.1", "aone", "10.32.0.11", "bone"),
        ("127.0.0.2", "bone", "10.33.0.11", "aone"),
    ] {
        running.gives(&format!("-b {asker} {own}"), address).await;
        running.gives(&format!("-b {asker} {other}"), "").await;
        running.says(&format!("-b {asker} {other}"), "NXDOMAIN").await;
    }
}

/// "two subnets with isolated container and one shared", "three networks with a connect" and "three subnets, one container
/// on two of the subnets, network connect".
#[tokio::test]
async fn two_subnets_with_isolated_container_and_one_shared() {
    let running = podman(nobody(), false);
    running.gives("-b 127.0.0.1 abtwo", "10.32.0.12").await;
    running.gives("-b 127.0.0.2 abtwo", "10.33.0.12").await;
    running.gives("-b 127.0.0.1 bone", "").await;
    running.gives("-b 127.0.0.2 aone", "").await;
    running.gives("-b 127.0.0.3 aone", "10.32.0.11").await;
    running.gives("-b 127.0.0.3 bone", "10.33.0.11").await;
    // There the addresses on both networks; here those on the first that knows the name, in the order of the asker's.
    running.gives("-b 127.0.0.3 abtwo", "10.33.0.12").await;
    running.gives("-b 127.0.0.3 abtwo.front", "10.32.0.12").await;
}

#[tokio::test]
async fn two_containers_on_the_same_network_with_aliases() {
    let running = podman(nobody(), false);
    for (name, address) in [
        ("a2", "10.32.0.12"),
        ("2a", "10.32.0.12"),
        ("a1", "10.32.0.11"),
        ("1a", "10.32.0.11"),
    ] {
        running.gives(name, address).await;
    }
}

/// And "check reverse lookups on ipaddress v6". There the aliases too; here the one name that leads back.
#[tokio::test]
async fn check_reverse_lookups() {
    let running = podman(nobody(), false);
    running.gives("-x 10.32.0.12", "abtwo.front.weft.internal.").await;
    running.gives("-x 10.32.0.11", "aone.front.weft.internal.").await;
    running.gives("-x fd00:32::11", "aone.front.weft.internal.").await;
}
