use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Mac;

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

/// A number that does not fit a VXLAN header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VNI: the largest is 16777215")]
pub struct VniOutOfRange(u32);

impl Vni {
    /// The number as the VXLAN header carries it.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The Ethernet address of the network's gateway. All hosts have the same, so that a sandbox finds its gateway where it was
    /// after its addresses moved; what a host routes into the network comes from there too.
    pub fn gateway_mac(self) -> Mac {
        let [_, a, b, c] = self.0.to_be_bytes();
        Mac([0x02, b'w', b'f', a, b, c])
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniOutOfRange;

    fn try_from(number: u32) -> Result<Self, VniOutOfRange> {
        if number < 1 << 24 {
            Ok(Self(number))
        } else {
            Err(VniOutOfRange(number))
        }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vni({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::try_from(0xff_ffff).map(Vni::get), Ok(0xff_ffff));
        assert_eq!(Vni::try_from(0x100_0000), Err(VniOutOfRange(0x100_0000)));
    }
}
