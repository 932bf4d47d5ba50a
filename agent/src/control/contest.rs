//! What several nodes may set: whose word holds, and which words are not heeded at all.
//!
//! A member may say anything under its own name. So a register is not believed about what is another's: what a network is, its
//! maker has said once and for all, and nobody sets a clock so far ahead that the others cannot follow.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_types::{NetworkId, NodeId};

use super::{
    pools,
    records::{CLUSTER, DrainSpec, NetworkSpec, Register, ServiceSpec, SubnetSpec},
    work::looked,
};

/// Registers beyond it are not read, and nobody writes them.
pub(super) const MAX_LAMPORT: u64 = 1 << 62;
/// The most subnets of a network that are believed; fewer can be asked for.
const MAX_SUBNETS: usize = 32;

/// A value of a register.
pub(super) trait Shared: Clone + PartialEq {
    /// The node that alone says what it is. Others may say that it is gone, or that it is still there.
    fn maker(&self) -> Option<NodeId> {
        None
    }

    /// Whether it is what the other was, perhaps with something added by its maker since.
    fn extends(&self, other: &Self) -> bool {
        self == other
    }

    /// Whether an honest node can have written it, in this scope.
    fn is_plausible(&self, _scope: NetworkId) -> bool {
        true
    }
}

impl Shared for NetworkSpec {
    fn maker(&self) -> Option<NodeId> {
        Some(self.creator)
    }

    /// Subnets are added, and none is ever taken away or changed.
    fn extends(&self, other: &Self) -> bool {
        self == other
            || (self.subnets.starts_with(&other.subnets)
                && Self {
                    subnets: other.subnets.clone(),
                    ..self.clone()
                } == *other)
    }

    fn is_plausible(&self, scope: NetworkId) -> bool {
        let subnets = &self.subnets;
        pools::vnis().contains(self.vni.get().into())
            && scope == CLUSTER
            && self.created <= MAX_LAMPORT
            && !subnets.is_empty()
            && subnets.len() <= MAX_SUBNETS
            && subnets.iter().all(is_subnet)
    }
}

fn is_subnet(subnet: &SubnetSpec) -> bool {
    let net = subnet.net;
    net.trunc() == net
        && net.prefix_len() > 0
        && net.contains(&subnet.gateway)
        && subnet.range.is_none_or(|range| net.contains(&range))
        && subnet.aux.iter().all(|(_, address)| net.contains(address))
}

impl Shared for ServiceSpec {
    fn is_plausible(&self, scope: NetworkId) -> bool {
        let ranges = self
            .ports
            .iter()
            .map(|port| (port.port, port.count))
            .chain(self.ports.iter().map(|port| (port.target, port.count)));
        self.network == scope && self.created <= MAX_LAMPORT && { ranges }
            .all(|(first, count)| first.checked_add(count.saturating_sub(1)).is_some())
    }
}

impl Shared for DrainSpec {}

/// The versions of one register, by author.
#[derive(Debug)]
pub(super) struct Contest<T> {
    said: BTreeMap<NodeId, Register<T>>,
    /// The maker that was known first: an id is one node's, and who names itself the maker of another's comes too late.
    maker: Option<NodeId>,
}

impl<T> Default for Contest<T> {
    fn default() -> Self {
        Self {
            said: BTreeMap::new(),
            maker: None,
        }
    }
}

impl<T: Shared> Contest<T> {
    pub(super) fn set(&mut self, author: NodeId, scope: NetworkId, register: Option<Register<T>>) {
        let register =
            register.filter(|register| register.lamport <= MAX_LAMPORT && register.value.is_plausible(scope));
        match register {
            Some(register) => self.said.insert(author, register),
            None => self.said.remove(&author),
        };
        let says_so = |node: &NodeId| {
            let register = self.said.get(node);
            register.is_some_and(|register| register.value.maker() == Some(*node))
        };
        if self.maker.as_ref().is_some_and(says_so) {
            return;
        }
        // One that took its word back is the maker to those who go on using what it has made.
        let others = || self.said.values().filter_map(|register| register.value.maker());
        let known = self.maker.filter(|maker| others().any(|other| other == *maker));
        let itself = self.said.keys().copied().find(says_so);
        self.maker = itself.or(known).or_else(|| others().next());
    }

    /// What an author says, whether or not it is believed.
    pub(super) fn said_by(&self, author: NodeId) -> Option<&Register<T>> {
        self.said.get(&author)
    }

    /// What anybody says, whether or not it is believed.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.said.values().map(|register| &register.value)
    }

    /// Whether anybody says anything.
    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    pub(super) fn is_said_by(&self, author: NodeId) -> bool {
        self.said.contains_key(&author)
    }

    /// Those who name themselves the makers of what another has made.
    pub(super) fn pretenders(&self) -> impl Iterator<Item = NodeId> {
        let pretends = |(author, register): (&NodeId, &Register<T>)| {
            let maker = register.value.maker()?;
            (Some(maker) != self.maker || !self.is_believed(*author, register)).then_some(*author)
        };
        self.said.iter().filter_map(pretends)
    }

    fn is_believed(&self, author: NodeId, register: &Register<T>) -> bool {
        let Some(maker) = register.value.maker() else {
            return true;
        };
        let of_maker = self.said.get(&maker);
        Some(maker) == self.maker
            && (author == maker || of_maker.is_none_or(|of_maker| of_maker.value.extends(&register.value)))
    }

    fn believed(&self) -> impl Iterator<Item = (NodeId, &Register<T>)> {
        let said = self.said.iter().map(|(author, register)| (*author, register));
        said.filter(|(author, register)| self.is_believed(*author, register))
    }

    /// A time later than any that was said here.
    pub(super) fn next_lamport(&self) -> u64 {
        let last = self.believed().map(|(_, register)| register.lamport).max();
        (last.unwrap_or(0) + 1).min(MAX_LAMPORT)
    }

    /// What holds. Whoever `uses` it and says that it is there is right, whatever others say; of what was said at the same
    /// time, what a removed node said comes last.
    pub(super) fn live(
        &self,
        uses: impl Fn(NodeId) -> bool,
        is_removed: impl Fn(NodeId) -> bool,
    ) -> Option<&T> {
        looked();
        let winner = self
            .believed()
            .max_by_key(|(author, register)| (register.lamport, !is_removed(*author), *author));
        let (_, winner) = winner?;
        let is_used = || {
            self.believed()
                .any(|(author, register)| !register.removed && uses(author))
        };
        (!winner.removed || is_used()).then(|| self.latest(&winner.value))
    }

    /// The value with all that was added to it: who says that something is there may not have heard of that yet.
    fn latest<'a>(&'a self, value: &'a T) -> &'a T {
        if value.maker().is_none() {
            return value;
        }
        let all = self.believed().map(|(_, register)| &register.value);
        all.fold(value, |latest, other| match other.extends(latest) {
            true => other,
            false => latest,
        })
    }
}

/// Whether an endpoint can have this address on a network of these subnets.
pub(super) fn is_usable(address: std::net::IpAddr, subnets: &[SubnetSpec]) -> bool {
    let number = pools::number(address);
    subnets.iter().any(|subnet| {
        subnet.net.contains(&IpNet::from(address))
            && subnet.gateway != address
            && !pools::unusable(subnet.net).contains(&number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that its maker alone says what it is, and adds to.
    #[derive(Debug, Clone, PartialEq)]
    struct Made(NodeId, u32);

    impl Shared for Made {
        fn maker(&self) -> Option<NodeId> {
            Some(self.0)
        }

        fn extends(&self, other: &Self) -> bool {
            self.0 == other.0 && self.1 >= other.1
        }
    }

    #[test]
    fn what_its_maker_added_is_there_whoever_says_something_older_later() {
        let [maker, user, liar] = [1, 2, 3].map(|n| NodeId([n; 32]));
        let mut contest = Contest::default();
        let mut say = |author, lamport, removed, has| {
            let register = Register {
                lamport,
                removed,
                value: Made(maker, has),
            };
            contest.set(author, CLUSTER, Some(register));
            contest.live(|node| node == user, |_| false).map(|made| made.1)
        };
        assert_eq!(say(maker, 1, false, 1), Some(1));
        assert_eq!(say(user, 2, false, 1), Some(1));
        assert_eq!(say(maker, 3, false, 2), Some(2));
        // It uses it, and has not heard of the second when somebody says that it is gone.
        assert_eq!(say(maker, 4, true, 2), Some(2));
        assert_eq!(say(user, 5, false, 1), Some(2));
        // Nobody else adds anything.
        assert_eq!(say(liar, 6, false, 3), Some(2));
        assert_eq!(contest.pretenders().collect::<Vec<_>>(), [liar]);
    }

    #[test]
    fn what_is_used_is_there_whoever_says_that_it_is_gone() {
        let [maker, user, liar] = [1, 2, 3].map(|n| NodeId([n; 32]));
        let mut contest = Contest::default();
        let mut say = |author, lamport, removed| {
            let value = Made(maker, 0);
            let register = Register {
                lamport,
                removed,
                value,
            };
            contest.set(author, CLUSTER, Some(register));
            [false, true].map(|is_used| {
                let uses = |node| is_used && node == user;
                contest.live(uses, |_| false).is_some()
            })
        };
        assert_eq!(say(maker, 1, false), [true, true]);
        assert_eq!(say(user, 1, false), [true, true]);
        assert_eq!(say(liar, MAX_LAMPORT, true), [false, true]);
        assert_eq!(say(maker, MAX_LAMPORT, true), [false, true]);
        // Who uses it and agrees that it is gone has nothing against it.
        assert_eq!(say(user, 2, true), [false, false]);
    }
}
