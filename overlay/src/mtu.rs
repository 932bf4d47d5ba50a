use std::net::{IpAddr, Ipv6Addr};

/// RFC 8200, section 5: every link carries IPv6 packets of this size.
const SMALLEST: u16 = 1280;

/// An underlay whose packets are too small for an overlay with IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an underlay with an MTU of {underlay} leaves {left} bytes for the overlay, and IPv6 needs {SMALLEST}: \
     raise the MTU of the underlay device"
)]
pub struct MtuTooSmall {
    underlay: u32,
    left: u32,
}

/// By how many bytes a packet is longer in the tunnel: VXLAN adds an Ethernet header (14), its own (8), UDP (8) and
/// IP (20, or 40 for an IPv6 underlay).
pub fn overhead(vtep: IpAddr) -> u32 {
    if vtep.is_ipv4() { 50 } else { 70 }
}

/// The largest packet that an endpoint can send without the tunnel having to split it.
pub fn overlay_mtu(underlay: u32, vtep: IpAddr) -> Result<u16, MtuTooSmall> {
    fitting(underlay, overhead(vtep))
}

/// The same of a network that is encrypted: VXLAN within IPv4 (50 bytes) within WireGuard, which adds its own header and
/// seal (32), UDP (8) and IP (20, or 40 for an IPv6 underlay).
pub fn encrypted_overhead(underlay: IpAddr) -> u32 {
    50 + if underlay.is_ipv4() { 60 } else { 80 }
}

/// The largest packet of a network that is encrypted. The underlay is taken to be IPv6, so that it may become so later.
pub fn encrypted_mtu(underlay: u32) -> Result<u16, MtuTooSmall> {
    fitting(underlay, encrypted_overhead(Ipv6Addr::UNSPECIFIED.into()))
}

fn fitting(underlay: u32, overhead: u32) -> Result<u16, MtuTooSmall> {
    let left = underlay.saturating_sub(overhead);
    // A loopback underlay has 65,536, more than an IPv4 packet can be.
    let mtu = u16::try_from(left).unwrap_or(u16::MAX);
    if mtu < SMALLEST {
        Err(MtuTooSmall { underlay, left })
    } else {
        Ok(mtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_takes_fifty_bytes_on_ipv4_and_seventy_on_ipv6() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert_eq!(overlay_mtu(1500, v4), Ok(1450));
        assert_eq!(overlay_mtu(1500, v6), Ok(1430));
        assert_eq!(overlay_mtu(9000, v4), Ok(8950));
        assert_eq!(overlay_mtu(65_536, v6), Ok(65_466));
        assert_eq!(overlay_mtu(1_000_000, v4), Ok(65_535));
        let error = overlay_mtu(1300, v4).unwrap_err();
        assert_eq!(
            error,
            MtuTooSmall {
                underlay: 1300,
                left: 1250
            }
        );
        assert!(overlay_mtu(20, v6).is_err());
    }

    #[test]
    fn encryption_takes_a_hundred_and_thirty_bytes_whatever_the_underlay() {
        assert_eq!(encrypted_mtu(1500), Ok(1370));
        assert_eq!(encrypted_mtu(9000), Ok(8870));
        assert_eq!(encrypted_mtu(1410), Ok(1280));
        assert!(encrypted_mtu(1409).is_err());
    }
}
