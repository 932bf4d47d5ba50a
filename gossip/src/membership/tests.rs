use rand::SeedableRng;

use super::*;
use crate::hearsay::Said;

fn id(node: u64, generation: u64) -> Id {
    Id {
        node: Short(node.to_be_bytes()),
        generation,
    }
}

#[test]
fn a_node_with_a_new_generation_goes_on_probing_although_nobody_talks_to_it() {
    let begin = Instant::now();
    let mut membership = Membership::new(id(1, 1 << 16), ChaCha12Rng::from_seed([0; 32]));
    membership.alive(id(2, 0).node, 1 << 16, begin);
    assert!(membership.renew(1 << 16, begin));
    let mut changed = membership.take_changes(begin);
    while let Some(due) = membership
        .next_due()
        .filter(|due| *due < begin + Duration::from_secs(10))
    {
        membership.handle_timeout(due);
        changed = [changed, membership.take_changes(due)].concat();
    }
    let other = id(2, 0).node;
    assert_eq!(changed, [other; 3], "known, suspected, down");
    assert_eq!(membership.liveness(other), Liveness::Down(1 << 16));
}

#[test]
fn members_that_change_together_are_all_noticed() {
    let now = Instant::now();
    let mut membership = Membership::new(id(1, 1 << 16), ChaCha12Rng::from_seed([0; 32]));
    let nodes: Vec<Short> = (2..66).map(|bit| id(1 << (bit - 2) | 1, 0).node).collect();
    for generation in [1 << 16, (1 << 16) + 1, (1 << 16) + 2] {
        for pair in nodes[1..].chunks(2) {
            for node in pair {
                membership.alive(*node, generation, now);
            }
            let changed = membership.take_changes(now);
            assert!(pair.iter().all(|node| changed.contains(node)), "{changed:?}");
            for node in pair {
                assert_eq!(membership.liveness(*node), Liveness::Active(generation));
            }
        }
    }
    assert_eq!(membership.take_changes(now), Vec::new());
}

#[test]
fn the_larger_a_cluster_the_longer_a_suspect_has() {
    let of = |members| {
        let pace = timers::pace(members);
        (pace.answer.as_millis(), pace.suspicion.as_millis())
    };
    for (members, expected) in [
        (1, (150, 1_200)),
        (16, (150, 1_200)),
        (17, (200, 2_000)),
        (64, (200, 2_000)),
        (65, (250, 2_400)),
        (512, (250, 2_400)),
        (513, (300, 3_000)),
        (10_000, (300, 3_000)),
    ] {
        assert_eq!(of(members), expected, "{members}");
    }
}

#[test]
fn who_was_starved_allows_others_the_more_time_the_longer_it_was_and_gets_well() {
    let begin = Instant::now();
    let other = id(2, 1 << 16).node;
    let make = || {
        let mut membership = Membership::new(id(1, 1 << 16), ChaCha12Rng::from_seed([0; 32]));
        membership.alive(other, 1 << 16, begin);
        membership.take_changes(begin);
        membership.handle_timeout(begin);
        membership
    };
    let answer = Duration::from_millis(150);
    let beat = watch::BEAT;
    for (late, starved) in [
        (answer, 0),
        (answer + Duration::from_millis(1), 1),
        (beat, 2),
        (beat * 3, 4),
        (beat * 7, 8),
        (beat * 70, 8),
    ] {
        let mut membership = make();
        let due = membership.next_due().unwrap();
        membership.handle_timeout(due + late);
        assert_eq!(membership.starved, starved, "{late:?}");
        // What was due meanwhile is put off, but for what others are to hear of this node.
        let asked = |membership: &mut Membership| {
            let packets = membership.take_packets().into_iter();
            let said = packets.filter_map(|(_, data)| Said::read(&data));
            said.filter(|said| matches!(said.header.message, Message::Ping(_)))
                .count()
        };
        if starved > 0 {
            let before = asked(&mut membership);
            membership.handle_timeout(due + late + answer - Duration::from_millis(1));
            assert_eq!(asked(&mut membership), 0, "{late:?} {before}");
        }
    }
    // One less after each beat, stretched as all else is.
    let mut membership = make();
    let due = membership.next_due().unwrap();
    let mut now = due + beat * 2;
    membership.handle_timeout(now);
    assert_eq!(membership.starved, 3);
    for left in [3, 2, 1] {
        let until = now + beat * (left + 1);
        while let Some(next) = membership.next_due().filter(|next| *next < until) {
            membership.handle_timeout(next);
            assert_eq!(membership.starved, left);
        }
        now = until;
        membership.handle_timeout(now);
        assert_eq!(membership.starved, left - 1);
    }
}

#[test]
fn a_suspicion_that_others_had_for_its_whole_time_is_confirmed_at_once_and_others_after_that() {
    let begin = Instant::now();
    let (node, other) = (id(2, 0).node, id(3, 0).node);
    for (waited, limit) in [(0, 1_200), (700, 500), (1_200, 0), (5_000, 0)] {
        let mut membership = Membership::new(id(1, 1 << 16), ChaCha12Rng::from_seed([0; 32]));
        membership.alive(node, 1 << 16, begin);
        membership.alive(other, 1 << 16, begin);
        let suspect = foca::Member::new(
            Id {
                node,
                generation: 1 << 16,
            },
            0,
            State::Suspect,
        );
        membership.call(begin, |foca, calls| {
            foca.apply_many([suspect].into_iter(), true, calls)
        });
        membership.take_changes(begin);
        // Without questions of its own.
        membership.watch = Watch::new(id(1, 0).node, ChaCha12Rng::from_seed([0; 32]));
        let now = begin + Duration::from_millis(waited);
        membership.carry_out(watch::Act::Accuse(node), now);
        membership.carry_out(watch::Act::Accuse(node), now);
        let due = std::iter::from_fn(|| membership.timers.pop_due(now + Duration::from_secs(9)));
        let confirms: Vec<_> = due
            .filter(|timer| matches!(timer, Timer::ChangeSuspectToDown { .. }))
            .collect();
        assert_eq!(confirms.len(), 1, "{waited}");
        membership.carry_out(watch::Act::Accuse(node), now);
        let just_before = now + Duration::from_millis(limit) - Duration::from_millis(1);
        let mut due = std::iter::from_fn(|| membership.timers.pop_due(just_before));
        assert!(
            !due.any(|timer| matches!(timer, Timer::ChangeSuspectToDown { .. })),
            "{waited}"
        );
        membership.handle_timeout(now + Duration::from_millis(limit));
        membership.take_changes(now);
        assert_eq!(membership.liveness(node), Liveness::Down(1 << 16), "{waited}");
    }
}

#[test]
fn only_what_shows_that_a_member_hears_too_spares_it_a_question() {
    let begin = Instant::now();
    let (me, other) = (id(1, 1 << 16), id(2, 1 << 16));
    let news = vec![foca::Member::new(id(3, 1 << 16), 0, State::Alive)];
    for (message, updates, counts) in [
        (Message::Gossip, Vec::new(), true),
        (Message::Ack(7), news.clone(), true),
        (Message::Gossip, news, false),
        (Message::Ping(1), Vec::new(), false),
        (Message::Feed, Vec::new(), false),
    ] {
        let mut membership = Membership::new(me, ChaCha12Rng::from_seed([0; 32]));
        membership.alive(other.node, 1 << 16, begin);
        membership.take_changes(begin);
        membership.handle_timeout(begin);
        let header = foca::Header {
            src: other,
            src_incarnation: 0,
            dst: me,
            message,
        };
        let said = Said { header, updates };
        membership.heard(&said, begin + Duration::from_millis(1));
        membership.take_packets();
        membership.handle_timeout(begin + Duration::from_millis(150));
        let packets = membership.take_packets().into_iter();
        let mut told = packets.filter_map(|(_, data)| Said::read(&data));
        let is_asked = told.any(|said| matches!(said.header.message, Message::Ping(_)));
        assert_eq!(is_asked, !counts, "{said:?}");
    }
}
