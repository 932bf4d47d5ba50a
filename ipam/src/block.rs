use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The largest order a block may have: its count still fits a `u128`.
pub const MAX_ORDER: u8 = 127;

/// An aligned run of 2^order numbers: what a CIDR prefix is to addresses.
///
/// Two blocks are either apart or one holds the other, so a grant never splits ambiguously.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawBlock")]
pub struct Block {
    first: u128,
    order: u8,
}

/// A pair of numbers that is not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The block would hold more numbers than can be counted.
    #[error("a block of order {order} is larger than the largest one, of order {MAX_ORDER}")]
    TooLarge {
        /// The order that was asked for.
        order: u8,
    },
    /// The first number is not a multiple of the block's size.
    #[error("a block of order {order} cannot begin at {first}, which is not a multiple of its size")]
    Unaligned {
        /// Where it would begin.
        first: u128,
        /// The order that was asked for.
        order: u8,
    },
}

impl Block {
    /// The block of 2^`order` numbers that begins at `first`.
    pub fn new(first: u128, order: u8) -> Result<Self, BlockError> {
        if order > MAX_ORDER {
            return Err(BlockError::TooLarge { order });
        }
        if first & ((1 << order) - 1) != 0 {
            return Err(BlockError::Unaligned { first, order });
        }
        Ok(Self { first, order })
    }

    /// The block of one number.
    pub fn single(number: u128) -> Self {
        Self {
            first: number,
            order: 0,
        }
    }

    /// The fewest blocks that together hold exactly the numbers of `range`, lowest first.
    pub fn cover(range: RangeInclusive<u128>) -> impl Iterator<Item = Self> {
        let (first, last) = range.into_inner();
        let mut next = (first <= last).then_some(first);
        std::iter::from_fn(move || {
            let first = next?;
            let aligned = first.trailing_zeros().min(u32::from(MAX_ORDER));
            // The largest order that neither breaks alignment nor runs past the end.
            let room = (last - first)
                .checked_add(1)
                .map_or(MAX_ORDER.into(), u128::ilog2);
            let block = Self {
                first,
                order: aligned.min(room) as u8,
            };
            next = block.last().checked_add(1).filter(|n| *n <= last);
            Some(block)
        })
    }

    /// The lowest number.
    pub fn first(&self) -> u128 {
        self.first
    }

    /// The highest number.
    pub fn last(&self) -> u128 {
        self.first + (self.count() - 1)
    }

    /// The base-two logarithm of the count.
    pub fn order(&self) -> u8 {
        self.order
    }

    /// How many numbers it holds.
    pub fn count(&self) -> u128 {
        1 << self.order
    }

    /// All its numbers.
    pub fn range(&self) -> RangeInclusive<u128> {
        self.first..=self.last()
    }

    /// Whether `number` is in it.
    pub fn contains(&self, number: u128) -> bool {
        self.range().contains(&number)
    }

    /// Whether all of `other` is in it.
    pub fn holds(&self, other: &Block) -> bool {
        other.order <= self.order && self.contains(other.first)
    }

    /// The upper half, or itself when it is a single number.
    pub(crate) fn upper_half(&self) -> Self {
        match self.order.checked_sub(1) {
            Some(order) => Self {
                first: self.first + (1 << order),
                order,
            },
            None => *self,
        }
    }
}

#[derive(Deserialize)]
struct RawBlock {
    first: u128,
    order: u8,
}

impl TryFrom<RawBlock> for Block {
    type Error = BlockError;

    fn try_from(raw: RawBlock) -> Result<Self, BlockError> {
        Self::new(raw.first, raw.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_aligned_and_can_be_counted() {
        assert_eq!(
            Block::new(4, 3),
            Err(BlockError::Unaligned { first: 4, order: 3 })
        );
        assert_eq!(Block::new(0, 128), Err(BlockError::TooLarge { order: 128 }));
        let top = Block::new(1 << 127, 127).unwrap();
        assert_eq!(top.last(), u128::MAX);
        assert_eq!(top.upper_half().last(), u128::MAX);
        assert!(top.holds(&Block::single(u128::MAX)));
    }

    #[test]
    fn a_cover_is_exact_and_short() {
        let cover = |range| {
            Block::cover(range)
                .map(|b| (b.first, b.order))
                .collect::<Vec<_>>()
        };
        assert_eq!(cover(0..=255), [(0, 8)]);
        assert_eq!(cover(1..=6), [(1, 0), (2, 1), (4, 1), (6, 0)]);
        assert_eq!(cover(0..=u128::MAX), [(0, 127), (1 << 127, 127)]);
        assert_eq!(cover(u128::MAX..=u128::MAX), [(u128::MAX, 0)]);
        #[expect(clippy::reversed_empty_ranges)]
        let nothing = cover(2..=1);
        assert_eq!(nothing, []);
    }

    #[test]
    fn a_block_from_the_wire_is_checked() {
        let good = postcard::to_stdvec(&Block::new(8, 3).unwrap()).unwrap();
        assert_eq!(
            postcard::from_bytes::<Block>(&good).unwrap(),
            Block::new(8, 3).unwrap()
        );
        let bad = postcard::to_stdvec(&(9u128, 3u8)).unwrap();
        assert!(postcard::from_bytes::<Block>(&bad).is_err());
    }
}
