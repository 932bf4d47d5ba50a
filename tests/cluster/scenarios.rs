//! Every kind of call to a service, from one table: who calls, over which protocol and IP version, by which scheduler.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, TcpStream, UdpSocket},
};

use netns_harness::{Host, Inside};

use super::{
    bed::{Bed, Endpoint, LOOK, alone, has_ebpf, items, soon, text, wait},
    traffic::{Answer, ask, call_at, datagrams_at},
};

const SCHEDULERS: [&str; 4] = ["rr", "wrr", "lc", "maglev"];
/// Calls of one scenario; weights of 3 and 1 come out even in it.
const CALLS: usize = 8;
/// By then the one with the lower weight has had one under `lc`.
const LATEST: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// Who calls what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// An endpoint on the host of a backend, the virtual address.
    BesideABackend,
    /// An endpoint on a host without backends, the virtual address.
    FromAfar,
    /// A backend, its own virtual address.
    Hairpin,
    /// Somebody outside, the port that a host without backends has published.
    Published,
    /// A host, its own published port.
    OnTheHost,
}

#[derive(Clone, Copy)]
struct Scenario {
    scheduler: &'static str,
    protocol: Protocol,
    way: Way,
    ipv6: bool,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.ipv6 { "IPv6" } else { "IPv4" };
        write!(
            f,
            "{}, {:?} over {version}, {:?}",
            self.scheduler, self.protocol, self.way
        )
    }
}

fn all() -> Vec<Scenario> {
    let ways = [
        Way::BesideABackend,
        Way::FromAfar,
        Way::Hairpin,
        Way::Published,
        Way::OnTheHost,
    ];
    let mut scenarios = Vec::new();
    for scheduler in SCHEDULERS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for way in ways {
                scenarios.extend([false, true].map(|ipv6| Scenario {
                    scheduler,
                    protocol,
                    way,
                    ipv6,
                }));
            }
        }
    }
    scenarios
}

/// Three hosts, a service for each scheduler with backends on two of them, and whoever calls.
struct World {
    bed: Bed,
    outside: Host,
    beside: Endpoint,
    afar: Endpoint,
    backends: BTreeMap<&'static str, [Endpoint; 2]>,
    vips: BTreeMap<&'static str, Vec<IpAddr>>,
}

/// A call that is open until this is dropped.
struct Called {
    answer: Answer,
    /// Whom the backend must have seen.
    known: Option<IpAddr>,
    _open: Open,
}

#[expect(dead_code, reason = "they are held")]
enum Open {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Called {
    fn make(
        protocol: Protocol,
        from: &impl Inside,
        (to, port): (IpAddr, u16),
        known: Option<IpAddr>,
    ) -> io::Result<Self> {
        let (answer, _open) = match protocol {
            Protocol::Tcp => {
                let call = call_at(from, to, port)?;
                (call.answer, Open::Tcp(call.stream))
            }
            Protocol::Udp => {
                let socket = datagrams_at(from, to, port);
                (ask(&socket)?, Open::Udp(socket))
            }
        };
        Ok(Self { answer, known, _open })
    }
}

/// Where a service is published.
fn published(scheduler: &str, protocol: Protocol) -> u16 {
    let nth = SCHEDULERS.iter().position(|one| *one == scheduler).unwrap() as u16;
    match protocol {
        Protocol::Tcp => 8100 + nth,
        Protocol::Udp => 8200 + nth,
    }
}

fn of_version(addresses: &[IpAddr], ipv6: bool) -> IpAddr {
    let right = |address: &&IpAddr| address.is_ipv6() == ipv6;
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    *addresses
        .iter()
        .filter(right)
        .find(|address| !link_local(address))
        .unwrap()
}

fn underlay(host: &Host, ipv6: bool) -> IpAddr {
    let nets = host.interface("eth0").unwrap().addresses().unwrap();
    of_version(&nets.iter().map(ipnet::IpNet::addr).collect::<Vec<_>>(), ipv6)
}

impl World {
    fn new(datapath: &'static str) -> Self {
        let bed = Bed::dual_cluster_with(datapath, &["h1", "h2", "h3"]);
        let outside = bed.outsider("outside");
        bed["h1"].weft("network create --ipv6 app");
        let (mut backends, mut vips) = (BTreeMap::new(), BTreeMap::new());
        for scheduler in SCHEDULERS {
            let [tcp, udp] = [Protocol::Tcp, Protocol::Udp].map(|protocol| published(scheduler, protocol));
            bed["h1"].weft(&format!(
                "service create --network app --lb {scheduler} --port 80:8000 --port 53:8000/udp \
                 --publish {tcp}:80 --publish {udp}:53/udp {scheduler}"
            ));
            let pair = [("h1", 3), ("h2", 1)].map(|(host, weight)| {
                let flags = format!("--service {scheduler} --weight {weight}");
                bed[host].replica(&format!("{scheduler}-{host}"), "app", &flags)
            });
            backends.insert(scheduler, pair);
            let detail = bed["h1"].json(&format!("service inspect {scheduler}"));
            vips.insert(
                scheduler,
                items(&detail["vips"])
                    .map(|vip| text(vip).parse().unwrap())
                    .collect(),
            );
        }
        let beside = bed["h1"].connected("beside", "app", "");
        let afar = bed["h3"].connected("afar", "app", "");
        Self {
            bed,
            outside,
            beside,
            afar,
            backends,
            vips,
        }
    }

    /// One call.
    fn call(&self, scenario: Scenario) -> io::Result<Called> {
        let Scenario {
            scheduler,
            protocol,
            ipv6,
            ..
        } = scenario;
        let endpoint = match scenario.way {
            Way::BesideABackend => &self.beside,
            Way::FromAfar => &self.afar,
            Way::Hairpin => &self.backends[scheduler][0],
            Way::Published | Way::OnTheHost => return self.call_published(scenario),
        };
        let (vip, from) = (of_version(&self.vips[scheduler], ipv6), &endpoint.sandbox);
        let known = of_version(&endpoint.addresses, ipv6);
        Called::make(
            protocol,
            from,
            (vip, if protocol == Protocol::Tcp { 80 } else { 53 }),
            Some(known),
        )
    }

    fn call_published(&self, scenario: Scenario) -> io::Result<Called> {
        let Scenario {
            scheduler,
            protocol,
            way,
            ipv6,
        } = scenario;
        let entry = &self.bed["h3"].host;
        let from = if way == Way::OnTheHost {
            entry
        } else {
            &self.outside
        };
        // Whom backends on other hosts see then is documented, and tested with published ports.
        Called::make(
            protocol,
            from,
            (underlay(entry, ipv6), published(scheduler, protocol)),
            None,
        )
    }

    fn check(&self, scenario: Scenario) -> Result<(), String> {
        let Scenario {
            scheduler, protocol, ..
        } = scenario;
        let [near, far] = ["h1", "h2"].map(|host| format!("{}-{host}", scenario.scheduler));
        let mut answered = BTreeMap::new();
        let mut open = Vec::new();
        // nf_tables places by counts that are a moment old: the longer, the less processor it gets.
        let is_late = |n: usize, answered: &BTreeMap<String, usize>| {
            let is_lc = scheduler == "lc" && protocol == Protocol::Tcp;
            is_lc && n < LATEST && !answered.contains_key(&far)
        };
        for n in 0.. {
            if n >= CALLS {
                if !is_late(n, &answered) {
                    break;
                }
                wait(LOOK);
            }
            let called = self
                .call(scenario)
                .map_err(|error| format!("call {n}: {error}"))?;
            let Answer { name, seen } = &called.answer;
            if called
                .known
                .is_some_and(|known| seen.ip().to_canonical() != known)
            {
                return Err(format!("{name} saw {seen}"));
            }
            *answered.entry(name.clone()).or_insert(0_usize) += 1;
            open.push(called);
        }
        let names: BTreeSet<&String> = answered.keys().collect();
        let counts: Vec<usize> = [&near, &far]
            .map(|name| answered.get(name).copied().unwrap_or(0))
            .into();
        let right = names.iter().all(|name| [&near, &far].contains(name))
            && match scenario.scheduler {
                "rr" => counts == [CALLS / 2, CALLS / 2],
                "wrr" => counts == [CALLS * 3 / 4, CALLS / 4],
                // Conversations over UDP of scenarios before this one still count, until they have been silent for long enough.
                "lc" if scenario.protocol == Protocol::Udp => counts[0] > 0,
                "lc" => counts[0] > counts[1] && counts[1] > 0,
                "maglev" => names.len() == 1,
                other => panic!("{other}"),
            };
        if right {
            Ok(())
        } else {
            Err(format!("{answered:?}"))
        }
    }
}

fn every_scenario(datapath: &'static str) {
    let world = World::new(datapath);
    for scheduler in SCHEDULERS {
        let scenario = Scenario {
            scheduler,
            protocol: Protocol::Tcp,
            way: Way::FromAfar,
            ipv6: false,
        };
        soon(format!("{scheduler} is ready"), || world.check(scenario));
    }
    let failures: Vec<String> = all()
        .into_iter()
        .filter_map(|scenario| Some(format!("{scenario}: {}", world.check(scenario).err()?)))
        .collect();
    assert!(failures.is_empty(), "{datapath}:\n{}", failures.join("\n"));
    let World {
        bed,
        backends,
        beside,
        afar,
        ..
    } = world;
    bed.all_well();
    drop((backends, beside, afar));
    bed.close();
}

#[test]
fn every_way_to_call_a_service_works_on_nft() {
    alone(|| every_scenario("nft"));
}

#[test]
fn every_way_to_call_a_service_works_on_ebpf() {
    alone(|| {
        if has_ebpf() {
            every_scenario("ebpf");
        }
    });
}
