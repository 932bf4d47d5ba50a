//! Containers on networks and off them.

use super::{CREATE, Case, create_with_mac, sleeper};
use crate::site::{DockerHost, IMAGE};

pub const CASES: &[Case] = &[
    ("TestDockerNetworkMacInspect", mac_addresses),
    ("TestDockerNetworkConnectWithMac", a_mac_address_of_one_network),
    ("TestDockerNetworkConnectDisconnect", connect_and_disconnect),
    ("TestDockerNetworkReConnect", connect_twice),
    (
        "TestDockerNetworkConnectDisconnectToStoppedContainer",
        connect_while_stopped,
    ),
    ("TestDockerNetworkConnectPreferredIP", preferred_addresses),
    ("TestDockerNetworkUnsupportedRequiredIP", impossible_addresses),
    ("TestDockerNetworkConnectLinkLocalIP", link_local_addresses),
    ("TestDockerNetworkOverlayPortMapping", published_ports),
    ("TestDockerNetworkInternalMode", no_way_out),
    ("TestGatewaySelection", one_way_out_of_several),
    ("TestJoinError", a_failed_start),
];

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

/// One that Docker gives when a container is connected goes for that network only.
fn a_mac_address_of_one_network(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    one.docker(&format!("{CREATE} other"));
    create_with_mac(one, "app", "02:00:00:00:00:79", "box");
    one.docker("network connect other box");
    one.docker("start box");
    let macs = one.inspect(
        "box",
        "{{range .NetworkSettings.Networks}}{{.MacAddress}} {{end}}",
    );
    let macs: Vec<_> = macs.split_whitespace().collect();
    assert_eq!(macs.len(), 2, "{macs:?}");
    assert_eq!(
        macs.iter().filter(|mac| **mac == "02:00:00:00:00:79").count(),
        1,
        "{macs:?}"
    );
}

fn connect_twice(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    sleeper(one, "--network app", "box");
    let error = one.docker_error("network connect app box");
    assert!(error.contains("already"), "{error}");
    for _ in 0..3 {
        one.docker("network disconnect app box");
        one.docker("network connect app box");
    }
    let address = one.address("box", "app");
    one.docker(&format!("exec box ping -c 1 -W 5 {address}"));
    let network = one.weft("network inspect --format json app");
    let network: serde_json::Value = serde_json::from_str(&network).unwrap();
    assert_eq!(network["endpoints"].as_array().unwrap().len(), 1, "{network}");
}

fn impossible_addresses(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} --subnet 10.69.0.0/24 app"));
    for flags in [
        "--ip 10.70.0.9",
        "--ip6 fd69::9",
        "--ip 10.69.0.255",
        "--ip 10.69.0.1",
    ] {
        let error = one.docker_error(&format!("run --rm --network app {flags} {IMAGE} true"));
        let address = flags.split_once(' ').unwrap().1;
        assert!(
            error.contains(address) || error.contains("IP"),
            "{flags}: {error}"
        );
    }
    let network = one.weft("network inspect --format json app");
    let network: serde_json::Value = serde_json::from_str(&network).unwrap();
    assert_eq!(network["endpoints"], serde_json::json!([]));
}

/// Docker publishes ports itself, by a second interface.
fn published_ports(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    one.docker(&format!(
        "run -d --stop-signal KILL --name web --network app -p 5000:80 {IMAGE} httpd -f -h /www"
    ));
    assert!(one.docker("port web 80").contains("0.0.0.0:5000"));
    let url = "http://192.0.2.1:5000/";
    two.eventually(url, || {
        two.try_shell(&format!("curl -sS --noproxy '*' --max-time 2 -o $dir/page {url}"))
    });
}

fn no_way_out(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} --internal closed"));
    two.eventually_docker("network inspect closed");
    sleeper(one, "--network closed", "box");
    sleeper(two, "--network closed", "far");
    one.eventually_in("box", "ping -c 1 -W 1 far");
    assert!(!one.docker("exec box ip route").contains("default"));
    assert!(one.try_docker("exec box ping -c 1 -W 1 192.0.2.2").is_err());
    two.docker("rm -f far");
}

/// A container has one way out, whatever networks it is on, and keeps one as long as one of them has one.
fn one_way_out_of_several(one: &mut DockerHost, _: &DockerHost) {
    for network in ["a", "b"] {
        one.docker(&format!("{CREATE} {network}"));
    }
    one.docker(&format!("{CREATE} --internal closed"));
    sleeper(one, "--network closed", "box");
    let routes = |one: &DockerHost| {
        let routes = one.docker("exec box ip route");
        routes
            .lines()
            .filter(|route| route.starts_with("default"))
            .count()
    };
    assert_eq!(routes(one), 0);
    for (verb, network, left) in [
        ("connect", "a", 1),
        ("connect", "b", 1),
        ("disconnect", "a", 1),
        ("disconnect", "b", 0),
    ] {
        one.docker(&format!("network {verb} {network} box"));
        assert_eq!(routes(one), left, "after {verb} {network}");
        if left > 0 {
            one.docker("exec box ping -c 1 -W 5 192.0.2.2");
        }
    }
}
