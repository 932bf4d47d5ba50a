//! Policies that say how long connection tracking remembers an idle connection.

use std::fmt;

use super::nfnl::Attrs;

/// `NFT_OBJECT_CT_TIMEOUT`
pub(super) const OBJECT_TIMEOUT: u32 = 7;
/// `CTA_TIMEOUT_TCP_ESTABLISHED`, and for UDP `CTA_TIMEOUT_UDP_UNREPLIED` and `_REPLIED`
const TCP_ESTABLISHED: u16 = 3;
const UDP_UNREPLIED: u16 = 1;
const UDP_REPLIED: u16 = 2;

/// A transport protocol that can have a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeoutProtocol {
    /// TCP: for as long as a connection is established.
    Tcp,
    /// UDP: whether it was answered or not.
    Udp,
}

impl TimeoutProtocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The policy's name begins with it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How long an idle connection of one protocol is remembered; of IPv4 and IPv6. The states that it says nothing of
/// keep the namespace's own times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeout {
    /// Its name within the table.
    pub name: String,
    /// Connections of which protocol.
    pub protocol: TimeoutProtocol,
    /// For how many seconds.
    pub secs: u32,
}

impl Timeout {
    /// NFTA_OBJ_NAME, _TYPE, _DATA; NFTA_CT_TIMEOUT_L4PROTO, _DATA
    pub(super) fn encode(&self, m: &mut Attrs) {
        let (number, states): (i32, &[u16]) = match self.protocol {
            TimeoutProtocol::Tcp => (libc::IPPROTO_TCP, &[TCP_ESTABLISHED]),
            TimeoutProtocol::Udp => (libc::IPPROTO_UDP, &[UDP_UNREPLIED, UDP_REPLIED]),
        };
        m.string(2, &self.name);
        m.u32(3, OBJECT_TIMEOUT);
        m.nest(4, |data| {
            data.bytes(2, &[number as u8]);
            data.nest(3, |policy| {
                states.iter().for_each(|state| policy.u32(*state, self.secs))
            });
        });
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, protocol, secs } = self;
        write!(f, "{name} {{ protocol {}; idle {secs}s; }}", protocol.name())
    }
}
