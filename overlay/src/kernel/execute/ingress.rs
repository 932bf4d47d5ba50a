//! Operations on the way into a network, and on the ports of the host that lead there.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use weft_netlink::route::{Address, BridgeFdb, LocalRoute, NewLink, Request, SetLink, VethPeer, delete_link};
use weft_types::NetworkId;

use super::{Run, Target, endpoint::ENDPOINT, network::nft_of};
use crate::{
    kernel::{
        Cause, names,
        names::{INGRESS, INGRESS_ALIAS, INGRESS_INDEX, INGRESS_PORT, INGRESS_PORT_INDEX, ROUTE_PROTOCOL},
        ports,
    },
    plan::{HostPorts, IngressLink, SourceRules, Uplink},
};

/// Of several routes to the same destination, IPv6 wants each to have a metric of its own.
const FIRST_METRIC: u32 = 4096;

/// Has IPv6's loopback be reached through the host's end of an uplink, for answers to who called a published port there.
/// IPv4's is by [`names::route_localnet`].
pub(in crate::kernel) fn loopback_route(uplink: &Uplink, link: u32) -> LocalRoute {
    LocalRoute {
        to: IpAddr::V6(Ipv6Addr::LOCALHOST),
        link,
        metric: FIRST_METRIC + u32::from(uplink.slot),
        protocol: ROUTE_PROTOCOL,
    }
}

impl Run<'_> {
    pub(super) fn add_ingress(&mut self, id: NetworkId, ingress: &IngressLink) -> Result<(), Cause> {
        let target = Target::Space(id);
        let space = self.space(id)?;
        let links = space.links;
        let uplink = space.uplink.ok_or(Cause::Missing("the uplink"))?;
        let outside = links
            .uplink_host
            .ok_or(Cause::Missing("the host's end of the uplink"))?;
        let leftovers: Vec<u32> = links.ingress_port.or(links.ingress).into_iter().collect();
        self.push(target, leftovers.into_iter().map(delete_link));
        let peer = VethPeer::new(INGRESS)
            .index(INGRESS_INDEX)
            .mac(ingress.mac)
            .mtu(ingress.mtu);
        let pair = NewLink::veth(INGRESS_PORT, peer)
            .index(INGRESS_PORT_INDEX)
            .mtu(ingress.mtu)
            .alias(INGRESS_ALIAS)
            .master(links.bridge)
            .up();
        self.push(target, pair);
        let port = INGRESS_PORT_INDEX;
        self.push(target, SetLink::index(port).port(ENDPOINT));
        let mac = ingress.mac;
        self.push(target, BridgeFdb { port, mac }.replace());
        self.push(target, SetLink::index(INGRESS_INDEX).alias(INGRESS_ALIAS).up());
        let addresses: Vec<Request> = (ingress.addresses.iter())
            .map(|address| {
                Address {
                    link: INGRESS_INDEX,
                    net: IpNet::from(*address),
                    prefix_route: true,
                }
                .add()
            })
            .collect();
        self.push(target, addresses);
        self.flush_checked()?;
        let space = self.space(id)?;
        space.links.ingress = Some(INGRESS_INDEX);
        space.links.ingress_port = Some(INGRESS_PORT_INDEX);
        // What leaves by the bridge comes back by the ingress.
        space.netns.set_sysctls(&names::NO_RETURN_PATH)?;
        let localnet = names::route_localnet(id);
        self.kernel.host.set_sysctls(&[(localnet, "1")])?;
        if uplink.ipv6 {
            self.push(Target::Host, [loopback_route(&uplink, outside).add()]);
        }
        Ok(())
    }

    pub(super) fn delete_ingress(&mut self, id: NetworkId) -> Result<(), Cause> {
        let space = self.space(id)?;
        let (port, far) = (space.links.ingress_port.take(), space.links.ingress.take());
        let (outside, uplink) = (space.links.uplink_host, space.uplink);
        if let Some(link) = port.or(far) {
            self.push(Target::Space(id), delete_link(link));
        }
        // With the uplink goes what follows.
        let (Some(outside), Some(uplink)) = (outside, uplink) else {
            return Ok(());
        };
        let localnet = names::route_localnet(id);
        self.kernel.host.set_sysctls(&[(localnet, "0")])?;
        if uplink.ipv6 {
            self.push(Target::Host, [loopback_route(&uplink, outside).delete()]);
        }
        Ok(())
    }

    pub(super) fn set_sources(&mut self, id: NetworkId, sources: &SourceRules) -> Result<(), Cause> {
        Ok(nft_of(self.space(id)?)?.commit(&ports::network(sources))?)
    }

    pub(super) fn delete_sources(&mut self, id: NetworkId) -> Result<(), Cause> {
        Ok(nft_of(self.space(id)?)?.commit(&ports::delete_network())?)
    }

    /// Without ports the table goes.
    pub(super) fn set_ports(&mut self, wanted: Option<&HostPorts>) -> Result<(), Cause> {
        let before = ports::observe_host(&self.kernel.nft)?.unwrap_or_default();
        let change = wanted.map_or_else(ports::delete_host, ports::host);
        self.kernel.nft.commit(&change)?;
        let none = HostPorts::default();
        let addresses = self.kernel.route.addresses()?;
        let addresses = addresses.iter().map(|address| address.net.addr()).collect();
        let now = wanted.unwrap_or(&none);
        if let Err(error) = ports::forget_flows(&self.kernel.host, &addresses, &before, now) {
            tracing::warn!(%error, "flows through published ports go on as they were");
        }
        Ok(())
    }
}
