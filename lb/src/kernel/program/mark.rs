//! What a service is known by in the kernel: the comment of its chains.

use std::{fmt, net::IpAddr};

use super::fnv;

/// Numbers of slots, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::kernel) struct Range {
    pub(in crate::kernel) first: u32,
    /// 0 where there is no choice, and the rule says the only backend.
    pub(in crate::kernel) len: u32,
}

/// What was written of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::kernel) struct Mark {
    /// Of its configuration.
    pub(in crate::kernel) fingerprint: String,
    /// In which maps its slots stand,
    pub(in crate::kernel) shard: u16,
    /// and where, for IPv4 and IPv6.
    pub(in crate::kernel) ranges: [Range; 2],
    /// Of what stands there.
    pub(in crate::kernel) sum: u64,
}

impl Mark {
    /// How many slots that are.
    pub(in crate::kernel) fn slots(&self) -> u32 {
        self.ranges[0].len.saturating_add(self.ranges[1].len)
    }

    /// From the comment of a chain.
    pub(in crate::kernel) fn parse(comment: &str) -> Option<Self> {
        let range = |text: &str| {
            let (first, len) = text.split_once('+')?;
            let (first, len) = (first.parse().ok()?, len.parse().ok()?);
            Some(Range { first, len })
        };
        let mut words = comment.split(' ');
        Some(Self {
            fingerprint: words.next()?.to_owned(),
            shard: words.next()?.parse().ok()?,
            ranges: [range(words.next()?)?, range(words.next()?)?],
            sum: u64::from_str_radix(words.next()?, 16).ok()?,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.fingerprint, self.shard)?;
        for Range { first, len } in self.ranges {
            write!(f, " {first}+{len}")?;
        }
        write!(f, " {:016x}", self.sum)
    }
}

/// The sum of slots in their order, those of IPv4 first.
pub(in crate::kernel) fn sum<'a>(slots: impl Iterator<Item = &'a IpAddr>) -> u64 {
    let mut bytes = Vec::new();
    for slot in slots {
        match slot {
            IpAddr::V4(addr) => bytes.extend(addr.octets()),
            IpAddr::V6(addr) => bytes.extend(addr.octets()),
        }
    }
    fnv(&bytes)
}
