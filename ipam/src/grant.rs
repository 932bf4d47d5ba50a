use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::Block;

/// The key of a node, whatever the caller uses for one.
pub trait Node: Copy + Ord + Debug {}

impl<T: Copy + Ord + Debug> Node for T {}

/// The highest version that owners get to by giving on.
///
/// The sixteen bits above count epochs. Numbers that are taken over from a node that was removed begin the next one: so
/// that outranks whatever the removed node may have granted unseen, in [`Space::take_over`](crate::Space::take_over).
pub const MAX_VERSION: u64 = (1 << 48) - 1;

/// The first version of the epoch after that of `version`.
pub(crate) fn next_epoch(version: u64) -> Option<u64> {
    (version >> 48).checked_add(1)?.checked_mul(1 << 48)
}

impl<N> Grant<N> {
    /// Whether it takes a block over from a node that was removed, which is not the one that writes it then.
    pub fn is_taken_over(&self) -> bool {
        self.version != 0 && self.version & MAX_VERSION == 0
    }
}

/// A block that changed hands: written once by its owner `from`, true for ever after.
///
/// For each number the versions of the grants that moved it rise by at least one a step, so the
/// grant of the highest version that covers a number names its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Grant<N> {
    /// What changed hands.
    pub block: Block,
    /// Who owned it and gave it away.
    pub from: N,
    /// Who owns it now.
    pub to: N,
    /// One more than the highest version of any grant that covered a part of the block before.
    pub version: u64,
}

/// What came of a grant that was merged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Merged<N: Node> {
    /// It was known, or newer grants cover all of it.
    Unchanged,
    /// Some numbers have a new owner.
    Applied,
    /// It contradicts what is known for certain. The block it names is quarantined and everything
    /// else goes on; an operator should hear of it.
    Quarantined(Conflict<N>),
    /// No node of this space can have written it; nothing was changed.
    Refused(BadGrant<N>),
}

/// A grant that is wrong by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGrant<N: Node> {
    /// Its block is not part of the space.
    #[error("the granted block {block:?} is outside the space {universe:?}")]
    OutsideSpace {
        /// What was granted.
        block: Block,
        /// All there is.
        universe: Block,
    },
    /// It gives a block to its owner.
    #[error("{node:?} grants the block {block:?} to itself")]
    ToItself {
        /// What was granted.
        block: Block,
        /// Giver and receiver.
        node: N,
    },
    /// Its version is zero, which stands for genesis.
    #[error("the grant of block {block:?} has version 0, which none is given by a grant")]
    Version {
        /// What was granted.
        block: Block,
    },
}

/// Two facts about one block that cannot both be true: a disk was rolled back, an identity was
/// copied, or somebody lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Conflict<N: Node> {
    /// Two grants with one version cover the same numbers.
    #[error(
        "{:?} was granted to {:?} by {:?} and {:?} to {:?} by {:?}, both in version {}",
        known.block, known.to, known.from, found.block, found.to, found.from, found.version
    )]
    Fork {
        /// What was known before.
        known: Grant<N>,
        /// What came now.
        found: Grant<N>,
    },
    /// A block was granted by a node that cannot have owned it.
    #[error(
        "{:?} was granted to {:?} in version {} by {:?}, but its owner was {owner:?}",
        grant.block, grant.to, grant.version, grant.from
    )]
    NotOwner {
        /// What is quarantined.
        block: Block,
        /// What should not exist.
        grant: Grant<N>,
        /// Who owned a part of the block when it was granted, and may have numbers in use there.
        owner: N,
    },
    /// This node granted numbers that it has in use and does not remember the grant.
    #[error(
        "this node granted {:?} to {:?} in version {}, does not remember it, and has {number} in use",
        grant.block, grant.to, grant.version
    )]
    Forgotten {
        /// What this node wrote at some time.
        grant: Grant<N>,
        /// The lowest number of the block in use here.
        number: u128,
    },
}

impl<N: Node> Conflict<N> {
    /// The block that is quarantined for it.
    pub fn block(&self) -> Block {
        match self {
            Self::Fork { known, found } => known.block.min_by_size(found.block),
            Self::NotOwner { block, .. } => *block,
            Self::Forgotten { grant, .. } => grant.block,
        }
    }
}

impl Block {
    fn min_by_size(self, other: Self) -> Self {
        if self.order() <= other.order() {
            self
        } else {
            other
        }
    }
}
