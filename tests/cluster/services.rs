//! Names and virtual addresses, as programs in namespaces use them.

use std::{collections::BTreeSet, io, net::IpAddr, process::Command, sync::Arc};

use arc_swap::ArcSwap;
use netns_harness::{Host, Inside as _, Sandbox};
use weft_dns::{Asker, Forwarder, ForwarderConfig, NetworkZone, Server, Zone};
use weft_types::{EndpointId, NetworkId};

use super::{
    bed::{Bed, COMMAND, alone, items, soon, text},
    traffic::{Caller, all_go_on, ask, datagrams, spread},
};

const RESOLVER: &str = "169.254.53.53";

/// Asks the network's own resolver, and returns what `dig` prints.
fn dig(from: &Sandbox, words: &str) -> String {
    let mut command = Command::new("dig");
    command
        .args(["+time=2", "+tries=3", &format!("@{RESOLVER}")])
        .args(words.split_whitespace());
    from.exec(&mut command, COMMAND)
        .unwrap()
        .success()
        .unwrap()
        .stdout
}

/// The answers alone, in order.
fn short(from: &Sandbox, words: &str) -> BTreeSet<String> {
    dig(from, &format!("+short {words}"))
        .lines()
        .map(str::to_owned)
        .collect()
}

fn texts<T: ToString>(all: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    all.into_iter().map(|one| one.to_string()).collect()
}

/// A resolver on a host of its own.
pub struct Upstream {
    _runtime: tokio::runtime::Runtime,
    server: Server,
}

impl Upstream {
    /// One that knows `www.net.DOMAIN`.
    pub fn start(host: &Host, domain: &str, www: &str) -> Self {
        let bind = || {
            let address = ("0.0.0.0", 53);
            io::Result::Ok((
                std::net::UdpSocket::bind(address)?,
                std::net::TcpListener::bind(address)?,
            ))
        };
        let (udp, tcp) = host.run(bind).unwrap().unwrap();
        let network = NetworkId([1; 16]);
        let mut names = NetworkZone::new("net", false, Vec::new());
        let www = weft_dns::Endpoint {
            names: vec!["www".to_owned()],
            addresses: vec![www.parse().unwrap()],
        };
        names.set_endpoint(EndpointId([1; 16]), www);
        let mut zone = Zone::new(domain).unwrap();
        zone.set_network(network, names);
        let asker = Arc::new(move |_: IpAddr| Asker::on(vec![network]));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let forwarder = Forwarder::new(ForwarderConfig::default());
        let zone = Arc::new(ArcSwap::from_pointee(zone));
        let server = Server::spawn(udp, tcp, zone, asker, forwarder).unwrap();
        drop(_guard);
        Self {
            _runtime: runtime,
            server,
        }
    }

    /// How many questions came.
    pub fn asked(&self) -> u64 {
        self.server.counts().questions
    }
}

#[test]
fn names_resolve_and_virtual_addresses_balance() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let [h1, h2] = [&bed["h1"], &bed["h2"]];
        let outside = bed.outsider("outside");
        let upstream = Upstream::start(&outside, "example.test", "192.0.2.80");
        let address = outside.interface("eth0").unwrap().addresses().unwrap()[0].addr();
        h1.host
            .set_resolv_conf(&format!("nameserver {address}\n"))
            .unwrap();

        h1.weft("network create --ipv6 app");
        h1.weft("network create --internal inner");
        h1.weft("service create --network app web");
        h1.weft("service create --network app --endpoint-mode dnsrr db");
        bed.everywhere("both services", |node| {
            match items(&node.json("service ls")).count() {
                2 => Ok(()),
                count => Err(count),
            }
        });
        let webs = [
            h1.replica("web-1", "app", "--service web --alias both"),
            h2.replica("web-2", "app", "--service web --alias both --alias only"),
        ];
        let dbs = [
            h1.replica("db-1", "app", "--service db"),
            h2.replica("db-2", "app", "--service db"),
        ];
        let client = h1.connected("c", "app", "");
        let inner = h1.connected("i", "inner", "");
        let from = &client.sandbox;
        let detail = h1.json("service inspect web");
        let vips: Vec<IpAddr> = items(&detail["vips"])
            .map(|vip| text(vip).parse().unwrap())
            .collect();
        let [vip, vip6] = vips[..] else { panic!("{vips:?}") };
        let v4 = |all: &[super::bed::Endpoint]| texts(all.iter().map(|one| one.addresses[0]));
        soon("all backends in names", || {
            match short(from, "tasks.web.app.weft.internal") {
                found if found == v4(&webs) => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });

        // Over UDP and TCP alike.
        for tcp in ["+notcp", "+tcp"] {
            let short = |words: &str| short(from, &format!("{tcp} {words}"));
            assert_eq!(short("web.app.weft.internal"), texts([vip]));
            assert_eq!(short("web.app"), texts([vip]));
            assert_eq!(short("web"), texts([vip]));
            assert_eq!(short("AAAA web"), texts([vip6]));
            assert_eq!(short("tasks.web"), v4(&webs));
            assert_eq!(short("tasks.db"), v4(&dbs));
            assert_eq!(short("db"), v4(&dbs));
            assert_eq!(short("web-2"), texts([webs[1].addresses[0]]));
            assert_eq!(short("AAAA web-2"), texts([webs[1].addresses[1]]));
            assert_eq!(short("both"), v4(&webs));
            assert_eq!(short("only"), texts([webs[1].addresses[0]]));
            for (address, name) in [
                (webs[1].addresses[0], "web-2"),
                (webs[0].addresses[1], "web-1"),
                (vip, "web"),
            ] {
                let found = short(&format!("-x {address}"));
                assert!(
                    found.contains(&format!("{name}.app.weft.internal.")),
                    "{address}: {found:?}"
                );
            }
            let unknown = dig(from, &format!("{tcp} nosuch.app.weft.internal"));
            assert!(
                unknown.contains("status: NXDOMAIN") && unknown.contains("\tSOA\t"),
                "{unknown}"
            );
            // What is not ours is asked of the host's resolver, but never for an internal network.
            assert_eq!(short("www.net.example.test"), texts(["192.0.2.80"]));
            let refused = dig(&inner.sandbox, &format!("{tcp} www.net.example.test"));
            assert!(
                !refused.contains("192.0.2.80") && !refused.contains("NOERROR"),
                "{refused}"
            );
        }
        let hidden = dig(&inner.sandbox, "web.app.weft.internal");
        assert!(hidden.contains("NXDOMAIN"), "a name of another network: {hidden}");

        // A datagram reaches a backend with its own source, and the answer comes from the virtual address.
        for vip in [vip, vip6] {
            let names: BTreeSet<_> = (0..6)
                .map(|_| {
                    let socket = datagrams(from, vip);
                    let answer = ask(&socket).unwrap();
                    assert_eq!(answer.seen, socket.local_addr().unwrap());
                    answer.name
                })
                .collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
        // A backend is a client too, of itself among others.
        for web in &webs {
            for vip in [vip, vip6] {
                let spread = spread(&web.sandbox, vip, 4);
                assert!(
                    spread.len() == 2 && spread.values().all(|&n| n == 2),
                    "{spread:?}"
                );
            }
        }
        // The scheduler changes while calls go on.
        let callers = [Caller::start(from, vip), Caller::start(&webs[1].sandbox, vip)];
        for scheduler in ["lc", "wrr", "rr", "lc", "rr"] {
            h1.weft(&format!("service update --lb {scheduler} web"));
            all_go_on(&[], &callers, 15);
        }
        for caller in callers {
            let last = caller.last(12);
            let (_, failures) = caller.stop();
            assert_eq!(failures, Vec::<String>::new());
            assert_eq!(last.len(), 2, "{last:?}");
        }
        bed.all_well();
        drop((webs, dbs, upstream));
        bed.close();
    });
}
