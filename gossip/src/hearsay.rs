//! What packets of membership say, read before `foca` is given them.
//!
//! Foca believes whatever it is told. Of itself a member may say anything, and the seal shows who it is; of others it has only
//! heard, so what it says of them is looked at one by one.

use foca::{Header, Member, Message};

use crate::{membership::Id, wire};

/// Low bits count the generations of one boot.
const BITS: u32 = 16;

/// The first generation of a boot.
pub(crate) fn first_of(boot: u64) -> u64 {
    boot.saturating_mul(1 << BITS)
}

/// The last one. A card names the boot and is signed, so no later one can be meant than that of the newest card.
pub(crate) fn last_of(boot: u64) -> u64 {
    first_of(boot) | ((1 << BITS) - 1)
}

/// The boot that a generation belongs to.
pub(crate) fn boot_of(generation: u64) -> u64 {
    generation >> BITS
}

/// A packet of foca's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) header: Header<Id>,
    pub(crate) updates: Vec<Member<Id>>,
}

impl Said {
    /// None if foca would not have written it: of its broadcasts, which come last, no use is made.
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        let (header, mut rest) = postcard::take_from_bytes::<Header<Id>>(data).ok()?;
        let mut updates = Vec::new();
        if !rest.is_empty() {
            let (count, mut members) = rest.split_first_chunk::<2>()?;
            for _ in 0..u16::from_be_bytes(*count) {
                let (member, after) = postcard::take_from_bytes(members).ok()?;
                updates.push(member);
                members = after;
            }
            rest = members;
        }
        rest.is_empty().then_some(Self { header, updates })
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut bytes = wire::encode(&self.header);
        if !matches!(self.header.message, Message::Announce | Message::TurnUndead) {
            bytes.extend((self.updates.len() as u16).to_be_bytes());
            for member in &self.updates {
                bytes.extend(wire::encode(member));
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use foca::State;

    use super::*;
    use crate::identity::Short;

    #[test]
    fn a_packet_is_written_as_it_was_read() {
        let id = |n: u8, generation| Id {
            node: Short([n; 8]),
            generation,
        };
        let header = Header {
            src: id(1, 1 << 16),
            src_incarnation: 0,
            dst: id(2, u64::MAX),
            message: Message::Gossip,
        };
        let updates = Vec::new();
        let mut said = Said { header, updates };
        assert_eq!(Said::read(&said.write()).as_ref(), Some(&said));
        said.updates.push(Member::new(id(3, 7), u16::MAX, State::Suspect));
        said.updates.push(Member::new(id(4, 0), 0, State::Down));
        let bytes = said.write();
        assert_eq!(Said::read(&bytes).as_ref(), Some(&said));
        assert_eq!(Said::read(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Said::read(&bytes[..bytes.len() - 1]), None);
        said.updates.clear();
        said.header.message = Message::Announce;
        assert_eq!(Said::read(&said.write()).as_ref(), Some(&said));
    }

    #[test]
    fn a_boot_has_its_generations_and_the_last_one_all_that_are_left() {
        assert_eq!((first_of(1), last_of(1)), (1 << 16, (2 << 16) - 1));
        assert_eq!(boot_of(last_of(7)), 7);
        assert_eq!(last_of(u64::MAX), u64::MAX);
    }
}
