//! dockerds that end and begin again.

use std::time::{Duration, Instant};

use super::{CREATE, Case, create_with_mac, sleeper};
use crate::site::DockerHost;

pub const CASES: &[Case] = &[
    (
        "TestDockerNetworkMultipleNetworksGracefulDaemonRestart",
        an_orderly_restart,
    ),
    (
        "TestDockerNetworkMultipleNetworksUngracefulDaemonRestart",
        many_networks_and_a_crash,
    ),
    ("TestDaemonRestartWithLiveRestore", a_restart_that_nobody_notices),
    (
        "TestDockerNetworkDriverUngracefulRestart",
        a_crash_and_the_same_address,
    ),
];

/// Restart policies bring containers back within a minute of dockerd's start, on all of their networks.
fn many_networks_and_a_crash(one: &mut DockerHost, _: &DockerHost) {
    let networks: Vec<_> = (0..10).map(|n| format!("many{n}")).collect();
    for network in &networks {
        one.docker(&format!("{CREATE} {network}"));
    }
    sleeper(one, "--restart always --network many0", "box");
    for network in &networks[1..] {
        one.docker(&format!("network connect {network} box"));
    }
    sleeper(one, "--network many9", "tin");
    let on = |one: &DockerHost| {
        let ours: Vec<_> = networks
            .iter()
            .map(|network| one.address("box", network))
            .collect();
        assert!(ours.iter().all(|address| address.starts_with("10.")), "{ours:?}");
    };
    on(one);
    // The names of each network resolve, through nine routes to our server.
    one.eventually_in("box", "nslookup tin.many9 127.0.0.11");
    let pid = one.inspect("box", "{{.State.Pid}}");
    one.kill_dockerd();
    let begun = Instant::now();
    one.start_dockerd();
    one.wait_for_dockerd();
    one.eventually("the container again", || {
        let state = one.try_docker("inspect -f {{.State.Pid}},{{.State.Running}} box")?;
        let is_back = state.trim().ends_with(",true") && !state.starts_with(&pid);
        Ok(if is_back { String::new() } else { state })
    });
    assert!(begun.elapsed() < Duration::from_secs(60));
    on(one);
    one.docker("start tin");
    one.eventually_in("box", "ping -c 1 -W 1 tin.many9");
}

fn a_crash_and_the_same_address(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} --subnet 10.66.0.0/24 app"));
    two.eventually_docker("network inspect app");
    sleeper(one, "--network app --ip 10.66.0.10", "box");
    one.kill_dockerd();
    one.start_dockerd();
    one.wait_for_dockerd();
    one.docker("start box");
    assert_eq!(one.address("box", "app"), "10.66.0.10");
    // dockerd waits half a minute for a driver that is away.
    if std::env::var_os("WEFT_DOCKER_SLOW").is_none() {
        return;
    }
    // It starts nevertheless, and goes on when it is back.
    one.kill_dockerd();
    one.kill_agent();
    let begun = Instant::now();
    one.start_dockerd();
    one.wait_for_dockerd();
    assert!(begun.elapsed() < Duration::from_secs(60));
    one.start_agent();
    one.wait_for_agent();
    // The agent has yet to hear from dockerd that the endpoint of before is nobody's.
    one.eventually_docker("start box");
    assert_eq!(one.address("box", "app"), "10.66.0.10");
    sleeper(two, "--network app", "far");
    two.eventually_in("far", "ping -c 1 -W 1 10.66.0.10");
    two.docker("rm -f far");
}

/// The same networks, and a MAC address that was asked for.
fn an_orderly_restart(one: &mut DockerHost, _: &DockerHost) {
    for network in ["left", "right"] {
        one.docker(&format!("{CREATE} {network}"));
    }
    create_with_mac(one, "left", "02:00:00:00:00:7a", "box");
    one.docker("update --restart always box");
    one.docker("network connect right box");
    one.docker("start box");
    let subnets = |one: &DockerHost| {
        ["left", "right"].map(|network| one.inspect(network, "{{.Id}} {{(index .IPAM.Config 0).Subnet}}"))
    };
    let before = subnets(one);
    one.stop_dockerd();
    one.start_dockerd();
    one.wait_for_dockerd();
    assert_eq!(subnets(one), before);
    one.eventually("the container again", || {
        let running = one.try_docker("inspect -f {{.State.Running}} box")?;
        Ok(running.replace("true", ""))
    });
    let shown = one.inspect("box", "{{.NetworkSettings.Networks.left.MacAddress}}");
    assert_eq!(shown, "02:00:00:00:00:7a");
    assert!(one.address("box", "right").starts_with("10."));
}

/// Containers run on, and their networks are the same ones.
fn a_restart_that_nobody_notices(one: &mut DockerHost, two: &DockerHost) {
    one.set_up_docker(r#"{"dns": ["169.254.53.53"], "live-restore": true}"#);
    one.stop_dockerd();
    one.start_dockerd();
    one.wait_for_dockerd();
    one.docker(&format!("{CREATE} app"));
    two.eventually_docker("network inspect app");
    sleeper(one, "--network app", "box");
    sleeper(two, "--network app", "far");
    let what = "{{.State.Pid}} {{.NetworkSettings.Networks.app.IPAddress}}";
    let before = one.inspect("box", what);
    one.stop_dockerd();
    one.start_dockerd();
    one.wait_for_dockerd();
    assert_eq!(one.inspect("box", what), before);
    two.docker("exec far ping -c 1 -W 5 box");
    // It can still be taken off, and the network removed.
    one.docker("network disconnect app box");
    two.docker("rm -f far");
}
