use rand::SeedableRng;

use super::*;

const ANSWER: Duration = Duration::from_millis(200);
const ME: u64 = 100;

fn node(n: u64) -> Short {
    Short(n.to_be_bytes())
}

fn ring(members: impl IntoIterator<Item = (u64, State)>) -> Ring {
    let seen = |state| Seen {
        generation: 1 << 16,
        state,
    };
    let members = members.into_iter();
    members.map(|(n, state)| (node(n), seen(state))).collect()
}

/// What node 100 does in `time`, among members of which `answers` says whether they answer a question.
struct Life {
    watch: Watch,
    ring: Ring,
    now: Instant,
    answers: fn(Short) -> bool,
    did: Vec<(Duration, Act)>,
    begin: Instant,
}

impl Life {
    fn new(ring: Ring, answers: fn(Short) -> bool) -> Self {
        let now = Instant::now();
        let mut watch = Watch::new(node(ME), ChaCha12Rng::from_seed([3; 32]));
        watch.look(&ring, now);
        Self {
            watch,
            ring,
            now,
            answers,
            did: Vec::new(),
            begin: now,
        }
    }

    fn hear(&mut self, of: u64) {
        self.watch.note_heard(self.now);
        self.watch.hear(node(of), ANSWER, self.now);
    }

    /// Whoever is accused is believed to be suspect, as membership does it.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.watch.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            for act in self.watch.act(&self.ring, ANSWER, self.now) {
                match &act {
                    Act::Ask(of, _) if (self.answers)(*of) => {
                        self.watch.note_heard(self.now);
                        self.watch.hear(*of, ANSWER, self.now);
                    }
                    Act::Accuse(of) => {
                        self.ring.get_mut(of).unwrap().state = State::Suspect;
                    }
                    _ => {}
                }
                self.did.push((self.now - self.begin, act));
            }
            self.watch.look(&self.ring, self.now);
        }
        self.now = end;
    }

    fn accused(&self) -> BTreeMap<Short, Duration> {
        let accused = self.did.iter().filter_map(|(at, act)| match act {
            Act::Accuse(of) => Some((*of, *at)),
            _ => None,
        });
        accused.rev().collect()
    }

    fn asked(&self, of: u64) -> usize {
        let asks = |(_, act): &&(Duration, Act)| matches!(act, Act::Ask(asked, _) if *asked == node(of));
        self.did.iter().filter(asks).count()
    }
}

fn alive(nodes: impl IntoIterator<Item = u64>) -> Ring {
    ring(nodes.into_iter().map(|n| (n, State::Alive)))
}

#[test]
fn a_member_tells_the_one_before_it_and_asks_the_one_after_it_around_the_end_of_the_ring() {
    for (others, before, after) in [
        (vec![10, 90, 110, 200], 90, 110),
        (vec![110, 120, 200], 200, 110),
        (vec![10, 20, 90], 90, 10),
        (vec![7], 7, 7),
    ] {
        let mut life = Life::new(alive(others), |_| true);
        // Of the questions those count that are not about one at random.
        life.watch.glance = None;
        life.run(Duration::from_millis(50));
        let asked: Vec<_> = life
            .did
            .iter()
            .filter(|(_, act)| matches!(act, Act::Ask(..)))
            .collect();
        assert!(
            matches!(asked[..], [(_, Act::Ask(of, _))] if *of == node(after)),
            "{asked:?}"
        );
        life.run(BEAT * 2);
        assert!(life.did.iter().any(|(_, act)| *act == Act::Beat(node(before))));
    }
}

#[test]
fn who_tells_that_it_lives_is_not_asked_and_who_only_answers_is_asked_and_not_accused() {
    let mut life = Life::new(alive([110, 120, 130]), |_| true);
    life.run(Duration::from_secs(60));
    assert!((93..=97).contains(&life.asked(110)), "{}", life.asked(110));
    assert_eq!(life.accused(), BTreeMap::new());

    let mut life = Life::new(alive([110, 120, 130]), |_| true);
    life.run(Duration::from_millis(1));
    for _ in 0..100 {
        life.run(BEAT);
        life.hear(110);
    }
    assert_eq!(life.asked(110), 1, "before it was heard");
}

#[test]
fn who_answers_nothing_is_asked_three_times_and_through_three_others_and_accused_after_three_times_the_time()
{
    let mut life = Life::new(alive([110, 120, 130, 140, 150]), |of| of != node(110));
    life.hear(110);
    let asked = BEAT + ANSWER / 6;
    let accused = asked + ANSWER * 2 + ANSWER * 4 / 3;
    life.run(accused);
    assert_eq!(life.accused(), [(node(110), accused)].into());
    assert_eq!(life.asked(110), 4, "three times, and with the accusation");
    let through = life
        .did
        .iter()
        .filter(|(_, act)| matches!(act, Act::AskThrough { of, .. } if *of == node(110)));
    let helpers: std::collections::BTreeSet<_> = through
        .map(|(at, act)| match act {
            Act::AskThrough { helper, .. } => (*at, *helper),
            _ => unreachable!(),
        })
        .collect();
    assert_eq!(helpers.len(), 3);
    assert!(
        helpers
            .iter()
            .all(|(at, helper)| { *at == asked + ANSWER && ![node(ME), node(110)].contains(helper) })
    );
}

#[test]
fn what_others_heard_counts_if_they_were_asked() {
    let mut life = Life::new(alive([110, 120, 130, 140, 150]), |of| of != node(110));
    life.run(ANSWER * 2 - Duration::from_millis(1));
    let asked = life.did.iter().find_map(|(_, act)| match act {
        Act::AskThrough { helper, number, .. } => Some((*helper, *number)),
        _ => None,
    });
    let (helper, number) = asked.unwrap();
    let (watch, now) = (&mut life.watch, life.now);
    assert!(!watch.hear_through(node(ME), node(110), number, ANSWER, now));
    assert!(!watch.hear_through(helper, node(110), number.wrapping_add(1), ANSWER, now));
    assert!(!watch.hear_through(helper, node(120), number, ANSWER, now));
    assert!(watch.hear_through(helper, node(110), number, ANSWER, now));
    assert!(
        !watch.hear_through(helper, node(110), number, ANSWER, now),
        "only once"
    );
    life.run(BEAT);
    assert_eq!(life.accused(), BTreeMap::new());
}

#[test]
fn a_run_of_neighbours_that_went_out_is_found_in_the_time_of_a_few() {
    // Twenty after this node; another beyond, and one before, live.
    let mut life = Life::new(alive((101..=120).chain([30, 200])), |of| {
        !(node(101)..=node(120)).contains(&of)
    });
    life.hear(200);
    for _ in 0..30 {
        // It is not cut off: the one that lives goes on talking to it.
        life.run(Duration::from_millis(100));
        life.hear(200);
    }
    let accused = life.accused();
    assert_eq!(accused.len(), 20, "{accused:?}");
    // 1, 2, 4, 8, 16 and 32 of them, and three questions to the last.
    let last = *accused.values().max().unwrap();
    assert!(last <= ANSWER * 8 + ANSWER / 3, "{last:?}");
}

#[test]
fn who_hears_nobody_does_not_accuse_all_at_once_and_does_not_say_that_it_lives() {
    let mut life = Life::new(alive((1..=99).chain(101..=200)), |_| false);
    life.hear(101);
    life.run(DEAF);
    assert_eq!(life.accused().len(), 0);
    let beats = |life: &Life| {
        life.did
            .iter()
            .filter(|(_, act)| matches!(act, Act::Beat(_)))
            .count()
    };
    let told = beats(&life);
    life.run(Duration::from_secs(6));
    let accused = life.accused().len();
    // Those that were asked already, then one after the other, each after three questions, and one at random.
    assert!((8..=13).contains(&accused), "{accused}");
    assert_eq!(beats(&life), told);
}

#[test]
fn whoever_is_suspected_by_others_is_looked_after_too_and_passed_over_by_who_says_that_it_lives() {
    let states = [
        (90, State::Suspect),
        (80, State::Alive),
        (110, State::Suspect),
        (115, State::Down),
        (120, State::Alive),
        (130, State::Alive),
    ];
    let mut life = Life::new(ring(states), |_| true);
    life.watch.glance = None;
    life.run(BEAT * 2);
    assert!(life.did.iter().any(|(_, act)| *act == Act::Beat(node(80))));
    assert!(life.asked(110) > 0 && life.asked(120) > 0);
    assert_eq!((life.asked(115), life.asked(130), life.asked(90)), (0, 0, 0));
}

#[test]
fn one_that_takes_another_generation_begins_anew() {
    let mut life = Life::new(alive([110, 120]), |_| false);
    life.run(ANSWER * 4);
    assert!(life.accused().contains_key(&node(110)));
    life.ring.insert(
        node(110),
        Seen {
            generation: (1 << 16) + 1,
            state: State::Alive,
        },
    );
    life.watch.look(&life.ring, life.now);
    let watched = &life.watch.watched[&node(110)];
    assert!(watched.asked == 0 && !watched.accused && watched.due == life.now);
}

#[test]
fn everybody_is_asked_by_somebody_at_times_even_if_its_neighbour_says_nothing() {
    let mut life = Life::new(alive([110, 120, 130, 140]), |of| of != node(140));
    for _ in 0..3_000 {
        life.run(Duration::from_millis(100));
        life.hear(110);
    }
    let accused = life.accused();
    assert_eq!(accused.keys().collect::<Vec<_>>(), [&node(140)]);
    assert!(life.asked(120) > 0 && life.asked(130) > 0);
}
