//! Options, pools and addresses.

use super::{CREATE, Case, eth0_mtu, sleeper};
use crate::site::{DockerHost, IMAGE};

pub const CASES: &[Case] = &[
    ("TestDockerNetworkDriverOptions", driver_options),
    ("TestDockerNetworkCustomIPAM", addresses_for_dockers_own_driver),
    ("TestDockerNetworkIPAMOptions", address_options),
    ("TestDockerNetworkNullIPAMDriver", no_addresses),
    ("TestDockerNetworkIPAMInvalidCombinations", contradictions),
    ("TestDockerNetworkInspectCustomSpecifiedIPAM", inspect_custom_ipam),
    (
        "TestDockerNetworkInspectCustomUnspecifiedIPAM",
        inspect_default_ipam,
    ),
    ("TestDockerNetworkIPAMMultipleNetworks", overlapping_networks),
    ("Test64BitIPRange", a_range_of_64_bits),
    ("TestPointToPoint", small_subnets),
];

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

/// Addresses of the cluster are for networks of the cluster, and whoever tries it with others is told so.
fn addresses_for_dockers_own_driver(one: &mut DockerHost, _: &DockerHost) {
    one.docker("network create --ipam-driver weft br0");
    let error = one.docker_error(&format!("run --rm --network br0 {IMAGE} true"));
    assert!(error.contains("docker network create -d weft"), "{error}");
    one.docker("network rm br0");
}

fn address_options(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} --ipam-opt colour=blue app"));
    assert_eq!(
        one.inspect("app", "{{json .IPAM.Options}}"),
        r#"{"colour":"blue"}"#
    );
    // By this one the agent names the network that it makes known to a dockerd.
    two.weft("network create opts");
    one.eventually_docker("network inspect opts");
    let options = one.inspect("opts", "{{json .IPAM.Options}}");
    assert!(options.starts_with(r#"{"weft.network":""#), "{options}");
}

fn no_addresses(one: &mut DockerHost, _: &DockerHost) {
    let error = one.docker_error("network create -d weft --ipam-driver null bare");
    assert!(error.contains("leave `--ipam-driver null` out"), "{error}");
}

fn contradictions(one: &mut DockerHost, _: &DockerHost) {
    for flags in [
        "--ip-range 192.168.0.0/24",
        "--gateway 192.168.0.1",
        "--subnet 192.168.0.0/24 --gateway 192.168.1.1",
        "--subnet 192.168.0.0/24 --ip-range 192.168.1.0/24",
        "--subnet 192.168.0.0/24 --gateway 192.168.0.1 --gateway 192.168.0.2",
        "--subnet 192.168.0.0/24 --ip-range 192.168.0.0/26 --ip-range 192.168.0.64/26",
        "--subnet 192.168.0.0/24 --aux-address printer=192.168.1.9",
        "--subnet 192.168.0.0/16 --subnet 192.168.9.0/24",
    ] {
        let error = one.docker_error(&format!("{CREATE} {flags} bad"));
        assert!(error.contains("subnet"), "{flags}: {error}");
    }
    assert_eq!(one.weft("network ls -q"), "");
}

/// The addresses of a /64 are not counted one by one.
fn a_range_of_64_bits(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!(
        "{CREATE} --ipv6 --subnet 10.67.0.0/24 --subnet fd67::/64 --ip-range fd67::/64 --gateway fd67::1 wide"
    ));
    sleeper(one, "--network wide", "box");
    let shown = one.inspect("box", "{{.NetworkSettings.Networks.wide.GlobalIPv6Address}}");
    assert!(shown.starts_with("fd67::"), "{shown}");
    one.docker("exec box ping -c 1 -W 5 fd67::1");
}

/// Two containers have room in a /30 once its gateway has its address and nobody else has one.
fn small_subnets(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!(
        "{CREATE} --internal --subnet 10.68.0.0/30 --gateway 10.68.0.1 p2p"
    ));
    two.eventually_docker("network inspect p2p");
    sleeper(one, "--network p2p", "box");
    assert_eq!(one.address("box", "p2p"), "10.68.0.2");
    for host in [&*one, two] {
        let error = host.docker_error(&format!("run --rm --network p2p {IMAGE} true"));
        assert!(error.contains("address"), "{error}");
    }
    one.docker("rm -f box");
    two.eventually_docker(&format!("run --rm --network p2p {IMAGE} true"));
}
