//! The way to other hosts: whether they answer, and how long a packet may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use weft_netlink::{
    icmp::{Echo, Unanswered, ping},
    netns::Netns,
};
use weft_overlay::{encrypted_overhead, overhead};

use super::PATIENCE;
use crate::{
    api::types::{DoctorCheck, DoctorTopic, DoctorVerdict, NodeState},
    control::doctor::{Expected, NetworkView, Peer},
    daemon::host::sentence,
};

/// What is tried below the length that is needed, to say how long a packet may be: common links and tunnels.
const LENGTHS: [usize; 14] = [
    8950, 1500, 1492, 1480, 1460, 1450, 1440, 1420, 1400, 1380, 1350, 1280, 1000, 576,
];

/// Whether a packet came back, by its length in bytes; the first is the shortest there is.
pub(super) type Found = BTreeMap<IpAddr, Vec<(usize, Result<Duration, Unanswered>)>>;

/// Sends packets of several lengths to all peers.
pub(super) fn probe(expected: &Expected) -> Result<Found, String> {
    let peers: Vec<&Peer> = expected.peers.iter().filter(|peer| is_there(peer)).collect();
    let of_peer = |peer: &&Peer| {
        let needed = needed(expected, peer.vtep);
        let below = LENGTHS.into_iter().filter(move |len| Some(*len) < needed);
        let lengths = needed.into_iter().chain(below.filter(move |_| needed.is_some()));
        let long = lengths.map(|len| Echo::of(peer.vtep, len)).collect::<Vec<_>>();
        std::iter::once(Echo::short(peer.vtep)).chain(long)
    };
    let echoes: Vec<Echo> = peers.iter().flat_map(of_peer).collect();
    let netns = Netns::current().map_err(|error| sentence(&error))?;
    let answers = ping(&netns, &echoes, PATIENCE).map_err(|error| sentence(&error))?;
    let mut found = Found::new();
    for (echo, answer) in echoes.iter().zip(answers) {
        found.entry(echo.to).or_default().push((echo.len, answer));
    }
    Ok(found)
}

/// A host that is known to be down has been told of already.
fn is_there(peer: &Peer) -> bool {
    peer.state != NodeState::Down
}

/// The longest packet of a tunnel to this address.
fn needed(expected: &Expected, vtep: IpAddr) -> Option<usize> {
    let of_network = |network: &NetworkView| {
        let overhead = match network.encrypted {
            true => encrypted_overhead(vtep),
            false => overhead(vtep),
        };
        usize::from(network.mtu) + overhead as usize
    };
    expected.networks.iter().map(of_network).max()
}

/// Who answers at all.
pub(super) fn reached(found: &Found) -> BTreeSet<IpAddr> {
    let answers = |(_, answers): &(&IpAddr, &Vec<_>)| {
        answers
            .iter()
            .any(|(_, answer): &(usize, Result<_, _>)| answer.is_ok())
    };
    found.iter().filter(answers).map(|(vtep, _)| *vtep).collect()
}

pub(super) fn judge(expected: &Expected, found: &Found) -> Vec<DoctorCheck> {
    let peers = expected.peers.iter().filter(|peer| is_there(peer));
    let checks = peers.filter_map(|peer| Some(judge_peer(expected, peer, found.get(&peer.vtep)?)));
    checks.collect()
}

fn judge_peer(
    expected: &Expected,
    peer: &Peer,
    answers: &[(usize, Result<Duration, Unanswered>)],
) -> DoctorCheck {
    let Peer { name, vtep, .. } = peer;
    let fits = answers.iter().filter(|(_, answer)| answer.is_ok());
    let longest = fits.clone().map(|(len, _)| *len).max();
    let wrong = |sentence| DoctorCheck::wrong(DoctorTopic::Underlay, name, sentence);
    let Some(longest) = longest else {
        let check = wrong(format!("{name} ({vtep}) does not answer echo requests"));
        if peer.said.is_some() {
            return check
                .because("a firewall drops them: its agent answers, so the hosts do reach each other")
                .with_help(
                    "let ICMP pass between the hosts: without it nothing tells senders what is too long",
                )
                .judged(DoctorVerdict::Unknown);
        }
        return check
            .because("the host is down, or the way there is")
            .with_help(format!("see whether `ping {vtep}` works, and the routes to it"));
    };
    let needed = needed(expected, *vtep).unwrap_or(longest);
    if longest >= needed {
        let fastest = fits.filter_map(|(_, answer)| answer.as_ref().ok()).min();
        let millis = fastest.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        let sentence = match expected.networks.is_empty() {
            true => format!("{name} ({vtep}) answers within {millis:.2} ms"),
            false => {
                format!(
                    "{name} ({vtep}) answers within {millis:.2} ms, and packets of {needed} bytes pass whole"
                )
            }
        };
        return DoctorCheck::ok(DoctorTopic::Underlay, name, sentence);
    }
    let here = answers
        .iter()
        .any(|(_, answer)| *answer == Err(Unanswered::TooLong));
    let room = longest.saturating_sub(overhead(*vtep) as usize);
    let sentence = format!(
        "packets of {needed} bytes, which the networks make, do not pass to {name} ({vtep}); {longest} bytes do"
    );
    wrong(sentence)
        .because(match here {
            true => "the device of this host that leads there takes shorter packets than when the networks were made",
            false => "something between the hosts takes shorter packets, and drops longer ones without a word",
        })
        .with_help(format!(
            "let {needed} bytes pass between the hosts, or make the networks anew with `--opt mtu={room}`"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::doctor::PeerView, daemon::doctor::fixtures};

    fn expected() -> Expected {
        let said = PeerView {
            agrees: true,
            ahead_millis: 0,
            problems: Vec::new(),
        };
        Expected {
            peers: vec![Peer {
                name: "h2".to_owned(),
                vtep: [10, 0, 0, 2].into(),
                state: NodeState::Alive,
                said: Some(said),
            }],
            networks: vec![fixtures::network()],
            ..Expected::default()
        }
    }

    fn judged(answers: &[(usize, Result<Duration, Unanswered>)]) -> DoctorCheck {
        let found = [(IpAddr::from([10, 0, 0, 2]), answers.to_vec())].into();
        judge(&expected(), &found).remove(0)
    }

    const FAST: Result<Duration, Unanswered> = Ok(Duration::from_micros(120));

    #[test]
    fn what_networks_need_has_to_pass_whole() {
        let fine = judged(&[(36, FAST), (1500, FAST)]);
        assert_eq!(fine.verdict, DoctorVerdict::Ok);
        assert_eq!(
            fine.sentence,
            "h2 (10.0.0.2) answers within 0.12 ms, and packets of 1500 bytes pass whole"
        );
        let hole = judged(&[
            (36, FAST),
            (1500, Err(Unanswered::Silent)),
            (1420, FAST),
            (1400, FAST),
        ]);
        assert_eq!(hole.verdict, DoctorVerdict::Wrong);
        assert!(hole.sentence.ends_with("1420 bytes do"), "{hole:?}");
        assert!(hole.help.unwrap().ends_with("`--opt mtu=1370`"));
        assert!(hole.cause.unwrap().contains("between the hosts"));
        let own = judged(&[(36, FAST), (1500, Err(Unanswered::TooLong)), (1400, FAST)]);
        assert!(own.cause.unwrap().contains("of this host"));
    }

    #[test]
    fn silence_is_a_firewall_where_the_agent_answers() {
        let silent = [(36, Err(Unanswered::Silent)), (1500, Err(Unanswered::Silent))];
        assert_eq!(judged(&silent).verdict, DoctorVerdict::Unknown);
        let mut expected = expected();
        expected.peers[0].said = None;
        let found = [(IpAddr::from([10, 0, 0, 2]), silent.to_vec())].into();
        assert_eq!(judge(&expected, &found)[0].verdict, DoctorVerdict::Wrong);
        expected.peers[0].state = NodeState::Down;
        assert_eq!(judge(&expected, &found), []);
        assert!(reached(&found).is_empty());
    }
}
