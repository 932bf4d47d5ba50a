//! What befalls a cluster, and what is promised meanwhile.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use netns_harness::{Host, Inside as _, Signal};
use nix::sys::signal::kill;
use rand::{Rng, RngExt, seq::IndexedRandom};

use crate::{
    bed::{COMMAND, Node, soon, wait},
    churn, damage,
    secret::process_of,
    world::World,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    AgentKilled,
    AgentRestarted,
    AllAgentsKilled,
    AgentFrozen,
    Churn,
    AddressReused,
    KernelDamaged,
    DiskFull,
    CableFlapped,
    LinkDown,
    Lossy,
    OneWay,
    Partition,
    MtuCut,
    HostCrashed,
    HostLeft,
    HostRemoved,
    KeyChanged,
    EncrypterKilled,
}

impl Kind {
    pub const ALL: [Self; 19] = [
        Self::AgentKilled,
        Self::AgentRestarted,
        Self::AllAgentsKilled,
        Self::AgentFrozen,
        Self::Churn,
        Self::AddressReused,
        Self::KernelDamaged,
        Self::DiskFull,
        Self::CableFlapped,
        Self::LinkDown,
        Self::Lossy,
        Self::OneWay,
        Self::Partition,
        Self::MtuCut,
        Self::HostCrashed,
        Self::HostLeft,
        Self::HostRemoved,
        Self::KeyChanged,
        Self::EncrypterKilled,
    ];

    pub fn words(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent killed",
            Self::AgentRestarted => "agent restarted",
            Self::AllAgentsKilled => "all agents killed",
            Self::AgentFrozen => "agent frozen",
            Self::Churn => "mass create and delete",
            Self::AddressReused => "address reused at once",
            Self::KernelDamaged => "kernel objects damaged",
            Self::DiskFull => "disk full",
            Self::Lossy => "one packet in five lost",
            Self::CableFlapped => "cable unplugged",
            Self::LinkDown => "link down on the host",
            Self::OneWay => "one way blocked",
            Self::Partition => "partition",
            Self::MtuCut => "MTU cut",
            Self::HostCrashed => "host crashed",
            Self::HostLeft => "host left and joined",
            Self::HostRemoved => "host died and was removed",
            Self::KeyChanged => "key changed",
            Self::EncrypterKilled => "encrypter killed",
        }
    }

    /// How often it is drawn, relative to the others: the slow ones less.
    fn weight(self, is_encrypted: bool) -> u32 {
        match self {
            Self::KeyChanged | Self::EncrypterKilled => 2 * u32::from(is_encrypted),
            Self::AgentKilled | Self::AgentRestarted | Self::KernelDamaged | Self::AddressReused => 4,
            Self::Churn | Self::CableFlapped | Self::OneWay | Self::MtuCut => 3,
            Self::AllAgentsKilled | Self::AgentFrozen | Self::DiskFull | Self::LinkDown | Self::Lossy => 2,
            Self::Partition | Self::HostCrashed | Self::HostLeft | Self::HostRemoved => 1,
        }
    }

    /// For how long it may last, at most.
    fn longest(self) -> Duration {
        Duration::from_millis(match self {
            Self::AgentKilled | Self::AllAgentsKilled | Self::DiskFull => 1500,
            Self::AgentFrozen => 4000,
            Self::CableFlapped | Self::LinkDown => 1000,
            Self::Lossy => 2000,
            Self::OneWay | Self::Partition | Self::HostCrashed | Self::HostRemoved => 4000,
            Self::MtuCut => 500,
            _ => 0,
        })
    }
}

/// A fault as it was drawn. Numbers that some kinds have no use for are drawn all the same, so that each fault takes
/// as many from the generator.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: Kind,
    pub host: usize,
    /// Another one.
    pub other: usize,
    /// Of a partition: who is with the host.
    side: BTreeSet<usize>,
    hold: Duration,
    detail: u32,
}

/// What may have suffered.
#[derive(Debug, Default)]
pub struct Effect {
    /// Between which hosts datagrams may be lost, in this direction; the endpoint that moves counts as one more.
    pub lossy: BTreeSet<(usize, usize)>,
    /// For how long at most.
    pub longest: Duration,
    /// Whose clients and servers ended with the host.
    pub dead: BTreeSet<usize>,
    /// On which hosts nobody answers names.
    pub mute: BTreeSet<usize>,
}

/// How long after the end of what caused it a loss may last, where nothing but the network has to come back: the
/// kernel asks for a neighbour that did not answer once a second.
const AFTER: Duration = Duration::from_secs(2);

impl Fault {
    pub fn draw(rng: &mut impl Rng, hosts: usize, is_encrypted: bool) -> Self {
        let weight = |kind: &Kind| kind.weight(is_encrypted);
        let kind = *Kind::ALL.choose_weighted(rng, weight).unwrap();
        let host = rng.random_range(0..hosts);
        let other = (host + rng.random_range(1..hosts)) % hosts;
        let mut side: BTreeSet<usize> = (0..hosts).filter(|_| rng.random_bool(0.5)).collect();
        side.insert(host);
        side.remove(&other);
        Self {
            kind,
            host,
            other,
            side,
            hold: kind.longest().mul_f64(rng.random_range(0.05..1.0)),
            detail: rng.random(),
        }
    }

    /// Lets it happen, waits, and takes away what caused it.
    pub fn befall(&self, world: &mut World) -> Effect {
        let begin = Instant::now();
        let everybody: BTreeSet<usize> = (0..world.hosts()).collect();
        let mut effect = Effect::default();
        match self.kind {
            Kind::AgentKilled => {
                let node = world.node(self.host);
                node.kill_agent();
                wait(self.hold);
                node.restart_agent();
                effect.mute.insert(self.host);
            }
            Kind::AgentRestarted => {
                let node = world.node(self.host);
                node.end_agent();
                node.restart_agent();
                effect.mute.insert(self.host);
            }
            Kind::AllAgentsKilled => {
                world.bed.nodes().for_each(|node| node.kill_agent());
                wait(self.hold);
                world.bed.nodes().for_each(|node| node.start_agent());
                world.bed.nodes().for_each(|node| node.await_agent());
                effect.mute = everybody;
            }
            Kind::AgentFrozen => {
                let node = world.node(self.host);
                node.signal_agent(Signal::SIGSTOP);
                wait(self.hold);
                node.signal_agent(Signal::SIGCONT);
                effect.mute.insert(self.host);
            }
            Kind::Churn => churn::churn(world, self.host, self.detail),
            Kind::AddressReused => {
                effect.longest = churn::reuse(world, self.other);
                effect.lossy = everybody.iter().map(|from| (*from, world.hosts())).collect();
            }
            Kind::KernelDamaged => {
                damage::damage(world, self.host, self.detail);
                effect.touch(self.host, world);
                if world.mover.host == self.host {
                    effect.lossy.insert((self.host, world.hosts()));
                }
            }
            Kind::DiskFull => {
                fill_disk(world.node(self.host), self.hold);
                effect.mute.insert(self.host);
            }
            Kind::Lossy => {
                let host = &world.node(self.host).host;
                shell(host, LOSSY);
                wait(self.hold);
                shell(host, "nft delete table netdev campaign");
                let others = everybody.iter().filter(|other| **other != self.host);
                effect.lossy = others.map(|other| (*other, self.host)).collect();
                effect.moved(world);
            }
            Kind::CableFlapped | Kind::LinkDown => {
                let link = world.node(self.host).host.interface("eth0").unwrap();
                let turn = |on| match self.kind {
                    Kind::LinkDown => link.set_up(on),
                    _ => link.set_carrier(on),
                };
                turn(false).unwrap();
                wait(self.hold);
                turn(true).unwrap();
                effect.touch(self.host, world);
            }
            Kind::OneWay => {
                let [from, to] = [self.host, self.other].map(|host| &world.node(host).host);
                world.bed.lab.block(from, to).unwrap();
                wait(self.hold);
                world.bed.lab.heal().unwrap();
                effect.lossy.insert((self.host, self.other));
                effect.moved(world);
            }
            Kind::Partition => {
                let sides = [true, false].map(|within| -> Vec<&Host> {
                    let on = everybody.iter().filter(|host| self.side.contains(host) == within);
                    on.map(|host| &world.node(*host).host).collect()
                });
                world.bed.lab.partition(&[&sides[0], &sides[1]]).unwrap();
                wait(self.hold);
                world.bed.lab.heal().unwrap();
                for from in &everybody {
                    let across = |to: &&usize| self.side.contains(from) != self.side.contains(to);
                    effect
                        .lossy
                        .extend(everybody.iter().filter(across).map(|to| (*from, *to)));
                }
                effect.moved(world);
            }
            Kind::MtuCut => {
                let link = world.node(self.host).host.interface("eth0").unwrap();
                link.set_mtu(1300).unwrap();
                wait(self.hold);
                link.set_mtu(1500).unwrap();
                effect.touch(self.host, world);
            }
            Kind::HostCrashed => {
                world.crash(self.host);
                wait(self.hold);
                world.boot(self.host);
                effect.touch(self.host, world);
                effect.dead.insert(self.host);
            }
            Kind::HostLeft => {
                world.leave(self.host);
                world.join(self.host, self.other);
                effect.touch(self.host, world);
                effect.dead.insert(self.host);
            }
            Kind::HostRemoved => {
                world.crash(self.host);
                world.remove(self.host, self.other);
                wait(self.hold);
                world.boot_removed(self.host, self.detail.is_multiple_of(2));
                world.join(self.host, self.other);
                effect.touch(self.host, world);
                effect.dead.insert(self.host);
            }
            Kind::KeyChanged => {
                soon("a change of the key", || {
                    match world.node(self.host).try_weft("node rotate-key") {
                        // The one before is not over.
                        ended if ended.code == 0 => Ok(()),
                        ended => Err(ended.stderr),
                    }
                });
            }
            Kind::EncrypterKilled => {
                let process = process_of(world.node(self.host)).expect("it encrypts");
                kill(process, Signal::SIGKILL).unwrap();
                effect.touch(self.host, world);
            }
        }
        if effect.longest.is_zero() {
            effect.longest = begin.elapsed() + AFTER;
        }
        effect
    }
}

impl Effect {
    /// All that comes to a host or from it.
    fn touch(&mut self, host: usize, world: &World) {
        for other in (0..world.hosts()).filter(|other| *other != host) {
            self.lossy.extend([(host, other), (other, host)]);
        }
        self.moved(world);
    }

    /// The endpoint that moves suffers with the host that it is on.
    fn moved(&mut self, world: &World) {
        let there = world.mover.host;
        let to_it: Vec<usize> = self
            .lossy
            .iter()
            .filter(|(_, to)| *to == there)
            .map(|(from, _)| *from)
            .collect();
        self.lossy
            .extend(to_it.into_iter().map(|from| (from, world.hosts())));
    }

    /// Whether anything between a host and others may have been lost.
    pub fn touches(&self, host: usize) -> bool {
        self.lossy.iter().any(|(from, to)| *from == host || *to == host)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [host, other] = [self.host + 1, self.other + 1];
        write!(f, "{}", self.kind.words())?;
        match self.kind {
            Kind::AllAgentsKilled => {}
            Kind::AddressReused => write!(f, ", on h{other}")?,
            Kind::OneWay => write!(f, " from h{host} to h{other}")?,
            Kind::Partition => write!(f, ", {:?} apart (from 0)", self.side)?,
            Kind::KernelDamaged => write!(f, " on h{host}: {}", damage::words(self.detail))?,
            _ => write!(f, " on h{host}")?,
        }
        match self.hold.is_zero() {
            true => Ok(()),
            false => write!(f, ", {} ms", self.hold.as_millis()),
        }
    }
}

/// Drops on the receiver's side: a sender would notice if its own host did.
const LOSSY: &str = "nft 'add table netdev campaign; \
                     add chain netdev campaign in { type filter hook ingress device eth0 priority 0; }; \
                     add rule netdev campaign in numgen random mod 100 < 20 drop'";

fn shell(host: &Host, line: &str) {
    let mut command = Command::new("sh");
    let ended = host.exec(command.args(["-c", line]), COMMAND).unwrap();
    ended.success().unwrap();
}

/// An agent without room on its disk may end, rather than promise what it cannot keep; then a service manager would start
/// it again and again.
fn fill_disk(node: &Node, hold: Duration) {
    let filler = node.data_dir().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let chunk = [0; 4096];
    while file.write_all(&chunk).is_ok() {}
    drop(file);
    for _ in 0..2 {
        let ended = node.try_weft("network create --internal squeezed");
        assert!(ended.code == 0 || !ended.stderr.is_empty(), "{ended:?}");
        wait(hold / 2);
        if !node.has_agent() {
            node.start_agent();
        }
    }
    fs::remove_file(filler).unwrap();
    soon("an agent on a disk with room", || {
        if !node.has_agent() {
            node.start_agent();
        }
        // Whether the command was carried out, nobody knows.
        match node.try_weft("network rm squeezed") {
            ended if [0, 3].contains(&ended.code) => Ok(()),
            ended => Err(ended.stderr),
        }
    });
}
