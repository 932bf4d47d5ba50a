//! Docker's own tests of networks that apply to a driver outside of it, by the names that they have there
//! (`integration-cli/docker_cli_network_unix_test.go` and `integration/networking` of Docker's sources). They share a site, as
//! two dockerds take seconds to start; `WEFT_DOCKER_CASE` names one to run alone, and
//! `WEFT_DOCKER_SLOW=1` has them wait for what takes dockerd long.
//!
//! Not here are those of what dockerd does by itself, whoever the driver is (its checks of a driver's answers, flows through the
//! ports that its own bridge publishes, system controls of interfaces), of Swarm, which refuses drivers like ours, and of flags
//! that Docker 20.10 has not.

mod addresses;
mod attach;
mod names;
mod restart;

use std::time::Instant;

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

type Case = (&'static str, fn(&mut DockerHost, &DockerHost));

#[test]
fn dockers_own_tests_of_networks_hold() {
    with_dockerds(&[], || all("moby-nets", &[addresses::CASES, attach::CASES]));
}

#[test]
fn dockers_own_tests_of_names_and_restarts_hold() {
    with_dockerds(&[], || all("moby-names", &[names::CASES, restart::CASES]));
}

fn all(site: &str, cases: &[&[Case]]) {
    let mut site = Site::new(site, 2);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };
    let only = std::env::var("WEFT_DOCKER_CASE").ok();
    for (name, case) in cases.iter().copied().flatten() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let begun = Instant::now();
        eprintln!("{name}");
        case(one, two);
        let left = one.try_docker("ps -aq").unwrap();
        if !left.trim().is_empty() {
            one.shell("docker rm -f $(docker ps -aq) >/dev/null");
        }
        let left = one.docker("network ls -q --filter driver=weft");
        for network in left.split_whitespace() {
            one.docker(&format!("network rm {network}"));
        }
        one.eventually("no network left", || one.try_weft("network ls -q"));
        two.eventually("no network left", || {
            two.try_docker("network ls -q --filter driver=weft")
        });
        eprintln!("{:.1?}", begun.elapsed());
    }
    site.close();
}

const CREATE: &str = "network create -d weft --ipam-driver weft";

fn sleeper(host: &DockerHost, flags: &str, name: &str) {
    host.docker(&format!(
        "run -d --stop-signal KILL {flags} --name {name} {IMAGE} sleep 100000"
    ));
}

/// Through the API, as newer `docker`s have no such flag for older dockerds.
fn create_with_mac(host: &DockerHost, network: &str, mac: &str, name: &str) {
    host.shell(&format!(
        "curl -sSf --unix-socket /run/docker.sock -H 'Content-Type: application/json' \
         'http://docker/v1.41/containers/create?name={name}' -d '{{\"Image\": \"{IMAGE}\", \"StopSignal\": \"KILL\", \
         \"Cmd\": [\"sleep\", \"100000\"], \"MacAddress\": \"{mac}\", \"HostConfig\": {{\"NetworkMode\": \"{network}\"}}}}'"
    ));
}

fn eth0_mtu(host: &DockerHost, name: &str) -> String {
    host.docker(&format!("exec {name} cat /sys/class/net/eth0/mtu"))
        .trim()
        .to_owned()
}
