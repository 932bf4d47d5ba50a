use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;

fn key(n: u8) -> Secret32 {
    Secret32::new([n; 32])
}

fn at(begin: Instant, seconds: u64) -> Now {
    Now {
        instant: begin + Duration::from_secs(seconds),
        unix_millis: seconds * 1000,
    }
}

fn party(heard_by_newest: bool, heard_by_old: Option<u64>) -> Party {
    Party {
        node: NodeId([1; 32]),
        answers: true,
        heard_by_newest,
        heard_by_old: heard_by_old.map(Duration::from_secs),
    }
}

#[test]
fn the_old_key_goes_when_all_who_answer_use_the_new_one_and_none_the_old() {
    let begin = Instant::now();
    let mut rotation = Rotation::new(TunnelKeys::first(key(1), 0), begin);
    assert!(!rotation.finish(&[], begin) && rotation.left(begin).is_none());
    assert!(rotation.begin(key(2), at(begin, 0)));
    assert!(!rotation.begin(key(3), at(begin, 1)), "one at a time");
    assert_eq!(
        rotation.left(at(begin, 100).instant),
        Some(LONGEST - Duration::from_secs(100))
    );
    let done = party(true, Some(2));
    let other = |party| Party {
        node: NodeId([2; 32]),
        ..party
    };
    let silent = Party {
        node: NodeId([3; 32]),
        answers: false,
        ..party(false, None)
    };
    // Its agent is away, and its tunnels may go on.
    let headless = |heard| Party {
        answers: false,
        ..other(party(false, Some(heard)))
    };
    let now = |seconds| at(begin, seconds).instant;
    assert!(!rotation.finish(&[done], now(0)));
    assert!(!rotation.finish(&[done], now(2)), "records are on their way");
    assert_eq!(rotation.waits_for(&[done, headless(180)], now(2)), []);
    for late in [
        other(party(false, None)),
        other(party(false, Some(90))),
        other(party(true, Some(1))),
        headless(179),
    ] {
        // The second time it has been heard for long enough, if it is heard.
        for seconds in [18, 20] {
            assert!(!rotation.finish(&[done, late], now(seconds)), "{late:?}");
        }
        assert_eq!(rotation.waits_for(&[done, silent, late], now(20)), [late.node]);
    }
    // What was encrypted before the first word by the new key may come after it.
    let all = [done, silent, other(party(true, None))];
    assert!(!rotation.finish(&all, now(30)) && !rotation.finish(&all, now(31)));
    let keys: Vec<_> = rotation.keys().newest_first().cloned().collect();
    assert_eq!(keys, [key(2), key(1)]);
    assert!(rotation.finish(&all, now(32)));
    let keys: Vec<_> = rotation.keys().newest_first().cloned().collect();
    assert_eq!((keys, rotation.keys().epoch), (vec![key(2)], 2));
    assert!(rotation.begin(key(3), at(begin, 33)));
}

#[test]
fn nobody_keeps_the_old_key_for_ever_and_a_restart_goes_on_with_the_change() {
    let begin = Instant::now();
    let mut rotation = Rotation::new(TunnelKeys::first(key(1), 0), begin);
    rotation.begin(key(2), at(begin, 0));
    // From the disk again: how long it has been is not known, so it begins anew.
    let mut again = Rotation::new(rotation.keys().clone(), at(begin, 200).instant);
    assert!(!again.finish(&[party(false, Some(0))], at(begin, 499).instant));
    assert!(again.finish(&[party(false, Some(0))], at(begin, 500).instant));
    assert_eq!(again.keys().current, key(2));
}

#[test]
fn a_key_is_old_by_the_clock_on_the_wall_and_a_clock_set_back_makes_none_old() {
    let begin = Instant::now();
    let mut rotation = Rotation::new(TunnelKeys::first(key(1), 10_000), begin);
    let hour = Duration::from_secs(3600);
    assert!(!rotation.is_due(hour, 3_609_999) && rotation.is_due(hour, 3_610_000));
    assert!(!rotation.is_due(hour, 0));
    rotation.begin(key(2), at(begin, 3610));
    assert!(!rotation.is_due(hour, 9_000_000), "it is being changed");
    rotation.finish(&[], at(begin, 3620).instant);
    assert!(!rotation.is_due(hour, 7_209_999) && rotation.is_due(hour, 7_210_000));
}

/// What happens in a cluster of nodes that have tunnels to each other.
#[derive(Debug, Clone)]
enum Step {
    /// A node begins to change its key.
    Begin(usize),
    /// The newest record of a node reaches another.
    Learn(usize, usize),
    /// One shakes hands with another by some pair of their keys; whether the last message arrives.
    Shake(usize, usize, usize, bool),
    /// One sends a packet to another.
    Send(usize, usize),
    /// It has encrypted one, and sends it in less than a second.
    SendLate(usize, usize),
    Pass(u64),
    /// The agent of a node is killed and started again; its tunnels go on.
    Crash(usize),
}

fn step(nodes: usize) -> impl Strategy<Value = Step> {
    let node = 0..nodes;
    let two = (node.clone(), node.clone());
    prop_oneof![
        1 => node.clone().prop_map(Step::Begin),
        4 => two.clone().prop_map(|(from, to)| Step::Learn(from, to)),
        4 => (two.clone(), 0..4_usize, any::<bool>()).prop_map(|((a, b), pair, whole)| Step::Shake(a, b, pair, whole)),
        6 => two.clone().prop_map(|(from, to)| Step::Send(from, to)),
        2 => two.prop_map(|(from, to)| Step::SendLate(from, to)),
        3 => (1..4_u64).prop_map(Step::Pass),
        1 => node.prop_map(Step::Crash),
    ]
}

type Key = u32;

#[derive(Clone, Copy, Default)]
struct Pair {
    has_session: bool,
    is_confirmed: bool,
    heard: Option<u64>,
}

/// A node, with keys that are numbers.
struct Node {
    rotation: Rotation,
    /// What the others said last of their keys, the newest first.
    known: BTreeMap<usize, Vec<Key>>,
    pairs: BTreeMap<(usize, Key, Key), Pair>,
}

struct Cluster {
    begin: Instant,
    seconds: u64,
    made: u32,
    nodes: Vec<Node>,
    late: Vec<Packet>,
}

/// From a node to another, by keys of theirs.
struct Packet {
    from: usize,
    to: usize,
    own: Key,
    key: Key,
}

fn number(secret: &Secret32) -> Key {
    u32::from_le_bytes(secret.expose()[..4].try_into().unwrap())
}

impl Cluster {
    /// All know all and have sessions.
    fn new(count: usize) -> Self {
        let mut cluster = Self {
            begin: Instant::now(),
            seconds: 0,
            made: 0,
            nodes: Vec::new(),
            late: Vec::new(),
        };
        for _ in 0..count {
            let keys = TunnelKeys::first(cluster.fresh(), 0);
            cluster.nodes.push(Node {
                rotation: Rotation::new(keys, cluster.begin),
                known: BTreeMap::new(),
                pairs: BTreeMap::new(),
            });
        }
        for one in 0..count {
            for other in (0..count).filter(|other| *other != one) {
                cluster.learn(other, one);
            }
        }
        for one in 0..count {
            for other in (0..count).filter(|other| *other != one) {
                cluster.shake(one, other, 0, true);
            }
        }
        cluster
    }

    fn fresh(&mut self) -> Secret32 {
        self.made += 1;
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&self.made.to_le_bytes());
        Secret32::new(bytes)
    }

    fn keys(&self, node: usize) -> Vec<Key> {
        self.nodes[node]
            .rotation
            .keys()
            .newest_first()
            .map(number)
            .collect()
    }

    /// The pairs that a node has sessions of with another, in the order in which it uses them.
    fn order(&self, node: usize, other: usize) -> Vec<(Key, Key)> {
        let theirs = &self.nodes[node].known[&other];
        let keys = self.keys(node);
        let pairs = keys.iter().flat_map(|own| theirs.iter().map(|key| (*own, *key)));
        pairs.collect()
    }

    fn tell(&mut self, node: usize) {
        let others: Vec<_> = self.nodes[node].known.keys().copied().collect();
        for other in others {
            let order = self.order(node, other);
            let pairs = &mut self.nodes[node].pairs;
            pairs.retain(|(to, own, key), _| *to != other || order.contains(&(*own, *key)));
            for (own, key) in order {
                pairs.entry((other, own, key)).or_default();
            }
        }
    }

    fn learn(&mut self, from: usize, to: usize) {
        let keys = self.keys(from);
        self.nodes[to].known.insert(from, keys);
        self.tell(to);
    }

    fn shake(&mut self, one: usize, other: usize, pair: usize, whole: bool) {
        let order = self.order(one, other);
        let Some((own, key)) = order.get(pair % order.len()).copied() else {
            return;
        };
        // The other side has to have the key and to know ours.
        let Some(theirs) = self.nodes[other].pairs.get_mut(&(one, key, own)) else {
            return;
        };
        theirs.has_session = true;
        if whole {
            theirs.is_confirmed = true;
            theirs.heard = Some(self.seconds);
        }
        let ours = self.nodes[one].pairs.get_mut(&(other, own, key)).unwrap();
        (ours.has_session, ours.is_confirmed) = (true, true);
    }

    /// By what the sender uses.
    fn seal(&self, from: usize, to: usize) -> Option<Packet> {
        let order = self.order(from, to);
        let used = order
            .iter()
            .find(|(own, key)| self.nodes[from].pairs[&(to, *own, *key)].is_confirmed);
        used.map(|(own, key)| Packet {
            from,
            to,
            own: *own,
            key: *key,
        })
    }

    /// Whether a packet was taken.
    fn send(&mut self, from: usize, to: usize) -> bool {
        self.seal(from, to).is_some_and(|packet| self.arrive(&packet))
    }

    fn arrive(&mut self, packet: &Packet) -> bool {
        let &Packet { from, to, own, key } = packet;
        let taken = self.nodes[to].pairs.get_mut(&(from, key, own));
        let Some(taken) = taken.filter(|pair| pair.has_session) else {
            return false;
        };
        taken.is_confirmed = true;
        taken.heard = Some(self.seconds);
        true
    }

    fn look(&mut self, node: usize) {
        let old = number(&self.nodes[node].rotation.keys().current);
        let parties: Vec<_> = (0..self.nodes.len())
            .filter(|other| *other != node)
            .map(|other| {
                let (own, key) = self.order(node, other)[0];
                let of_old = self.nodes[node].pairs.iter();
                let of_old = of_old.filter(|((to, own, _), _)| *to == other && *own == old);
                Party {
                    node: NodeId([other as u8; 32]),
                    answers: true,
                    heard_by_newest: self.nodes[node].pairs[&(other, own, key)].heard.is_some(),
                    heard_by_old: of_old
                        .filter_map(|(_, pair)| Some(Duration::from_secs(self.seconds - pair.heard?)))
                        .min(),
                }
            })
            .collect();
        let now = at(self.begin, self.seconds).instant;
        if self.nodes[node].rotation.finish(&parties, now) {
            self.tell(node);
        }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Begin(node) => {
                let fresh = self.fresh();
                let now = at(self.begin, self.seconds);
                self.nodes[node].rotation.begin(fresh, now);
                self.tell(node);
            }
            Step::Learn(from, to) if from != to => self.learn(from, to),
            Step::Shake(one, other, pair, whole) if one != other => self.shake(one, other, pair, whole),
            Step::Send(from, to) if from != to => {
                prop_assert!(self.send(from, to), "a packet of {from} to {to} is lost");
            }
            Step::SendLate(from, to) if from != to => {
                let packet = self.seal(from, to);
                prop_assert!(packet.is_some(), "{from} has no session with {to}");
                self.late.extend(packet);
            }
            Step::Pass(seconds) => {
                for packet in std::mem::take(&mut self.late) {
                    let (from, to) = (packet.from, packet.to);
                    prop_assert!(self.arrive(&packet), "a late packet of {from} to {to} is lost");
                }
                self.seconds += seconds;
            }
            Step::Crash(node) => {
                let now = at(self.begin, self.seconds).instant;
                let keys = self.nodes[node].rotation.keys().clone();
                self.nodes[node].rotation = Rotation::new(keys, now);
            }
            Step::Learn(..) | Step::Shake(..) | Step::Send(..) | Step::SendLate(..) => {}
        }
        for node in 0..self.nodes.len() {
            self.look(node);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_packet_is_lost_whoever_changes_keys_and_whoever_hears_of_it_when(
        steps in vec(step(3), 0..80),
    ) {
        let mut cluster = Cluster::new(3);
        for step in steps {
            cluster.take(step)?;
        }
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                prop_assert!(cluster.send(from, to), "a packet of {from} to {to} is lost");
            }
        }
        // When all is told and everybody shakes hands, everybody has one key again.
        for _ in 0..3 {
            for one in 0..3 {
                for other in (0..3).filter(|other| *other != one) {
                    cluster.learn(other, one);
                    cluster.learn(one, other);
                    cluster.shake(one, other, 0, true);
                    prop_assert!(cluster.send(one, other) && cluster.send(other, one));
                }
            }
            cluster.take(Step::Pass(3))?;
        }
        prop_assert!(cluster.nodes.iter().all(|node| !node.rotation.is_changing()));
    }
}
