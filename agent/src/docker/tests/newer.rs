//! What dockerds after 20.10 send besides, as their sources have it, and what no dockerd may.

use serde_json::{Value, json};

use super::rig::Rig;

pub const NETWORK: &str = "11a3d8ad348efec3bc20c7f24ac767aee5a06247c53534da9ed5dcbde0749f8e";
pub const ENDPOINT: &str = "8285d428ab26602294c4a5f4a598fc0f8304a0dd47b2ffbf966e6b63cee603b2";

/// A network with both families, as dockerd 29 makes it, and its pools.
pub fn network(rig: &mut Rig) -> [String; 2] {
    let options = json!({
        "com.docker.network.enable_ipv4": true,
        "com.docker.network.enable_ipv6": true,
        "com.docker.network.generic": {"weft.network": "app", "com.docker.network.driver.mtu": "1400"},
    });
    let check = rig.ask_json("NetworkDriver.GwAllocCheck", &json!({"Options": options}));
    assert_eq!(check.body, json!({"SkipIPv4": false, "SkipIPv6": false}));
    let mut data = Vec::new();
    let mut pools = Vec::new();
    for (subnet, ipv6) in [("10.77.0.0/24", false), ("fd77::/64", true)] {
        let request =
            json!({"AddressSpace": "weft", "Pool": subnet, "SubPool": "", "Options": null, "V6": ipv6});
        let pool = rig.ask_json("IpamDriver.RequestPool", &request);
        let id = pool.body["PoolID"].as_str().unwrap().to_owned();
        let options = json!({"RequestAddressType": "com.docker.network.gateway"});
        let gateway = json!({"PoolID": id, "Address": "", "Options": options});
        let gateway = rig.ask_json("IpamDriver.RequestAddress", &gateway);
        data.push(json!({"AddressSpace": "weft", "Pool": subnet, "Gateway": gateway.body["Address"]}));
        pools.push(id);
    }
    let create =
        json!({"NetworkID": NETWORK, "Options": options, "IPv4Data": [data[0]], "IPv6Data": [data[1]]});
    let made = rig.ask_json("NetworkDriver.CreateNetwork", &create);
    assert_eq!(made.body, json!({}));
    pools.try_into().unwrap()
}

/// A container's endpoint on it.
pub fn endpoint(rig: &mut Rig, pools: &[String; 2]) -> [Value; 2] {
    let addresses = pools.each_ref().map(|pool| {
        let options = json!({"com.docker.network.endpoint.name": "web"});
        let request = json!({"PoolID": pool, "Address": "", "Options": options});
        let answer = rig.ask_json("IpamDriver.RequestAddress", &request);
        answer.body["Address"].clone()
    });
    let create = json!({
        "NetworkID": NETWORK,
        "EndpointID": ENDPOINT,
        "Interface": {"Address": addresses[0], "AddressIPv6": addresses[1], "MacAddress": ""},
        "Options": {
            "com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.forwarding=1",
            "com.docker.network.endpoint.ifname": "weft0",
        },
    });
    let made = rig.ask_json("NetworkDriver.CreateEndpoint", &create);
    assert!(made.error().is_none(), "{made:?}");
    addresses
}

fn host(address: &Value) -> &str {
    address.as_str().unwrap().split_once('/').unwrap().0
}

#[test]
fn a_container_of_dockerd_29_is_attached_and_detached() {
    let mut rig = Rig::new();
    let pools = network(&mut rig);
    let addresses = endpoint(&mut rig, &pools);
    let both = json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT});
    let join = json!({
        "NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/var/run/docker/netns/0123456789ab",
        "Options": null,
    });
    let joined = rig.ask_json("NetworkDriver.Join", &join);
    assert_eq!(joined.body["InterfaceName"]["DstPrefix"], "eth");
    assert_eq!(joined.body["StaticRoutes"].as_array().unwrap().len(), 2);
    let options = json!({"com.docker.network.driver.private.no_proxy_6to4": true});
    let program = json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Options": options});
    assert_eq!(
        rig.ask_json("NetworkDriver.ProgramExternalConnectivity", &program)
            .body,
        json!({})
    );
    for call in ["NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"] {
        assert_eq!(rig.ask_json(call, &both).body, json!({}));
    }
    for (pool, address) in pools.iter().zip(&addresses) {
        rig.ask_json(
            "IpamDriver.ReleaseAddress",
            &json!({"PoolID": pool, "Address": host(address)}),
        );
    }
    assert_eq!(rig.node.held(), [1, 0, 0, 0]);
}

#[test]
fn the_way_out_is_ours_where_it_leads_out_and_docker_publishes_nothing() {
    let gateways = |lets_out: bool, ports: Value| {
        let mut rig = Rig::new();
        if lets_out {
            rig.node.let_out();
        }
        let pools = network(&mut rig);
        endpoint(&mut rig, &pools);
        let join = json!({
            "NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/var/run/docker/netns/0123456789ab",
            "Options": {"com.docker.network.portmap": ports},
        });
        let joined = rig.ask_json("NetworkDriver.Join", &join).body;
        ["Gateway", "GatewayIPv6"].map(|field| joined[field].as_str().map(str::to_owned))
    };
    let ours = [Some("10.77.0.1".to_owned()), Some("fd77::1".to_owned())];
    assert_eq!(gateways(true, json!([])), ours);
    assert_eq!(gateways(true, Value::Null), ours);
    assert_eq!(gateways(false, json!([])), [None, None]);
    let published =
        json!([{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}]);
    assert_eq!(gateways(true, published), [None, None]);
}

/// dockerd 28 and later takes it back when the container has IPv6 switched off.
#[test]
fn an_endpoint_outlives_the_loss_of_one_of_its_addresses_and_not_of_all() {
    let mut rig = Rig::new();
    let pools = network(&mut rig);
    let addresses = endpoint(&mut rig, &pools);
    let release = |which: usize| json!({"PoolID": pools[which], "Address": host(&addresses[which])});
    rig.ask_json("IpamDriver.ReleaseAddress", &release(1));
    assert_eq!(rig.node.held(), [1, 1, 0, 0]);
    rig.ask_json("IpamDriver.ReleaseAddress", &release(0));
    assert_eq!(rig.node.held(), [1, 0, 0, 0]);
}

/// dockerd's start depends on these.
#[test]
fn what_is_asked_at_a_start_is_answered_without_the_owner_of_the_state() {
    let mut rig = Rig::new();
    for call in [
        "Plugin.Activate",
        "NetworkDriver.GetCapabilities",
        "IpamDriver.GetCapabilities",
        "IpamDriver.GetDefaultAddressSpaces",
    ] {
        assert!(rig.ask(call, "").error().is_none(), "{call}");
    }
    assert_eq!(rig.commanded, 0);
}

#[test]
fn what_is_no_request_is_refused_in_words() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask("NetworkDriver.Dance", "{}").status, 404);
    assert_eq!(rig.ask("NetworkDriver.Leave", "{").status, 400);
    assert_eq!(rig.ask("NetworkDriver.Leave", "[]").status, 400);
    assert_eq!(rig.ask("NetworkDriver.Leave", vec![b' '; 2 << 20]).status, 413);
    let half = json!({"NetworkID": NETWORK, "EndpointID": &ENDPOINT[..63]});
    assert_eq!(rig.ask_json("NetworkDriver.Leave", &half).status, 400);
}
