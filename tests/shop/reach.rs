//! Who reaches whom, by which name and address, and who does not.

use std::net::IpAddr;

use crate::bed::{Lab, User, each, url};

/// One ping, answered within two seconds.
pub fn pings(lab: &Lab<'_>, from: &str, to: IpAddr) {
    let ended = lab.exec(from, &["ping", "-n", "-c", "1", "-W", "2", &to.to_string()]);
    assert_eq!(ended.code, 0, "{from} does not reach {to}: {ended:?}");
}

#[test]
fn replicas_on_all_hosts_reach_each_other_by_ipv4_and_ipv6() {
    let me = User::me();
    let shop = me.shop();
    let live = shop.inspect();
    for (from, to) in [
        ("client-1", "web-1"),
        ("client-1", "web-2"),
        ("client-1", "web-3"),
        ("web-2", "web-3"),
        ("web-3", "client-1"),
    ] {
        let addresses = live.addresses(to, "front");
        assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6(), "{addresses:?}");
        for address in addresses {
            pings(&shop, from, address);
        }
        // By its name, too.
        shop.exec(from, &["ping", "-n", "-c", "1", "-W", "2", to]).good();
    }
    shop.down();
}

#[test]
fn the_backend_sees_the_clients_own_address() {
    let me = User::me();
    let shop = me.shop();
    let live = shop.inspect();
    let own = live.addresses("client-1", "front");
    for (vip, own) in live.vips("web", "front").into_iter().zip(&own) {
        let mut seen = Vec::new();
        // One after the other: three calls meet the backend on the client's host and the two on others.
        for _ in 0..3 {
            let answer = shop.whoami("client-1", &url(vip));
            let client: std::net::SocketAddr = answer["client"].parse().unwrap();
            assert_eq!(
                client.ip(),
                *own,
                "{} saw another client: {answer:?}",
                answer["name"]
            );
            let local: std::net::SocketAddr = answer["local"].parse().unwrap();
            assert!(
                live.addresses(&answer["name"], "front").contains(&local.ip()),
                "{answer:?}"
            );
            seen.push(answer["name"].clone());
        }
        seen.sort();
        assert_eq!(seen, ["web-1", "web-2", "web-3"]);
    }
    shop.down();
}

#[test]
fn a_backend_can_call_the_service_it_belongs_to() {
    let me = User::me();
    let shop = me.shop();
    for vip in shop.inspect().vips("web", "front") {
        assert_eq!(
            shop.calls("web-2", &url(vip), 6),
            each(&["web-1", "web-2", "web-3"], 2)
        );
    }
    shop.down();
}

#[test]
fn who_is_only_on_front_neither_reaches_nor_resolves_what_is_only_on_back() {
    let me = User::me();
    let shop = me.shop();
    let live = shop.inspect();

    for name in [
        "db",
        "postgres",
        "db-1",
        "tasks.db",
        "db.back",
        "postgres.back.weft.internal",
    ] {
        let resolved = shop.exec("client-1", &["getent", "ahosts", name]);
        assert_eq!(resolved.code, 2, "{name} resolves on front: {resolved:?}");
        let told = shop
            .exec("client-1", &["dig", "+search", "+short", name, "A", name, "AAAA"])
            .good();
        assert_eq!(told, "", "{name} has an address on front");
    }
    for name in [
        "db.front.weft.internal",
        "db.back.weft.internal",
        "tasks.db.back.weft.internal",
    ] {
        let told = shop
            .exec("client-1", &["dig", "+noall", "+comments", name])
            .good();
        assert!(told.contains("status: NXDOMAIN"), "{name}: {told}");
    }
    let secret = [live.addresses("db-1", "back"), live.vips("db", "back")].concat();
    for address in &secret {
        let pinged = shop.exec(
            "client-1",
            &["ping", "-n", "-c", "1", "-W", "1", &address.to_string()],
        );
        assert_ne!(pinged.code, 0, "client-1 reaches {address}: {pinged:?}");
        let url = format!("http://{address}:5432/");
        let called = shop.exec(
            "client-1",
            &["curl", "--silent", "--show-error", "--max-time", "1", &url],
        );
        // No route to host, network unreachable or no answer; a refusal would come from somebody who was reached.
        let reached = called.stderr.contains("refused") || called.code == 0;
        assert!(
            [7, 28].contains(&called.code) && !reached,
            "client-1 reaches {url}: {called:?}"
        );
        let told = shop.exec(
            "client-1",
            &[
                "dig",
                "+noall",
                "+answer",
                "+time=1",
                "+tries=1",
                "-x",
                &address.to_string(),
            ],
        );
        assert!(
            !told.stdout.contains("db"),
            "the name of {address} is told on front: {told:?}"
        );
    }

    // Who is on both networks has all of it.
    for url in [
        "http://db:5432/",
        "http://postgres:5432/",
        "http://postgres.back.weft.internal:5432/",
    ] {
        assert_eq!(shop.calls("api-3", url, 2), each(&["db-1"], 2));
    }
    for address in secret {
        assert_eq!(
            shop.calls("api-1", &format!("http://{address}:5432/"), 2),
            each(&["db-1"], 2)
        );
    }
    shop.down();
}
