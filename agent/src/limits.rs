//! What `docs/limits.md` says is what holds.

use std::net::SocketAddr;

use weft_gossip::{Config, GossipKey, KeyRing, MAX_VALUE};
use weft_types::ClusterId;

use crate::{
    control::{endpoints, networks, publish, services, tokens},
    daemon::{access, observe, server},
    docker::{self, proxy},
    serve::{DOCKERS_SILENCE, SILENCE},
};

/// Each with how many there can be and what comes of one more.
fn limits() -> Vec<(&'static str, String, &'static str)> {
    let address = SocketAddr::from(([0, 0, 0, 0], 0));
    let gossip = Config::new(ClusterId([0; 16]), KeyRing::new(GossipKey([0; 32])), address);
    let full = "`weft_gossip_room` counts down; the last 256 are for what a host has to say to stay a good member: before, it refuses endpoints, \
        networks, services and tokens, and other hosts make them";
    let one = |what, most: usize, beyond| (what, grouped(most), beyond);
    vec![
        one(
            "hosts that are in a cluster or were removed from it",
            gossip.max_authors,
            "`weft join` is refused; `weft_gossip_refused_total{reason=\"no_room_for_record\"}`",
        ),
        one(
            "networks of a cluster",
            networks::MAX_NETWORKS,
            "`weft network create` is refused",
        ),
        one(
            "ports that a cluster publishes",
            publish::MAX_PUBLISHED,
            "the service is refused",
        ),
        one(
            "facts that a host says: its endpoints, what was made or changed on it, whom it let in",
            gossip.max_records_per_author,
            full,
        ),
        (
            "all of these together",
            format!("{} MiB", gossip.max_bytes_per_author >> 20),
            "the same",
        ),
        (
            "one of these, such as an endpoint with its aliases or a service with its ports",
            format!("{} bytes", grouped(MAX_VALUE)),
            "refused: shorter names, fewer aliases, labels, ports or subnets",
        ),
        one(
            "tokens of a host that are valid",
            tokens::MAX_TOKENS,
            "`weft token create` is refused; `--reusable` makes one for many",
        ),
        one(
            "subnets of a network",
            networks::MAX_SUBNETS,
            "the network is refused, or the subnet that is to be added",
        ),
        one(
            "services of a network",
            services::MAX_SERVICES,
            "`weft service create` is refused",
        ),
        one(
            "ports and ranges of ports of a service",
            services::MAX_PORTS,
            "the service is refused",
        ),
        one(
            "ports of a service with those in ranges",
            services::MAX_RANGED_PORTS as usize,
            "the service is refused; without any it has all",
        ),
        one(
            "aliases of an endpoint",
            endpoints::MAX_ALIASES,
            "`weft network connect` is refused; of a container the rest is left out",
        ),
        (
            "a request to the API, or of Docker to the driver",
            format!("{} MiB", server::MAX_BODY >> 20),
            "refused",
        ),
        one(
            "connections to the API",
            access::MAX_CONNECTIONS,
            "they wait until one ends; `weft` gives up after 30 s",
        ),
        one(
            "the same to the socket for reading",
            access::MAX_READING,
            "the same",
        ),
        one(
            "the same to metrics at an address of their own",
            observe::MAX_CONNECTIONS,
            "they wait until one ends",
        ),
        one(
            "the same of Docker to the driver",
            docker::server::MAX_CONNECTIONS,
            "they wait until one ends",
        ),
        one(
            "connections to Docker by `weft docker proxy`",
            proxy::MAX_CONNECTIONS,
            "they wait until one ends",
        ),
        (
            "how long a connection to the API or to metrics may owe a whole request, or take nothing of an answer",
            format!("{} s", SILENCE.as_secs()),
            "it is closed, and `weft events` ends; one whose answer is being made or followed may wait for ever",
        ),
        (
            "how long one of Docker to the driver may, and to the proxy owe a whole request",
            format!("{} s", DOCKERS_SILENCE.as_secs()),
            "it is closed; what follows logs, events or a terminal by the proxy keeps its place",
        ),
    ]
}

/// Digits in threes.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let (head, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let threes = rest
        .as_bytes()
        .chunks(3)
        .map(|three| std::str::from_utf8(three).expect("digits"));
    [head].into_iter().chain(threes).collect::<Vec<_>>().join(",")
}

#[test]
fn what_is_said_of_limits_is_what_holds() {
    assert_eq!(
        docker::server::MAX_BODY,
        server::MAX_BODY,
        "they are told together"
    );
    let said = include_str!("../../docs/limits.md");
    let said: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2)
        .collect();
    let holds: Vec<String> = limits()
        .into_iter()
        .map(|(what, most, beyond)| format!("| {what} | {most} | {beyond} |"))
        .collect();
    assert_eq!(
        said,
        holds,
        "docs/limits.md should have this:\n{}",
        holds.join("\n")
    );
}
