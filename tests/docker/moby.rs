//! Docker's own tests of networks that apply to a driver outside of it, by the names that they have there
//! (`integration-cli/docker_cli_network_unix_test.go` and `integration/networking` of Docker's sources). They share a site, as
//! two dockerds take seconds to start; `WEFT_DOCKER_CASE` names one to run alone, and
//! `WEFT_DOCKER_SLOW=1` has them wait for what takes dockerd long.

use std::time::{Duration, Instant};

use crate::site::{DockerHost, IMAGE, Site, alone, missing};

type Case = (&'static str, fn(&mut DockerHost, &DockerHost));

const CASES: [Case; 14] = [
    ("TestDockerNetworkDriverOptions", driver_options),
    ("TestDockerNetworkInspectCustomSpecifiedIPAM", inspect_custom_ipam),
    (
        "TestDockerNetworkInspectCustomUnspecifiedIPAM",
        inspect_default_ipam,
    ),
    ("TestDockerNetworkIPAMMultipleNetworks", overlapping_networks),
    ("TestDockerNetworkMacInspect", mac_addresses),
    ("TestDockerNetworkConnectDisconnect", connect_and_disconnect),
    (
        "TestDockerNetworkConnectDisconnectToStoppedContainer",
        connect_while_stopped,
    ),
    ("TestDockerNetworkConnectPreferredIP", preferred_addresses),
    ("TestDockerNetworkConnectLinkLocalIP", link_local_addresses),
    ("TestUserDefinedNetworkConnectDisconnectAlias", aliases),
    ("TestEmbeddedDNSInvalidInput", strange_names),
    ("TestJoinError", a_failed_start),
    (
        "TestDockerNetworkMultipleNetworksUngracefulDaemonRestart",
        many_networks_and_a_crash,
    ),
    (
        "TestDockerNetworkDriverUngracefulRestart",
        a_crash_and_the_same_address,
    ),
];

#[test]
fn dockers_own_tests_of_networks_hold() {
    if let Some(missing) = missing() {
        return weft_netlink::testing::skip(format_args!("it needs {missing}"));
    }
    alone(all);
}

fn all() {
    let mut site = Site::new("moby", 2);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };
    let only = std::env::var("WEFT_DOCKER_CASE").ok();
    for (name, case) in CASES {
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

fn driver_options(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!(
        "{CREATE} -o com.docker.network.driver.mtu=1400 -o weft.network=opts opts"
    ));
    let options = one.inspect("opts", "{{json .Options}}");
    assert_eq!(
        options,
        r#"{"com.docker.network.driver.mtu":"1400","weft.network":"opts"}"#
    );
    sleeper(one, "--network opts", "box");
    assert_eq!(eth0_mtu(one, "box"), "1400");
    let error = one.docker_error(&format!("{CREATE} -o colour=blue other"));
    assert!(error.contains("colour"), "{error}");
}

fn inspect_custom_ipam(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!(
        "{CREATE} --subnet 10.61.0.0/24 --ip-range 10.61.0.128/25 --gateway 10.61.0.254 --aux-address printer=10.61.0.9 br0"
    ));
    let config = one.inspect("br0", "{{json (index .IPAM.Config 0)}}");
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let expected = serde_json::json!({
        "Subnet": "10.61.0.0/24", "IPRange": "10.61.0.128/25", "Gateway": "10.61.0.254",
        "AuxiliaryAddresses": {"printer": "10.61.0.9"},
    });
    assert_eq!(config, expected);
    assert_eq!(
        one.inspect("br0", "{{.IPAM.Driver}} {{.Scope}} {{.EnableIPv6}}"),
        "weft local false"
    );
    sleeper(one, "--network br0", "box");
    let last: u8 = one
        .address("box", "br0")
        .rsplit_once('.')
        .unwrap()
        .1
        .parse()
        .unwrap();
    assert!(last >= 128, "{last}");
}

fn inspect_default_ipam(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} br1"));
    assert!(!one.inspect("br1", "{{(index .IPAM.Config 0).Subnet}}").is_empty());
    assert!(
        !one.inspect("br1", "{{(index .IPAM.Config 0).Gateway}}")
            .is_empty()
    );
}

fn overlapping_networks(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} --subnet 10.62.0.0/16 br0"));
    two.eventually_docker("network inspect br0");
    for host in [&*one, two] {
        let error = host.docker_error(&format!("{CREATE} --subnet 10.62.7.0/24 br1"));
        assert!(error.contains("overlaps"), "{error}");
    }
    one.docker(&format!(
        "{CREATE} --subnet 10.63.0.0/24 --ipv6 --subnet fd63::/64 br2"
    ));
    sleeper(one, "--network br2", "box");
    let v6 = one.inspect("box", "{{.NetworkSettings.Networks.br2.GlobalIPv6Address}}");
    assert!(v6.starts_with("fd63::"), "{v6}");
}

fn mac_addresses(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    create_with_mac(one, "app", "02:00:00:00:00:77", "box");
    one.docker("start box");
    assert_eq!(
        one.inspect("box", "{{.NetworkSettings.Networks.app.MacAddress}}"),
        "02:00:00:00:00:77"
    );
    assert_eq!(
        one.docker("exec box cat /sys/class/net/eth0/address"),
        "02:00:00:00:00:77\n"
    );
    // One of the driver's own is shown too.
    sleeper(one, "--network app", "tin");
    let shown = one.inspect("tin", "{{.NetworkSettings.Networks.app.MacAddress}}");
    assert_eq!(
        one.docker("exec tin cat /sys/class/net/eth0/address").trim(),
        shown
    );
}

fn connect_and_disconnect(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    sleeper(one, "", "box");
    one.docker("network connect app box");
    assert_eq!(one.inspect("app", "{{len .Containers}}"), "1");
    let address = one.address("box", "app");
    one.eventually_in("box", &format!("ping -c 1 -W 1 {address}"));
    assert!(one.docker("exec box ip addr").contains(&address));
    one.docker("network disconnect app box");
    assert_eq!(one.inspect("app", "{{len .Containers}}"), "0");
    assert!(!one.docker("exec box ip addr").contains(&address));
    // Those that use it are named.
    one.docker("network connect app box");
    let error = one.docker_error("network rm app");
    assert!(error.contains("active endpoints"), "{error}");
    one.docker("network disconnect -f app box");
}

fn connect_while_stopped(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    one.docker(&format!(
        "create --stop-signal KILL --name box {IMAGE} sleep 100000"
    ));
    one.docker("network connect app box");
    assert_eq!(
        one.inspect("box", "{{json .NetworkSettings.Networks.app.IPAddress}}"),
        r#""""#
    );
    one.docker("start box");
    assert!(one.address("box", "app").starts_with("10."));
    one.docker("stop box");
    one.docker("network disconnect app box");
    one.docker("start box");
    assert!(
        !one.inspect("box", "{{json .NetworkSettings.Networks}}")
            .contains("app")
    );
}

fn preferred_addresses(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!(
        "{CREATE} --ipv6 --subnet 10.64.0.0/24 --subnet fd64::/64 n0"
    ));
    two.eventually_docker("network inspect n0");
    let has = |one: &DockerHost, name: &str, v4: &str, v6: &str| {
        assert_eq!(one.address(name, "n0"), v4);
        let shown = one.inspect(name, "{{.NetworkSettings.Networks.n0.GlobalIPv6Address}}");
        assert_eq!(shown, v6);
    };
    sleeper(one, "--network n0 --ip 10.64.0.55 --ip6 fd64::55", "c0");
    has(one, "c0", "10.64.0.55", "fd64::55");
    sleeper(one, "", "c1");
    one.docker("network connect --ip 10.64.0.66 --ip6 fd64::66 n0 c1");
    has(one, "c1", "10.64.0.66", "fd64::66");
    // Taken, here and there, until it is given back.
    for host in [&*one, two] {
        let error = host.docker_error(&format!("run --rm --network n0 --ip 10.64.0.66 {IMAGE} true"));
        assert!(error.contains("10.64.0.66"), "{error}");
    }
    // Of a stopped one, and over its restarts.
    one.docker(&format!(
        "create --stop-signal KILL --name c2 {IMAGE} sleep 100000"
    ));
    one.docker("network connect --ip 10.64.0.77 --ip6 fd64::77 n0 c2");
    for _ in 0..2 {
        one.docker("restart -t 0 c2");
        has(one, "c2", "10.64.0.77", "fd64::77");
    }
    one.docker("rm -f c1");
    sleeper(one, "--network n0 --ip 10.64.0.66", "c3");
}

fn link_local_addresses(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    sleeper(one, "", "box");
    one.docker("network connect --link-local-ip 169.254.7.7 app box");
    assert!(one.docker("exec box ip addr").contains("169.254.7.7"));
    one.docker("stop box");
    one.docker("start box");
    assert!(one.docker("exec box ip addr").contains("169.254.7.7"));
}

fn aliases(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    one.docker(&format!("{CREATE} other"));
    two.eventually_docker("network inspect app");
    sleeper(one, "--network app --network-alias foo", "first");
    sleeper(one, "--network app", "second");
    sleeper(two, "--network app", "far");
    let all = [(&*one, "second"), (two, "far")];
    for (host, from) in all {
        for name in ["first", "foo", "foo.app"] {
            host.eventually_in(from, &format!("ping -c 1 -W 1 {name}"));
        }
    }
    // An alias is of one network, and goes with it.
    one.docker("network connect --alias bar other first");
    for (host, from) in all {
        assert!(host.try_docker(&format!("exec {from} nslookup bar")).is_err());
    }
    one.docker("network disconnect app first");
    two.eventually("no foo", || match two.try_docker("exec far nslookup foo") {
        Ok(said) => Ok(said),
        Err(_) => Ok(String::new()),
    });
    one.docker("network connect --alias baz app first");
    for (host, from) in all {
        host.eventually_in(from, "ping -c 1 -W 1 baz");
    }
    two.docker("rm -f far");
}

fn strange_names(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    sleeper(one, "--network app", "box");
    let long = "x".repeat(63);
    for name in ["$", "a..b", "-", &long, &[long.as_str(); 3].join(".")] {
        assert!(
            one.try_docker(&format!("exec box nslookup {name} 127.0.0.11"))
                .is_err(),
            "{name}"
        );
    }
    one.eventually_in("box", "nslookup box");
}

/// A container whose start fails leaves neither an endpoint nor an address.
fn a_failed_start(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} --subnet 10.65.0.0/24 app"));
    two.eventually_docker("network inspect app");
    create_with_mac(two, "app", "02:00:00:00:00:78", "taken");
    two.docker("start taken");
    let free = match two.address("taken", "app").as_str() {
        "10.65.0.80" => "10.65.0.81",
        _ => "10.65.0.80",
    };
    create_with_mac(one, "app", "02:00:00:00:00:78", "same");
    let error = one.docker_error("start same");
    assert!(error.contains("02:00:00:00:00:78"), "{error}");
    let error = one.docker_error(&format!(
        "run --name tin --network app --ip {free} {IMAGE} /no/such/program"
    ));
    assert!(error.contains("/no/such/program"), "{error}");
    let network = one.weft("network inspect --format json app");
    let network: serde_json::Value = serde_json::from_str(&network).unwrap();
    assert_eq!(network["endpoints"].as_array().unwrap().len(), 1, "{network}");
    sleeper(two, &format!("--network app --ip {free}"), "there");
    two.docker("rm -f taken there");
}

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
