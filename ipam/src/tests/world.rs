//! A few nodes, each with a disk, a network that loses, repeats and reorders, and crashes at every
//! point where one can matter. After each step the world is held against the invariants.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    AllocateError, Block, ClaimError, Grant, Merged, Negotiation, Outcome, Patience, Reply, Request, Space,
    Step, Want,
};

pub(super) const FIRST: u128 = 64;
const REST: Duration = Duration::from_secs(30);

/// A caller's mistake, to see that it would be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slip {
    /// A giver sends grants without storing them.
    GiveUnstored,
    /// A giver sends grants before it stores them, and may crash in between.
    SendThenStore,
    /// A receiver merges grants without storing them.
    MergeUnstored,
    /// A node answers with a number before it stores who has it.
    UseThenStore,
    /// A node does not restore what is in use after a start.
    NoRestore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    Never,
    BeforeStore,
    AfterStore,
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    Allocate { node: usize, crash: Crash },
    Claim { node: usize, number: u128, crash: Crash },
    Release { node: usize, pick: usize },
    Ask { node: usize, owner: usize, want: Want },
    Deliver { pick: usize, repeat: bool, crash: Crash },
    Lose { pick: usize },
    Records { from: usize, to: usize },
    HandOver { node: usize, heir: usize, crash: Crash },
    Obtain { node: usize },
    Stop { node: usize },
    Compact { node: usize },
    Part { groups: u8 },
    Pass { secs: u64 },
}

#[derive(Debug, Clone)]
enum Body {
    Request(Request),
    Reply(Reply<u8>),
    Records(Vec<Grant<u8>>),
}

#[derive(Debug, Clone)]
struct Packet {
    from: usize,
    to: usize,
    body: Body,
}

#[derive(Debug, Default)]
struct Host {
    grants: BTreeSet<Grant<u8>>,
    /// Numbers that somebody was told they have.
    told: BTreeSet<u128>,
    /// Numbers that are stored as in use.
    live: BTreeSet<u128>,
    space: Option<Space<u8>>,
    starts: u64,
}

pub(super) struct World {
    universe: Block,
    reserved: BTreeSet<u128>,
    hosts: Vec<Host>,
    packets: Vec<Packet>,
    /// Bit i is the side of node i.
    groups: u8,
    now: Instant,
    next_id: u64,
    slip: Option<Slip>,
    /// A disk was rolled back, so that conflicts may be reported.
    rolled_back: bool,
}

/// What went wrong, as a sentence.
pub(super) type Checked = Result<(), String>;

impl World {
    pub(super) fn new(nodes: usize, order: u8, slip: Option<Slip>) -> Self {
        let universe = Block::new(FIRST, order).unwrap();
        Self {
            universe,
            reserved: BTreeSet::from([universe.first(), universe.last()]),
            hosts: std::iter::repeat_with(Host::default).take(nodes).collect(),
            packets: Vec::new(),
            groups: 0,
            now: Instant::now(),
            next_id: 0,
            slip,
            rolled_back: false,
        }
    }

    /// Runs the steps, then lets everything meet and asks for every number there is.
    pub(super) fn run(mut self, ops: &[Op]) -> Checked {
        self.steps(ops)?;
        self.finish()
    }

    /// As `run`, but between `ops` and `more` a node gets back the disk it had before `lost`, and
    /// hears what the others hold before it goes on.
    pub(super) fn run_with_rollback(mut self, ops: &[Op], lost: &[Op], node: usize, more: &[Op]) -> Checked {
        let node = node % self.hosts.len();
        self.steps(ops)?;
        let disk = self.hosts[node].grants.clone();
        self.steps(lost)?;
        self.hosts[node].grants = disk;
        self.hosts[node].space = None;
        self.rolled_back = true;
        self.groups = 0;
        self.packets.clear();
        let all: Vec<_> = (0..self.hosts.len()).collect();
        self.meet(&all)?;
        self.check()?;
        self.steps(more)?;
        self.finish()
    }

    fn steps(&mut self, ops: &[Op]) -> Checked {
        for op in ops {
            let checked = self.step(op).and_then(|()| self.check());
            checked.map_err(|what| format!("{what} (at {op:?})"))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Checked {
        self.groups = 0;
        self.packets.clear();
        let all: Vec<_> = (0..self.hosts.len()).collect();
        self.meet(&all)?;
        self.check()?;
        self.check_agreement()?;
        self.use_up()
    }

    fn step(&mut self, op: &Op) -> Checked {
        let nodes = self.hosts.len();
        match *op {
            Op::Allocate { node, crash } => {
                let now = self.now;
                let host = self.up(node % nodes)?;
                if let Ok(number) = host.space().allocate(None, now) {
                    self.used(node % nodes, number, crash)?;
                }
            }
            Op::Claim { node, number, crash } => {
                let host = self.up(node % nodes)?;
                match host.space().claim(number) {
                    Ok(()) => self.used(node % nodes, number, crash)?,
                    Err(ClaimError::Quarantined { .. }) if !self.rolled_back => {
                        return Err("quarantined without cause".into());
                    }
                    Err(_) => {}
                }
            }
            Op::Release { node, pick } => {
                let now = self.now;
                let host = self.up(node % nodes)?;
                if let Some(number) = pick_of(&host.live, pick) {
                    host.live.remove(&number);
                    host.told.remove(&number);
                    host.space().release(number, now);
                }
            }
            Op::Ask {
                node,
                owner,
                ref want,
            } => {
                let (from, to) = (node % nodes, owner % nodes);
                self.next_id += 1;
                let body = Body::Request(Request {
                    id: self.next_id,
                    want: want.clone(),
                });
                self.packets.push(Packet { from, to, body });
            }
            Op::Deliver { pick, repeat, crash } => {
                let Some(index) = pick.checked_rem(self.packets.len()) else {
                    return Ok(());
                };
                let packet = match repeat {
                    true => self.packets[index].clone(),
                    false => self.packets.swap_remove(index),
                };
                if self.reachable(packet.from, packet.to) {
                    self.deliver(packet, crash)?;
                }
            }
            Op::Lose { pick } => {
                if let Some(index) = pick.checked_rem(self.packets.len()) {
                    self.packets.swap_remove(index);
                }
            }
            Op::Records { from, to } => {
                let (from, to) = (from % nodes, to % nodes);
                let grants = self.hosts[from].grants.iter().copied().collect();
                self.packets.push(Packet {
                    from,
                    to,
                    body: Body::Records(grants),
                });
            }
            Op::Obtain { node } => {
                let node = node % nodes;
                let side: Vec<_> = (0..nodes).filter(|other| self.reachable(node, *other)).collect();
                self.meet(&side)?;
                self.obtain(node, &side)?;
            }
            Op::HandOver { node, heir, crash } => {
                let (from, to) = (node % nodes, heir % nodes);
                let host = self.up(from)?;
                let given = host.space().hand_over(to as u8);
                if crash != Crash::BeforeStore {
                    host.grants.extend(given.to_store());
                }
                match crash {
                    Crash::Never => {
                        let body = Body::Records(given.stored());
                        self.packets.push(Packet { from, to, body });
                    }
                    _ => host.space = None,
                }
            }
            Op::Stop { node } => self.hosts[node % nodes].space = None,
            Op::Compact { node } => {
                let host = self.up(node % nodes)?;
                host.grants = host.space().grants();
            }
            Op::Part { groups } => self.groups = groups,
            Op::Pass { secs } => self.now += Duration::from_secs(secs),
        }
        Ok(())
    }

    fn reachable(&self, a: usize, b: usize) -> bool {
        (self.groups >> a) & 1 == (self.groups >> b) & 1
    }

    /// The node, started from its disk if it was down.
    fn up(&mut self, node: usize) -> Result<&mut Host, String> {
        let host = &mut self.hosts[node];
        if host.space.is_none() {
            host.starts += 1;
            let mut space = Space::new(node as u8, self.universe, 0, host.starts * 7).with_rest(REST);
            for number in &self.reserved {
                space.reserve(*number..=*number);
            }
            let _ = space.load(host.grants.iter().copied(), []);
            let conflicts = space.conflicts();
            if !conflicts.is_empty() && !self.rolled_back {
                return Err(format!("node {node} finds {conflicts:?} on its disk"));
            }
            if self.slip != Some(Slip::NoRestore) {
                for number in &host.live {
                    let restored = space.restore(Block::single(*number));
                    // After a rollback the block may be one that the node has yet to hear it owns.
                    if let (Err(error), false) = (restored, self.rolled_back) {
                        return Err(format!("node {node} restores {number}: {error}"));
                    }
                }
            }
            host.space = Some(space);
        }
        Ok(host)
    }

    /// Stores that `number` is used and then tells who asked for it.
    fn used(&mut self, node: usize, number: u128, crash: Crash) -> Checked {
        if self.hosts.iter().any(|host| host.told.contains(&number)) {
            return Err(format!("node {node} hands out {number}, which somebody has"));
        }
        let host = &mut self.hosts[node];
        if crash != Crash::BeforeStore && !host.live.insert(number) {
            return Err(format!("node {node} hands out {number} a second time"));
        }
        if crash == Crash::Never || self.slip == Some(Slip::UseThenStore) {
            host.told.insert(number);
        }
        if crash != Crash::Never {
            host.space = None;
        }
        Ok(())
    }

    fn deliver(&mut self, Packet { from, to, body }: Packet, crash: Crash) -> Checked {
        let (slip, now) = (self.slip, self.now);
        match body {
            Body::Request(request) => {
                let host = self.up(to)?;
                let answer = host.space().answer(from as u8, &request, now);
                let stored = crash != Crash::BeforeStore && slip != Some(Slip::GiveUnstored);
                if stored {
                    host.grants.extend(answer.to_store());
                }
                let sent = match slip {
                    Some(Slip::SendThenStore) => crash != Crash::AfterStore,
                    _ => crash == Crash::Never,
                };
                if crash != Crash::Never {
                    host.space = None;
                }
                if sent {
                    let body = Body::Reply(answer.stored());
                    self.packets.push(Packet {
                        from: to,
                        to: from,
                        body,
                    });
                }
                Ok(())
            }
            Body::Reply(Reply {
                outcome: Outcome::Granted(grants),
                ..
            })
            | Body::Records(grants) => self.receive(to, &grants, crash),
            Body::Reply(_) => Ok(()),
        }
    }

    /// Stores grants and then merges them.
    fn receive(&mut self, node: usize, grants: &[Grant<u8>], crash: Crash) -> Checked {
        let (slip, rolled_back) = (self.slip, self.rolled_back);
        let host = self.up(node)?;
        if crash != Crash::BeforeStore && slip != Some(Slip::MergeUnstored) {
            host.grants.extend(grants);
        }
        if crash != Crash::Never {
            host.space = None;
            return Ok(());
        }
        for grant in grants {
            match host.space().merge(*grant) {
                Merged::Applied | Merged::Unchanged => {}
                Merged::Quarantined(_) if rolled_back => {}
                bad => return Err(format!("node {node} finds {bad:?} though nobody did wrong")),
            }
        }
        Ok(())
    }

    /// Gives all of `side` the records of each other.
    fn meet(&mut self, side: &[usize]) -> Checked {
        for _ in 0..2 {
            for (from, to) in side
                .iter()
                .flat_map(|from| side.iter().map(move |to| (*from, *to)))
            {
                let grants: Vec<_> = self.hosts[from].grants.iter().copied().collect();
                self.receive(to, &grants, Crash::Never)?;
            }
        }
        Ok(())
    }

    /// Allocates at `node`, asking the others of its side if need be. It must succeed if any of them
    /// has a free number, and say who was asked if not.
    fn obtain(&mut self, node: usize, side: &[usize]) -> Result<bool, String> {
        let free: Vec<_> = side
            .iter()
            .flat_map(|node| {
                self.owned(*node)
                    .into_iter()
                    .filter(|n| !self.hosts[*node].live.contains(n))
            })
            .filter(|n| !self.reserved.contains(n))
            .collect();
        let now = self.now;
        let number = match self.up(node)?.space().allocate(None, now) {
            Ok(number) => Some(number),
            Err(AllocateError::NoFreeOwned { ask, .. }) => {
                let granted = self.negotiate(node, side, ask)?;
                let now = self.now;
                let space = self.up(node)?.space();
                match granted {
                    true => Some(
                        space
                            .allocate(None, now)
                            .map_err(|error| format!("after a grant: {error}"))?,
                    ),
                    false => space.allocate_resting(None),
                }
            }
            Err(_) => None,
        };
        match number {
            Some(number) => self.used(node, number, Crash::Never).map(|()| true),
            None if free.is_empty() => Ok(false),
            None => {
                let conflicts: Vec<_> = self
                    .hosts
                    .iter()
                    .filter_map(|host| Some(host.space.as_ref()?.conflicts()))
                    .collect();
                Err(format!(
                    "node {node} gets none, {free:?} are free on its side: {conflicts:?}"
                ))
            }
        }
    }

    fn negotiate(&mut self, node: usize, side: &[usize], ask: Vec<u8>) -> Result<bool, String> {
        self.next_id += 1;
        let (id, want) = (self.next_id, Want::Any { within: None });
        let started = self.now;
        let mut talk = Negotiation::new(node as u8, id, want, ask, Patience::default(), self.now);
        // Every step either asks, of which there are few, or lets time pass.
        for _ in 0..100 {
            match talk.poll(self.now) {
                Step::Ask { node: owner, request } if side.contains(&usize::from(owner)) => {
                    let now = self.now;
                    let host = self.up(owner.into())?;
                    let answer = host.space().answer(node as u8, &request, now);
                    host.grants.extend(answer.to_store());
                    let grants = talk.handle_reply(owner, answer.stored());
                    self.receive(node, &grants, Crash::Never)?;
                }
                Step::Ask { node: owner, .. } if owner % 2 == 0 => talk.handle_unreachable(owner),
                Step::Ask { .. } => {}
                Step::Wait(until) => self.now = until,
                Step::Done => return Ok(true),
                Step::Failed(_) if self.now > started + Patience::default().overall => {
                    return Err("a negotiation took too long".into());
                }
                Step::Failed(_) => return Ok(false),
            }
        }
        Err("a negotiation did not end".into())
    }

    /// What `node` would own if it started now.
    fn owned(&self, node: usize) -> BTreeSet<u128> {
        let mut space = Space::new(node as u8, self.universe, 0, 0);
        let _ = space.load(self.hosts[node].grants.iter().copied(), []);
        self.universe
            .range()
            .filter(|n| space.owner_of(*n) == Some(node as u8))
            .collect()
    }

    fn check(&self) -> Checked {
        let owned: Vec<_> = (0..self.hosts.len()).map(|node| self.owned(node)).collect();
        let mut union = Space::new(u8::MAX, self.universe, 0, 0);
        let _ = union.load(self.hosts.iter().flat_map(|host| &host.grants).copied(), []);
        let conflicts = union.conflicts();
        if !conflicts.is_empty() {
            return Err(format!("the disks together hold {conflicts:?}"));
        }
        for number in self.universe.range() {
            let owners: Vec<_> = (0..owned.len())
                .filter(|node| owned[*node].contains(&number))
                .collect();
            if owners.len() > 1 {
                return Err(format!("{number} has the durable owners {owners:?}"));
            }
            let users: Vec<_> = (0..owned.len())
                .filter(|node| self.hosts[*node].live.contains(&number))
                .collect();
            if users.len() > 1 {
                return Err(format!("{number} is live on {users:?}"));
            }
            if users.iter().any(|user| !owners.contains(user)) {
                return Err(format!("{number} is live on {users:?} and owned by {owners:?}"));
            }
            // With no durable owner, the newest grant is on its way, and on the disk of its giver.
            let of_record = union.owner_of(number).map(usize::from);
            if owners.first().is_some_and(|owner| of_record != Some(*owner)) {
                return Err(format!(
                    "{number} is owned by {owners:?}, but {of_record:?} has the newest grant"
                ));
            }
        }
        for (node, host) in self.hosts.iter().enumerate() {
            let Some(space) = &host.space else { continue };
            if let Some(number) = space
                .own
                .iter()
                .flatten()
                .find(|number| !owned[node].contains(number))
            {
                return Err(format!(
                    "node {node} would allocate {number}, which its disk does not own"
                ));
            }
            if let Some(number) = host.live.iter().find(|number| !space.in_use.contains(**number)) {
                return Err(format!("node {node} has {number} live and does not know"));
            }
        }
        Ok(())
    }

    /// When all have met, all know the same and every number has its owner.
    fn check_agreement(&mut self) -> Checked {
        let first = self.up(0)?.space().grants();
        for node in 1..self.hosts.len() {
            let grants = self.up(node)?.space().grants();
            if grants != first {
                return Err(format!("node {node} knows {grants:?} and node 0 {first:?}"));
            }
        }
        let owned: usize = (0..self.hosts.len()).map(|node| self.owned(node).len()).sum();
        match owned as u128 == self.universe.count() {
            true => Ok(()),
            false => Err(format!(
                "{owned} of {} numbers have an owner",
                self.universe.count()
            )),
        }
    }

    /// Every number that is left can be had, from any node.
    fn use_up(mut self) -> Checked {
        let all: Vec<_> = (0..self.hosts.len()).collect();
        let mut node = 0;
        while self.obtain(node, &all)? {
            self.meet(&all)?;
            node = (node + 1) % all.len();
        }
        self.check()?;
        let live: usize = self.hosts.iter().map(|host| host.live.len()).sum();
        let expected = self.universe.count() as usize - self.reserved.len();
        match live == expected {
            true => Ok(()),
            false => Err(format!("{live} of {expected} numbers were handed out")),
        }
    }
}

impl Host {
    fn space(&mut self) -> &mut Space<u8> {
        self.space.as_mut().expect("only hosts that are up are asked")
    }
}

fn pick_of(set: &BTreeSet<u128>, pick: usize) -> Option<u128> {
    set.iter().nth(pick.checked_rem(set.len())?).copied()
}
