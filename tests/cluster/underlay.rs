//! What is below: a cluster over IPv4, and one of hosts that have IPv6 alone, carry the same, in packets as long as fit.

use std::{io::ErrorKind, net::IpAddr, process::Command};

use netns_harness::{Inside, Sandbox};

use super::{
    bed::{Bed, COMMAND, alone, soon},
    secret::{CANARY, has_tap, tunnels, unseen},
    traffic::{PORT, answering, call, call_at},
};

/// An echo request of so many bytes with its IP header, that nobody on the way may cut.
fn ping(from: &Sandbox, to: IpAddr, length: u32) -> bool {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let mut ping = Command::new("ping");
    ping.args([
        "-c",
        "1",
        "-W",
        "5",
        "-M",
        "do",
        "-s",
        &(length - headers).to_string(),
    ]);
    let done = from.exec(ping.arg(to.to_string()), COMMAND).unwrap();
    done.success().is_ok()
}

fn carries_everything(subnet: &str, plain_mtu: u32) {
    let bed = Bed::cluster_over(subnet, &["h1", "h2", "h3"]);
    let mut networks = vec![("plain", "", plain_mtu)];
    if has_tap() {
        networks.push(("secret", "--opt encrypted", 1370));
    }
    for (network, how, mtu) in networks {
        bed["h1"].weft(&format!("network create --ipv6 {how} {network}"));
        let web = format!("{network}-web");
        let port = if how.is_empty() { 8080 } else { 8081 };
        bed["h2"].weft(&format!(
            "service create --network {network} --lb rr --publish {port}:{PORT} {web}"
        ));
        let work = || {
            let replicas = ["h2", "h3"].map(|host| {
                let name = format!("{CANARY}-{network}-{host}");
                bed[host].replica(
                    &name,
                    network,
                    &format!("--name {network}-{host} --service {web}"),
                )
            });
            let client = bed["h1"].connected(&format!("{network}-client"), network, "");
            let mut shown = Command::new("ip");
            shown.args(["-o", "link", "show", "eth0"]);
            let shown = client.sandbox.exec(&mut shown, COMMAND).unwrap().stdout;
            assert!(shown.contains(&format!(" mtu {mtu} ")), "{network}: {shown}");
            answering(&client.sandbox, bed["h1"].vip(&web), 2);
            for replica in &replicas {
                for address in &replica.addresses {
                    assert!(ping(&client.sandbox, *address, mtu), "{network}: {address}");
                    assert!(
                        !ping(&client.sandbox, *address, mtu + 1),
                        "{network}: {address} takes more"
                    );
                    let answer = call(&client.sandbox, *address).unwrap().answer;
                    assert!(client.addresses.contains(&answer.seen.ip()), "{answer:?}");
                }
            }
            let mut dig = Command::new("dig");
            dig.args(["+short", "@fd00:53::53", "AAAA"]);
            dig.arg(format!("{network}-h3.{network}.weft.internal"));
            let said = client.sandbox.exec(&mut dig, COMMAND).unwrap().stdout;
            let said: IpAddr = said.trim().parse().unwrap_or_else(|_| panic!("{said}"));
            assert!(replicas[1].addresses.contains(&said));
            (replicas, client)
        };
        let (replicas, client) = match how {
            "" => work(),
            _ => {
                let ends = unseen(&bed, network, work);
                for host in ["h1", "h2", "h3"] {
                    tunnels(&bed[host], 2);
                }
                ends
            }
        };
        // By its published port, from a host that knows nothing of all this.
        let outside = bed.outsider(&format!("outside-{network}"));
        for node in bed.nodes() {
            call_at(&outside, node.address(), port).unwrap();
        }
        bed.all_well();
        bed["h1"].weft("doctor");
        drop((replicas, client));
    }
    routes_between_subnets(&bed);
    bed.close();
}

/// Whoever is in another subnet of the same network is reached, also in one that is added while others are there.
fn routes_between_subnets(bed: &Bed) {
    let mut networks = vec![("routed", ""), ("closed", "--internal")];
    if has_tap() {
        networks.push(("hidden", "--opt encrypted"));
    }
    for (third, (network, how)) in (0..).step_by(10).zip(networks) {
        let ip = |number: u8, host: u8| format!("10.6{number}.{third}.{host}");
        let net = |number| format!("{}/24", ip(number, 0));
        bed["h1"].weft(&format!("network create --subnet {} {how} {network}", net(1)));
        let connected = |host: &str, number| {
            let flags = format!("--ip {}", ip(number, 10));
            bed[host].connected(&format!("{network}-{number}"), network, &flags)
        };
        let one = connected("h1", 1);
        let refused = bed["h2"].try_weft(&format!("network update --subnet-add {} {network}", net(2)));
        assert_eq!(refused.code, 4, "{refused:?}");
        let said = bed["h1"].weft(&format!(
            "network update --subnet-add {} --subnet-add {} {network}",
            net(2),
            net(3)
        ));
        assert!(said.contains(&net(1)) && said.contains(&net(3)), "{said}");
        let (two, three) = (connected("h2", 2), connected("h1", 3));
        for (from, to) in [(&one, &two), (&two, &one), (&two, &three), (&three, &one)] {
            soon(
                format!("{network}: {} reached from {}", to.address(), from.address()),
                || match ping(&from.sandbox, to.address(), 1280) {
                    true => Ok(()),
                    false => Err("no answer"),
                },
            );
            let answer = call(&from.sandbox, to.address()).err().map(|error| error.kind());
            assert_eq!(answer, Some(ErrorKind::ConnectionRefused));
        }
    }
    bed.all_well();
    bed["h2"].weft("doctor");
}

#[test]
fn hosts_with_ipv4_carry_packets_as_long_as_fit() {
    alone(|| carries_everything("10.1.0.0/24", 1450));
}

#[test]
fn hosts_with_ipv6_alone_carry_packets_as_long_as_fit() {
    alone(|| carries_everything("fd10::/64", 1430));
}
