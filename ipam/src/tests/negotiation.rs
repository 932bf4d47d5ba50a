use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::{
    Block, Grant, Negotiation, NegotiationError, Outcome, Patience, Refusal, Reply, Request, Step, Want, Why,
};

const ME: u8 = 0;
const PATIENCE: Patience = Patience {
    each: Duration::from_secs(1),
    overall: Duration::from_secs(5),
};

struct Case {
    start: Instant,
    talk: Negotiation<u8>,
}

fn case(want: Want, ask: impl IntoIterator<Item = u8>) -> Case {
    let start = Instant::now();
    Case {
        start,
        talk: Negotiation::new(ME, 7, want, ask, PATIENCE, start),
    }
}

fn some() -> Want {
    Want::Any { within: None }
}

fn grant(to: u8) -> Grant<u8> {
    Grant {
        block: Block::single(3),
        from: 9,
        to,
        version: 1,
    }
}

impl Case {
    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// Polls and expects a question to `node`.
    fn asks(&mut self, millis: u64, node: u8) {
        let step = self.talk.poll(self.at(millis));
        assert!(
            matches!(&step, Step::Ask { node: asked, .. } if *asked == node),
            "{step:?}, not {node}"
        );
    }

    fn waits(&mut self, millis: u64, until: u64) {
        assert_eq!(self.talk.poll(self.at(millis)), Step::Wait(self.at(until)));
    }

    fn fails(&mut self, millis: u64, owners: &[(u8, Why)]) {
        let error = NegotiationError {
            owners: owners.to_vec(),
        };
        assert_eq!(self.talk.poll(self.at(millis)), Step::Failed(error));
    }

    fn hears(&mut self, from: u8, outcome: Outcome<u8>) -> Vec<Grant<u8>> {
        self.talk.handle_reply(from, Reply { id: 7, outcome })
    }
}

#[test]
fn the_first_owner_that_grants_ends_it() {
    let mut case = case(some(), [1, 2]);
    let request = Request { id: 7, want: some() };
    assert_eq!(case.talk.poll(case.start), Step::Ask { node: 1, request });
    case.waits(0, 1000);
    assert_eq!(case.hears(1, Outcome::Granted(vec![grant(ME)])), [grant(ME)]);
    assert_eq!(case.talk.poll(case.at(10)), Step::Done);
}

#[test]
fn a_refusal_leads_to_the_next_and_the_error_names_them_all() {
    let mut case = case(some(), [1, 2, 3, ME, 2]);
    case.asks(0, 1);
    case.hears(1, Outcome::Refused(Refusal::NoSpace));
    case.asks(1, 2);
    case.talk.handle_unreachable(2);
    case.talk.handle_unreachable(3);
    let owners = [
        (1, Why::Refused(Refusal::NoSpace)),
        (2, Why::Unreachable),
        (3, Why::Unreachable),
    ];
    case.fails(2, &owners);
    case.fails(3, &owners);
    let error = NegotiationError {
        owners: owners.to_vec(),
    };
    let text = "no owner granted it: 1 has no free number there, 2 is not reachable, 3 is not reachable";
    assert_eq!(error.to_string(), text);
}

#[test]
fn whom_an_owner_names_is_asked_next_even_when_asked_before() {
    let mut case = case(some(), [1, 2, 3]);
    case.asks(0, 1);
    case.hears(1, Outcome::Refused(Refusal::NoSpace));
    case.asks(0, 2);
    case.hears(2, Outcome::Elsewhere(vec![8, 1]));
    case.asks(0, 8);
    case.hears(8, Outcome::Elsewhere(vec![8, ME]));
    case.asks(0, 1);
    assert_eq!(case.hears(1, Outcome::Granted(vec![grant(ME)])), [grant(ME)]);
    assert_eq!(case.talk.poll(case.at(0)), Step::Done);
}

#[test]
fn a_silent_owner_is_asked_again_after_the_others_and_a_late_answer_counts() {
    let mut case = case(some(), [1, 2]);
    case.asks(0, 1);
    case.asks(1000, 2);
    case.asks(2000, 1);
    case.asks(3000, 2);
    assert_eq!(case.hears(1, Outcome::Granted(vec![grant(ME)])), [grant(ME)]);
    assert_eq!(case.talk.poll(case.at(3001)), Step::Done);
}

#[test]
fn silence_is_answered_by_one_more_question_and_not_by_two() {
    let mut case = case(some(), [1, 2]);
    case.asks(0, 1);
    case.asks(1000, 2);
    // Who is being asked is not put before itself, and nobody sends anybody to itself.
    case.hears(1, Outcome::Elsewhere(vec![2, 1]));
    case.waits(1500, 2000);
    case.asks(2000, 2);
    case.fails(3000, &[(1, Why::Elsewhere), (2, Why::Silent)]);
}

#[test]
fn what_answers_another_question_or_nobody_asked_for_is_no_answer() {
    let mut case = case(some(), [1, 2]);
    case.asks(0, 1);
    let other = Reply {
        id: 6,
        outcome: Outcome::Granted(vec![grant(ME)]),
    };
    assert_eq!(case.talk.handle_reply(1, other), [grant(ME)]);
    case.waits(10, 1000);
    case.hears(2, Outcome::Granted(Vec::new()));
    case.waits(10, 1000);
    case.talk.handle_unreachable(9);
    case.hears(1, Outcome::Refused(Refusal::NoSpace));
    case.asks(20, 2);
    case.talk.handle_unreachable(2);
    case.fails(30, &[(1, Why::Refused(Refusal::NoSpace)), (2, Why::Unreachable)]);
}

#[test]
fn the_overall_deadline_ends_it() {
    let mut case = case(some(), 1..=9);
    for (at, node) in [(0, 1), (1000, 2), (2000, 3), (3000, 4), (4000, 5)] {
        case.asks(at, node);
    }
    case.waits(4500, 5000);
    let silent = (1..=5).map(|node| (node, Why::Silent));
    let owners: Vec<_> = silent
        .chain(
            (6..=9)
                .chain(1..=4)
                .filter(|n| *n > 5)
                .map(|n| (n, Why::NotAsked)),
        )
        .collect();
    case.fails(5000, &owners);
}

#[test]
fn grants_are_taken_even_when_all_is_over() {
    let mut case = case(some(), [1]);
    case.asks(0, 1);
    case.fails(5000, &[(1, Why::Silent)]);
    assert_eq!(case.hears(1, Outcome::Granted(vec![grant(ME)])), [grant(ME)]);
    let other = Reply {
        id: 6,
        outcome: Outcome::Granted(vec![grant(ME)]),
    };
    assert_eq!(case.talk.handle_reply(4, other), [grant(ME)]);
    case.fails(5001, &[(1, Why::Silent)]);
}

#[test]
fn every_owner_of_a_block_must_give_its_part() {
    let want = || Want::Block(Block::new(0, 3).unwrap());
    let mut good = case(want(), [1, 2]);
    good.asks(0, 1);
    good.hears(1, Outcome::Granted(vec![grant(ME)]));
    good.asks(0, 2);
    good.hears(2, Outcome::Elsewhere(vec![3]));
    good.asks(0, 3);
    good.hears(3, Outcome::Granted(vec![grant(ME)]));
    assert_eq!(good.talk.poll(good.start), Step::Done);

    let mut bad = case(want(), [1, 2, 3]);
    bad.asks(0, 1);
    bad.hears(1, Outcome::Granted(vec![grant(ME)]));
    bad.asks(0, 2);
    bad.hears(2, Outcome::Refused(Refusal::InUse(5)));
    bad.fails(0, &[(2, Why::Refused(Refusal::InUse(5))), (3, Why::NotAsked)]);

    let mut away = case(want(), [1, 2]);
    away.asks(0, 1);
    away.hears(1, Outcome::Granted(vec![grant(ME)]));
    away.talk.handle_unreachable(2);
    away.fails(0, &[(2, Why::Unreachable)]);
}

#[test]
fn nobody_to_ask_is_a_failure_at_once() {
    case(some(), []).fails(0, &[]);
    assert_eq!(
        NegotiationError::<u8> { owners: vec![] }.to_string(),
        "no owner granted it: no other node owns any"
    );
}

#[test]
fn the_messages_survive_the_wire() {
    let request = Request {
        id: u64::MAX,
        want: Want::Any {
            within: Some(1..=u128::MAX),
        },
    };
    let bytes = postcard::to_stdvec(&request).unwrap();
    assert_eq!(postcard::from_bytes::<Request>(&bytes).unwrap(), request);
    // The fullest answer: twelve grants between nodes of 32 bytes each.
    let block = Block::new(u128::MAX, 0).unwrap();
    let grant = Grant {
        block,
        from: [7u8; 32],
        to: [8u8; 32],
        version: u64::MAX,
    };
    let reply = Reply {
        id: u64::MAX,
        outcome: Outcome::Granted(vec![grant; 12]),
    };
    let bytes = postcard::to_stdvec(&reply).unwrap();
    assert!(bytes.len() < 1200, "{} bytes do not fit a packet", bytes.len());
    assert_eq!(postcard::from_bytes::<Reply<[u8; 32]>>(&bytes).unwrap(), reply);
}

#[derive(Debug, Clone)]
enum Event {
    Reply(u8, Outcome<u8>),
    Unreachable(u8),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        prop::collection::vec(0u8..6, 0..4).prop_map(Outcome::Elsewhere),
        Just(Outcome::Refused(Refusal::NoSpace)),
        Just(Outcome::Granted(vec![grant(ME)])),
    ];
    prop_oneof![
        4 => (0u8..6, outcome).prop_map(|(from, outcome)| Event::Reply(from, outcome)),
        1 => (0u8..6).prop_map(Event::Unreachable),
        3 => (0u64..1500).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn it_ends_in_time_whatever_is_answered(
        events in prop::collection::vec(event(), 0..40), block in prop::bool::ANY,
    ) {
        let want = if block { Want::Block(Block::single(3)) } else { some() };
        let mut case = case(want, [1, 2, 3]);
        let (mut now, mut asks) = (case.start, [0; 6]);
        for event in events {
            match event {
                Event::Reply(from, outcome) => drop(case.hears(from, outcome)),
                Event::Unreachable(node) => case.talk.handle_unreachable(node),
                Event::Pass(millis) => now += Duration::from_millis(millis),
            }
            match case.talk.poll(now) {
                Step::Ask { node, .. } => {
                    asks[usize::from(node)] += 1;
                    prop_assert_ne!(node, ME);
                }
                Step::Wait(until) => prop_assert!(now < until && until <= case.start + PATIENCE.overall),
                Step::Done | Step::Failed(_) => {}
            }
        }
        prop_assert!(asks.iter().all(|asks| *asks <= 3), "{:?} questions to each node", asks);
        let end = case.talk.poll(case.start + PATIENCE.overall);
        prop_assert!(matches!(end, Step::Done | Step::Failed(_)));
    }
}
