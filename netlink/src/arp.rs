//! Who answers for an address on a link: ARP (RFC 826), and the neighbour solicitations of duplicate address detection (RFC 4861,
//! RFC 4862).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv, send},
};
use socket2::{SockFilter, SockRef};
use weft_types::Mac;

use crate::{broker::SocketKind, icmp::checksum, netns::Netns, packet};

const ARP: u16 = libc::ETH_P_ARP as u16;
const IPV6: u16 = libc::ETH_P_IPV6 as u16;
const ARP_REPLY: u8 = 2;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// What comes before the payload of an IPv6 packet in its frame.
const HEADERS: usize = 14 + 40;

/// Who answers, by address.
pub type Holders = BTreeMap<IpAddr, BTreeSet<Mac>>;

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum ArpError {
    /// No socket, or a broken one.
    #[error("nobody can be asked for addresses on the link")]
    Socket(#[from] io::Error),
}

impl From<Errno> for ArpError {
    fn from(error: Errno) -> Self {
        Self::Socket(error.into())
    }
}

/// Asks twice for each of the addresses on a link, which has the Ethernet address `mac` and the addresses `own`, and collects the
/// answers. Blocks for as long as `patience`, since another answer may always come.
///
/// Linux has the addresses of all its links on each of them, and says so to who asks from an address, not to a probe
/// (RFC 5227) from none. So only who else has one of `own` is asked by a probe.
pub fn who_has(
    netns: &Netns,
    link: u32,
    mac: Mac,
    own: &[IpAddr],
    addresses: &[IpAddr],
    patience: Duration,
) -> Result<Holders, ArpError> {
    let open = |ipv4| netns.socket(SocketKind::Neighbours { link, ipv4 });
    let sockets = [open(true)?, open(false)?];
    let from = own.iter().find_map(|own| match own {
        IpAddr::V4(own) => Some(*own),
        IpAddr::V6(_) => None,
    });
    let mut holders = Holders::new();
    let begun = Instant::now();
    for until in [begun + patience / 2, begun + patience] {
        for address in addresses {
            let (socket, frame) = match address {
                IpAddr::V4(address) => {
                    let from = from.filter(|_| !own.contains(&IpAddr::V4(*address)));
                    (&sockets[0], request(mac, from, *address))
                }
                IpAddr::V6(address) => (&sockets[1], solicitation(mac, *address)),
            };
            match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
                // A queue is full: the second time comes.
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
            receive(&sockets, &mut holders)?;
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut ready = sockets
                .each_ref()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut ready, timeout) {
                Ok(_) | Err(Errno::EINTR) => receive(&sockets, &mut holders)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
    holders.retain(|address, _| addresses.contains(address));
    Ok(holders)
}

/// A socket of the calling thread's namespace for the answers to one kind of question, and for nothing else that comes over the
/// link.
pub(crate) fn open(link: u32, ipv4: bool) -> io::Result<OwnedFd> {
    let socket = packet::open()?;
    // Bytes of the frame, and what they have to be.
    let (protocol, [first, second]) = match ipv4 {
        true => (ARP, [(20, 0), (21, ARP_REPLY)]),
        false => (IPV6, [(14 + 6, ICMPV6), (HEADERS as u32, ADVERTISEMENT)]),
    };
    let load = |at| SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, at);
    let unless = |value: u8, skip| {
        let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        SockFilter::new(equal, 0, skip, value.into())
    };
    let end = |length| SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, length);
    SockRef::from(&socket).attach_filter(&[
        load(first.0),
        unless(first.1, 3),
        load(second.0),
        unless(second.1, 1),
        end(u32::MAX),
        end(0),
    ])?;
    packet::lock_filter(socket.as_fd())?;
    packet::bind(socket.as_fd(), link, protocol)?;
    Ok(socket)
}

fn receive(sockets: &[OwnedFd], holders: &mut Holders) -> Result<(), ArpError> {
    let mut buffer = [0; 256];
    for socket in sockets {
        loop {
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some((address, mac)) = holder(&buffer[..length]) {
                        holders.entry(address).or_default().insert(mac);
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn ethernet(to: [u8; 6], from: Mac, protocol: u16) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(from.0);
    frame.extend(protocol.to_be_bytes());
    frame
}

/// A request; a probe if it is from no address (RFC 5227, section 2.1.1).
fn request(mac: Mac, from: Option<Ipv4Addr>, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(from.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// RFC 4862, section 5.4.2: from the unspecified address to the solicited-node multicast address, without options.
fn solicitation(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let target = address.octets();
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(&target[13..]);
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target);
    let length = message.len() as u8;
    // RFC 8200, section 8.1: the sum is over the addresses, the length and the protocol too.
    let mut summed = [0; 16].to_vec();
    summed.extend(group);
    summed.extend([0, 0, 0, length, 0, 0, 0, ICMPV6]);
    summed.extend(&message);
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0xff, target[13], target[14], target[15]], mac, IPV6);
    frame.extend([0x60, 0, 0, 0, 0, length, ICMPV6, 255]);
    frame.extend([0; 16]);
    frame.extend(group);
    frame.extend(message);
    frame
}

/// Who says in this frame that it has which address.
pub(crate) fn holder(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let bytes = |from: usize, len: usize| frame.get(from..from + len);
    let protocol = u16::from_be_bytes(bytes(12, 2)?.try_into().ok()?);
    if protocol == ARP {
        if bytes(14, 8)? != [0, 1, 8, 0, 6, 4, 0, ARP_REPLY] {
            return None;
        }
        let address: [u8; 4] = bytes(28, 4)?.try_into().ok()?;
        return Some((address.into(), Mac(bytes(22, 6)?.try_into().ok()?)));
    }
    let is_advertisement = protocol == IPV6
        && *frame.get(14 + 6)? == ICMPV6
        && *frame.get(14 + 7)? == 255
        && *frame.get(HEADERS)? == ADVERTISEMENT;
    if !is_advertisement {
        return None;
    }
    let address: [u8; 16] = bytes(HEADERS + 8, 16)?.try_into().ok()?;
    // The option with its address may be missing where the frame says it anyway.
    let option = bytes(HEADERS + 24, 8).filter(|option| option[..2] == [2, 1]);
    let mac = option
        .and_then(|option| option.get(2..))
        .or_else(|| bytes(6, 6))?;
    Some((address.into(), Mac(mac.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{route::RouteSocket, testing};

    #[test]
    fn whoever_has_an_address_answers_for_it() {
        let Some(netns) = testing::netns() else { return };
        let made = "ip link add v0 up type veth peer v1 && ip link set v1 up && ip addr add 10.9.0.2/24 dev v1 \
             && ip addr add fd00:9::2/64 dev v1 nodad && ip link set lo up && ip addr add 10.9.0.4/32 dev lo";
        let status = netns.run(|| std::process::Command::new("sh").args(["-c", made]).status());
        assert!(status.unwrap().unwrap().success());
        let links = RouteSocket::open(&netns).unwrap().links().unwrap();
        let link = |name| links.iter().find(|link| link.name == name).unwrap();
        let (asker, other) = (link("v0"), link("v1").mac.unwrap());
        let addresses =
            ["10.9.0.2", "10.9.0.3", "fd00:9::2", "fd00:9::3", "10.9.0.4"].map(|text| text.parse().unwrap());
        let mac = asker.mac.unwrap();
        let own = [[10, 9, 0, 1].into(), addresses[0]];
        let found = who_has(
            &netns,
            asker.index,
            mac,
            &own,
            &addresses,
            Duration::from_millis(400),
        )
        .unwrap();
        let expected =
            [addresses[0], addresses[2], addresses[4]].map(|address| (address, BTreeSet::from([other])));
        assert_eq!(found, Holders::from(expected));
    }

    #[test]
    fn an_answer_names_an_address_and_who_has_it() {
        let (me, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let mut arp = ethernet(me.0, other, ARP);
        arp.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        arp.extend(other.0);
        arp.extend([10, 0, 0, 7]);
        arp.extend(me.0);
        arp.extend([0; 4]);
        assert_eq!(holder(&arp), Some(([10, 0, 0, 7].into(), other)));
        let address: Ipv6Addr = "fd00::7".parse().unwrap();
        let mut advertisement = solicitation(other, address);
        advertisement[HEADERS] = ADVERTISEMENT;
        assert_eq!(holder(&advertisement), Some((address.into(), other)));
        advertisement.extend([2, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(
            holder(&advertisement),
            Some((address.into(), Mac([2, 0, 0, 0, 0, 9])))
        );
        for frame in [arp, advertisement] {
            for length in 0..HEADERS.min(frame.len()) - 14 {
                holder(&frame[..length]);
            }
        }
        for question in [request(me, None, [10, 0, 0, 7].into()), solicitation(me, address)] {
            assert_eq!(holder(&question), None);
        }
    }
}
