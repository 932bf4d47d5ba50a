//! From numbers to addresses and back: which range each space covers.
//!
//! Addresses are absolute: the number of 10.128.3.7 is its value as an integer, so a space's blocks
//! are CIDR blocks. Units of the pools of default subnets are counted from the pool's beginning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use weft_ipam::Block;
use weft_types::ClusterId;

/// The VNIs Weft hands out: the second of the sixteen blocks of 2^20, away from the low numbers that
/// people and other programs pick.
pub fn vnis() -> Block {
    block(1 << 20, 20)
}

/// Where networks without `--subnet` get theirs. Fixed for the life of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pools {
    pub v4: Ipv4Net,
    pub v4_unit: u8,
    pub v6: Ipv6Net,
    pub v6_unit: u8,
}

impl Pools {
    /// 10.128.0.0/9 in units of /24, and a unique local /48 (RFC 4193) of the cluster's own in units of /64.
    pub fn of_cluster(cluster: ClusterId) -> Self {
        let mut global = [0; 16];
        global[0] = 0xfd;
        global[1..6].copy_from_slice(&cluster.0[..5]);
        Self {
            v4: Ipv4Net::new(Ipv4Addr::new(10, 128, 0, 0), 9).expect("a valid prefix length"),
            v4_unit: 24,
            v6: Ipv6Net::new(Ipv6Addr::from(global), 48).expect("a valid prefix length"),
            v6_unit: 64,
        }
    }

    pub fn units4(&self) -> Block {
        block(0, self.v4_unit - self.v4.prefix_len())
    }

    pub fn units6(&self) -> Block {
        block(0, self.v6_unit - self.v6.prefix_len())
    }

    pub fn subnet4(&self, unit: u128) -> IpNet {
        let first = u32::from(self.v4.network()) + ((unit as u32) << (32 - self.v4_unit));
        IpNet::V4(Ipv4Net::new(first.into(), self.v4_unit).expect("a valid prefix length"))
    }

    pub fn subnet6(&self, unit: u128) -> IpNet {
        let first = u128::from(self.v6.network()) + (unit << (128 - self.v6_unit));
        IpNet::V6(Ipv6Net::new(first.into(), self.v6_unit).expect("a valid prefix length"))
    }

    /// The units of the pool that an explicit subnet would take: none if it is outside the pool.
    pub fn units_of(&self, subnet: IpNet) -> Option<Block> {
        let (start, unit, inside, bits) = match subnet {
            IpNet::V4(net) => (
                u128::from(u32::from(self.v4.network())),
                self.v4_unit,
                self.v4.contains(&net),
                32,
            ),
            IpNet::V6(net) => (
                u128::from(self.v6.network()),
                self.v6_unit,
                self.v6.contains(&net),
                128,
            ),
        };
        if !inside {
            return None;
        }
        let first = (number(subnet.network()) - start) >> (bits - unit);
        Some(block(first, unit.saturating_sub(subnet.prefix_len())))
    }
}

/// CIDR prefixes and what is counted in units of them are aligned by construction.
fn block(first: u128, order: u8) -> Block {
    Block::new(first, order).expect("a prefix is aligned and no longer than an address")
}

pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => address.into(),
    }
}

/// The inverse of [`number`] in the family of `like`.
pub fn address(number: u128, like: IpNet) -> IpAddr {
    match like {
        IpNet::V4(_) => IpAddr::V4((number as u32).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

/// All numbers of a subnet.
pub fn block_of(subnet: IpNet) -> Block {
    block(
        number(subnet.network()),
        subnet.max_prefix_len() - subnet.prefix_len(),
    )
}

/// The numbers of a subnet that no endpoint can have: in IPv4 the network and broadcast addresses
/// (RFC 922; not in /31 and /32, RFC 3021), in IPv6 the subnet-router anycast address (RFC 4291, 2.6.1).
pub fn unusable(subnet: IpNet) -> Vec<u128> {
    match subnet {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            vec![number(net.network().into()), number(net.broadcast().into())]
        }
        IpNet::V4(_) => vec![],
        IpNet::V6(net) if net.prefix_len() < 127 => vec![number(net.network().into())],
        IpNet::V6(_) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_subnets_are_inverse() {
        let pools = Pools::of_cluster(ClusterId([0xab; 16]));
        assert_eq!(pools.subnet4(3).to_string(), "10.128.3.0/24");
        assert_eq!(pools.subnet6(5).to_string(), "fdab:abab:abab:5::/64");
        for unit in [0, 1, 32767] {
            assert_eq!(pools.units_of(pools.subnet4(unit)), Some(Block::single(unit)));
            assert_eq!(pools.units_of(pools.subnet6(unit)), Some(Block::single(unit)));
        }
        let units = |text: &str| pools.units_of(text.parse().unwrap());
        assert_eq!(units("10.128.4.0/22"), Some(block(4, 2)));
        assert_eq!(units("10.128.4.64/26"), Some(Block::single(4)));
        assert_eq!(units("192.168.0.0/24"), None);
        assert_eq!(units("10.0.0.0/8"), None);
    }

    #[test]
    fn network_and_broadcast_addresses_are_unusable_where_they_exist() {
        let unusable = |text: &str| unusable(text.parse().unwrap()).len();
        assert_eq!(unusable("10.0.0.0/24"), 2);
        assert_eq!(unusable("10.0.0.0/31"), 0);
        assert_eq!(unusable("fd00::/64"), 1);
        assert_eq!(block_of("10.0.0.0/24".parse().unwrap()), block(10 << 24, 8));
    }
}
