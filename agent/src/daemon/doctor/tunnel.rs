//! The way to other endpoints of a network, as an endpoint of this host has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use weft_netlink::{
    icmp::{Echo, Unanswered, ping},
    netns::Netns,
};

use super::PATIENCE;
use crate::{
    api::types::{DoctorCheck, DoctorTopic},
    control::doctor::{Expected, Local, NetworkView},
    daemon::host::sentence,
};

/// Endpoints that are tried at most, of those on other hosts and of those here.
const MAX_TRIED: usize = 256;

/// An endpoint that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    name: String,
    /// Its host and its VTEP; `None` on this host.
    node: Option<(String, IpAddr)>,
    address: IpAddr,
    short: Result<Duration, Unanswered>,
    /// As long as the network allows.
    full: Result<Duration, Unanswered>,
}

/// Sends a short and a long packet to every other endpoint.
pub(super) fn probe(network: &NetworkView, here: &Local, netns: &Netns) -> Result<Vec<Tried>, String> {
    let remotes = network.remotes.iter().map(|remote| {
        let node = Some((remote.node.clone(), remote.vtep));
        (&remote.name, node, &remote.addresses)
    });
    let locals = network.locals.iter().filter(|local| *local != here);
    let locals = locals.map(|local| (&local.name, None, &local.addresses));
    let tried = remotes.take(MAX_TRIED).chain(locals.take(MAX_TRIED));
    let tried = tried.flat_map(|(name, node, addresses)| {
        addresses.iter().map(move |address| Tried {
            name: name.clone(),
            node: node.clone(),
            address: *address,
            short: Err(Unanswered::Silent),
            full: Err(Unanswered::Silent),
        })
    });
    let mut tried: Vec<Tried> = tried.collect();
    let echoes = tried.iter().flat_map(|tried| {
        [
            Echo::short(tried.address),
            Echo::of(tried.address, usize::from(network.mtu)),
        ]
    });
    let echoes: Vec<Echo> = echoes.collect();
    let mut answers = ping(netns, &echoes, PATIENCE)
        .map_err(|error| sentence(&error))?
        .into_iter();
    for tried in &mut tried {
        if let (Some(short), Some(full)) = (answers.next(), answers.next()) {
            (tried.short, tried.full) = (short, full);
        }
    }
    Ok(tried)
}

pub(super) fn judge(
    network: &NetworkView,
    here: &Local,
    expected: &Expected,
    found: &[Tried],
    reached: &BTreeSet<IpAddr>,
) -> Vec<DoctorCheck> {
    let is_wrong = |tried: &&Tried| tried.short.is_err() || tried.full.is_err();
    let wrong: Vec<&Tried> = found.iter().filter(is_wrong).collect();
    let fine = found.len() - wrong.len();
    let mut checks = Vec::new();
    if fine > 0 {
        let sentence = format!(
            "{fine} address(es) of other endpoints answer `{}`, also in packets of {} bytes",
            here.name, network.mtu
        );
        checks.push(DoctorCheck::ok(DoctorTopic::Tunnel, &network.name, sentence));
    }
    // What is wrong with a whole host is said once.
    let mut alike: BTreeMap<_, Vec<&Tried>> = BTreeMap::new();
    for tried in wrong {
        let own = tried.node.is_none().then_some(tried.address);
        alike
            .entry((&tried.node, own, tried.short.is_ok()))
            .or_default()
            .push(tried);
    }
    for tried in alike.into_values() {
        let Some(check) = judge_one(network, here, expected, tried[0], reached) else {
            continue;
        };
        checks.push(match (&tried[0].node, tried.len() - 1) {
            (Some((node, _)), more @ 1..) => DoctorCheck {
                sentence: format!(
                    "{}; {more} more address(es) on {node} do not either",
                    check.sentence
                ),
                ..check
            },
            _ => check,
        });
    }
    checks
}

/// What is wrong with the way to one endpoint, if something is.
fn judge_one(
    network: &NetworkView,
    here: &Local,
    expected: &Expected,
    tried: &Tried,
    reached: &BTreeSet<IpAddr>,
) -> Option<DoctorCheck> {
    let Tried {
        name, node, address, ..
    } = tried;
    let subject = match node {
        Some((node, _)) => format!("{}: `{name}` on {node}", network.name),
        None => format!("{}: `{name}`", network.name),
    };
    let wrong = |sentence| DoctorCheck::wrong(DoctorTopic::Tunnel, &subject, sentence);
    match (&tried.short, &tried.full) {
        (Ok(_), Ok(_)) => None,
        (Ok(_), Err(reason)) => {
            let sentence = format!(
                "`{name}` ({address}) answers `{}` in short packets and not in those of {} bytes, which the network allows: {reason}",
                here.name, network.mtu
            );
            let check = wrong(sentence).because(match node {
                Some(_) => "the underlay drops what the tunnel makes of them: its MTU is smaller than when the network was made",
                None => "the interface of one of the two has a smaller MTU than the network",
            });
            Some(check.with_help(match node {
                Some(_) => "the checks of the underlay say how long a packet may be; raise its MTU, or make the network with a smaller one",
                None => "`weft doctor --fix` gives interfaces the network's MTU again",
            }))
        }
        (Err(reason), _) => {
            let sentence = format!("`{name}` ({address}) does not answer `{}`: {reason}", here.name);
            let check = wrong(sentence);
            Some(match node {
                None => check
                    .because("a firewall within the endpoint drops echo requests, or its interface is down")
                    .with_help(format!("`weft why {name}` shows the way there")),
                Some((node, vtep)) if !reached.contains(vtep) => check
                    .because(format!("this host does not reach {node} ({vtep}) either"))
                    .with_help("the checks of the underlay say more"),
                Some((node, _)) if network.encrypted => check
                    .because(format!(
                        "the encrypted tunnel to {node} is not up, or a firewall within the endpoint drops echo requests"
                    ))
                    .with_help(format!("`weft node inspect {node}` says when its last handshake was")),
                Some((node, vtep)) => check
                    .because(format!(
                        "UDP port {} is blocked between this host and {node} ({vtep}), in one direction at least, or a firewall within the endpoint drops echo requests",
                        expected.vxlan_port
                    ))
                    .with_help(format!(
                        "let UDP port {} pass both ways; `weft doctor` on {node} and `weft why {name}` show more",
                        expected.vxlan_port
                    )),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::types::DoctorVerdict, daemon::doctor::fixtures};

    const OK: Result<Duration, Unanswered> = Ok(Duration::from_millis(1));

    fn judged(tried: &[Tried], reached: &[IpAddr]) -> Vec<DoctorCheck> {
        let expected = Expected {
            vxlan_port: 4789,
            ..Expected::default()
        };
        judge(
            &fixtures::network(),
            &fixtures::local(),
            &expected,
            tried,
            &reached.iter().copied().collect(),
        )
    }

    fn remote(short: Result<Duration, Unanswered>, full: Result<Duration, Unanswered>) -> Tried {
        Tried {
            name: "web-2".to_owned(),
            node: Some(("h2".to_owned(), [10, 0, 0, 2].into())),
            address: [10, 9, 0, 2].into(),
            short,
            full,
        }
    }

    #[test]
    fn each_kind_of_silence_has_its_cause() {
        let vtep = [10, 0, 0, 2].into();
        let cause = |tried, reached: &[IpAddr]| judged(&[tried], reached).remove(0).cause.unwrap_or_default();
        assert_eq!(judged(&[remote(OK, OK)], &[vtep])[0].verdict, DoctorVerdict::Ok);
        assert!(cause(remote(OK, Err(Unanswered::Silent)), &[vtep]).contains("MTU is smaller"));
        let silent = || remote(Err(Unanswered::Silent), Err(Unanswered::Silent));
        assert!(cause(silent(), &[vtep]).contains("UDP port 4789"));
        assert!(cause(silent(), &[]).contains("does not reach h2"));
        let local = Tried {
            node: None,
            ..silent()
        };
        assert!(cause(local, &[]).contains("within the endpoint"));
    }

    #[test]
    fn what_is_wrong_with_a_whole_host_is_said_once() {
        let silent = || remote(Err(Unanswered::Silent), Err(Unanswered::Silent));
        let other = Tried {
            node: Some(("h3".to_owned(), [10, 0, 0, 3].into())),
            ..silent()
        };
        let long = remote(OK, Err(Unanswered::Silent));
        let checks = judged(&[silent(), remote(OK, OK), silent(), silent(), other, long], &[]);
        let said: Vec<&str> = checks.iter().map(|check| check.sentence.as_str()).collect();
        assert_eq!(
            said,
            [
                "1 address(es) of other endpoints answer `a`, also in packets of 1450 bytes",
                "`web-2` (10.9.0.2) does not answer `a`: no answer; 2 more address(es) on h2 do not either",
                "`web-2` (10.9.0.2) answers `a` in short packets and not in those of 1450 bytes, which the network \
                 allows: no answer",
                "`web-2` (10.9.0.2) does not answer `a`: no answer",
            ]
        );
    }
}
