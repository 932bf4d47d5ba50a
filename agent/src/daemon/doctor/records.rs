//! What the cluster remembers, and whether all remember the same.

use crate::{
    api::types::{DoctorCheck, DoctorTopic, NodeState},
    control::doctor::{Expected, Peer, PeerView},
};

/// Clocks that differ by more make join tokens expire too early or too late.
const MAX_SKEW_MILLIS: u64 = 30_000;

pub(super) fn judge(expected: &Expected) -> Vec<DoctorCheck> {
    let mut checks = Vec::new();
    let here = &expected.node;
    if expected.doubles.is_empty() {
        let sentence = "no two endpoints have an address in common";
        checks.push(DoctorCheck::ok(DoctorTopic::Records, here, sentence));
    }
    for double in &expected.doubles {
        let check = DoctorCheck::wrong(DoctorTopic::Records, here, double);
        checks.push(
            check
                .because("the same address was asked for by number on two sides of a partition")
                .with_help(
                    "disconnect one of them and connect it again, with another address or with any that is free",
                ),
        );
    }
    let known = |problem: &String| DoctorCheck::wrong(DoctorTopic::Records, here, problem);
    checks.extend(expected.problems.iter().map(known));
    for peer in &expected.peers {
        checks.extend(judge_peer(peer));
    }
    checks
}

fn judge_peer(peer: &Peer) -> Vec<DoctorCheck> {
    let name = &peer.name;
    let wrong = |sentence: String| DoctorCheck::wrong(DoctorTopic::Peers, name, sentence);
    let Some(said) = &peer.said else {
        let check = match peer.state {
            NodeState::Down => wrong(format!("{name} is down"))
                .because("its host, its agent or the way between is down")
                .with_help(format!(
                    "start it again, or remove it for good: `weft node rm --force {name}`"
                )),
            NodeState::Away => wrong(format!("the agent of {name} is away, its host is there"))
                .because("the agent was stopped or is starting")
                .with_help(format!("start the agent on {name}")),
            _ => wrong(format!("{name} counts as alive and does not answer"))
                .because("packets get lost between the two hosts, or its agent is overloaded")
                .with_help(format!("run `weft doctor` on {name} too")),
        };
        return vec![check];
    };
    let mut checks = vec![match said.agrees {
        true => DoctorCheck::ok(
            DoctorTopic::Peers,
            name,
            format!("{name} has the same records as this node"),
        ),
        false => wrong(format!("{name} has other records than this node"))
            .because("changes are on their way between them; if they stay so, packets of the size of 1,400 bytes get lost")
            .with_help("run it again in a few seconds; `weft events` shows whether something changes all the time"),
    }];
    let problem = |problem: &String| wrong(format!("{name} says: {problem}"));
    checks.extend(said.problems.iter().map(problem));
    checks.push(judge_clock(name, said));
    checks
}

fn judge_clock(name: &str, said: &PeerView) -> DoctorCheck {
    let ahead = said.ahead_millis;
    let seconds = ahead.unsigned_abs() as f64 / 1000.0;
    let by = if ahead > 0 { "ahead of" } else { "behind" };
    let sentence = format!("the clock of {name} is {seconds:.1} s {by} this node's");
    if ahead.unsigned_abs() <= MAX_SKEW_MILLIS {
        return DoctorCheck::ok(DoctorTopic::Clock, name, sentence);
    }
    DoctorCheck::wrong(DoctorTopic::Clock, name, sentence)
        .because("one of the two hosts does not keep its clock by NTP")
        .with_help("nothing but the expiry of join tokens depends on clocks; set it, so that those and logs are right")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::DoctorVerdict;

    fn peer(state: NodeState, said: Option<PeerView>) -> Peer {
        Peer {
            name: "h2".to_owned(),
            vtep: [10, 0, 0, 2].into(),
            state,
            said,
        }
    }

    fn wrong(checks: &[DoctorCheck]) -> Vec<&str> {
        let wrong = checks
            .iter()
            .filter(|check| check.verdict == DoctorVerdict::Wrong);
        wrong.map(|check| check.sentence.as_str()).collect()
    }

    #[test]
    fn a_peer_is_judged_by_what_it_says() {
        let said = PeerView {
            agrees: true,
            ahead_millis: -1_500,
            problems: Vec::new(),
        };
        let checks = judge_peer(&peer(NodeState::Alive, Some(said.clone())));
        assert_eq!(wrong(&checks), [""; 0]);
        assert_eq!(checks[1].sentence, "the clock of h2 is 1.5 s behind this node's");
        let said = PeerView {
            agrees: false,
            ahead_millis: 31_000,
            problems: vec!["it burns".to_owned()],
        };
        assert_eq!(
            wrong(&judge_peer(&peer(NodeState::Alive, Some(said)))),
            [
                "h2 has other records than this node",
                "h2 says: it burns",
                "the clock of h2 is 31.0 s ahead of this node's"
            ]
        );
    }

    #[test]
    fn a_peer_that_says_nothing_is_judged_by_its_state() {
        let sentence = |state| judge_peer(&peer(state, None)).remove(0).sentence;
        assert_eq!(sentence(NodeState::Down), "h2 is down");
        assert_eq!(
            sentence(NodeState::Alive),
            "h2 counts as alive and does not answer"
        );
    }

    #[test]
    fn what_the_records_contradict_is_wrong_and_nothing_else_is_right_beside_it() {
        let mut expected = Expected {
            node: "h1".to_owned(),
            ..Expected::default()
        };
        assert_eq!(judge(&expected).len(), 1);
        assert_eq!(wrong(&judge(&expected)), [""; 0]);
        expected.doubles = vec!["10.0.0.2 twice".to_owned()];
        expected.problems = vec!["it burns".to_owned()];
        assert_eq!(wrong(&judge(&expected)), ["10.0.0.2 twice", "it burns"]);
        assert_eq!(judge(&expected).len(), 2);
    }
}
