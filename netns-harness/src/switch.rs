//! Switches, and the interfaces that are plugged into them.

use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use weft_netlink::route::{Batch, SetLink};
use weft_types::Mac;

use crate::error::LabError;
use crate::fabric::{Fabric, PORTS_PER_BRIDGE};
use crate::host::Host;
use crate::namespaces::Inside;

/// What a switch is like.
#[derive(Clone, Debug)]
pub struct SwitchOptions {
    pub(crate) mtu: u32,
    pub(crate) subnets: Vec<IpNet>,
    /// Fewer in tests.
    ports_per_bridge: usize,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            subnets: Vec::new(),
            ports_per_bridge: PORTS_PER_BRIDGE,
        }
    }
}

impl SwitchOptions {
    /// MTU 1500, no addresses.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The MTU of the interfaces plugged in.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Gives every interface an address of this subnet: the first plugged in gets the first, and so on. Call it for an
    /// IPv4 and an IPv6 subnet to have both.
    #[must_use]
    pub fn subnet(mut self, subnet: impl Into<IpNet>) -> Self {
        self.subnets.push(subnet.into().trunc());
        self
    }
}

/// An Ethernet LAN. It grows by itself past the 1,023 ports of a Linux bridge.
///
/// A broadcast to more than a thousand interfaces at once overruns the kernel's queue (`net.core.netdev_max_backlog`) and
/// misses some of them; raise it on the machine for such labs.
#[derive(Clone, Debug)]
pub struct Switch {
    inner: Arc<SwitchInner>,
}

#[derive(Debug)]
struct SwitchInner {
    name: String,
    options: SwitchOptions,
    state: Mutex<SwitchState>,
}

#[derive(Debug, Default)]
struct SwitchState {
    /// Index and number of ports in use, of each bridge.
    bridges: Vec<(u32, usize)>,
    addressed: u32,
}

impl Switch {
    pub(crate) fn new(fabric: &Fabric, name: &str, options: SwitchOptions) -> Result<Self, LabError> {
        let first = fabric.bridge(name, None, options.mtu)?;
        let state = Mutex::new(SwitchState {
            bridges: vec![(first, 0)],
            addressed: 0,
        });
        Ok(Self {
            inner: Arc::new(SwitchInner {
                name: name.to_owned(),
                options,
                state,
            }),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Of how many bridges it is made at present.
    #[must_use]
    pub fn bridges(&self) -> usize {
        self.lock().bridges.len()
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.inner.options.mtu
    }

    /// Finds a free port, and makes another bridge if there is none. Returns the bridge.
    pub(crate) fn take_port(&self, fabric: &Fabric) -> Result<u32, LabError> {
        let mut state = self.lock();
        if let Some((bridge, used)) = state
            .bridges
            .iter_mut()
            .find(|(_, used)| *used < self.inner.options.ports_per_bridge)
        {
            *used += 1;
            return Ok(*bridge);
        }
        let before = state.bridges.last().map(|(bridge, _)| *bridge);
        let bridge = fabric.bridge(self.name(), before, self.mtu())?;
        state.bridges.push((bridge, 1));
        Ok(bridge)
    }

    /// The next address of each subnet.
    pub(crate) fn take_addresses(&self) -> Result<Vec<IpNet>, LabError> {
        let mut state = self.lock();
        let number = state.addressed + 1;
        let addresses = self.inner.options.subnets.iter().map(|subnet| {
            nth(*subnet, number).ok_or_else(|| LabError::NoAddress {
                switch: self.name().to_owned(),
                subnet: *subnet,
            })
        });
        let addresses = addresses.collect::<Result<_, _>>()?;
        state.addressed = number;
        Ok(addresses)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SwitchState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The nth address for a host in a subnet, from 1.
fn nth(subnet: IpNet, number: u32) -> Option<IpNet> {
    match subnet {
        IpNet::V4(net) => {
            let address = u32::from(net.network()).checked_add(number)?;
            let last = u32::from(net.broadcast());
            (address < last)
                .then(|| ipnet::Ipv4Net::new(address.into(), net.prefix_len()).ok())
                .flatten()
                .map(IpNet::V4)
        }
        IpNet::V6(net) => {
            let address = u128::from(net.network()).checked_add(number.into())?;
            let last = u128::from(net.broadcast());
            (address <= last)
                .then(|| ipnet::Ipv6Net::new(address.into(), net.prefix_len()).ok())
                .flatten()
                .map(IpNet::V6)
        }
    }
}

/// One interface of a host, as recorded: enough to make it again after a crash.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) mtu: u32,
    pub(crate) bridge: u32,
    pub(crate) switch: String,
    /// Index in the fabric.
    pub(crate) port: u32,
    /// Index in the host.
    pub(crate) link: u32,
    pub(crate) carrier: bool,
}

/// An interface of a host.
#[derive(Clone, Debug)]
pub struct Interface {
    pub(crate) host: Host,
    pub(crate) name: String,
}

impl Interface {
    /// The host it belongs to.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its name there, such as `eth0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its Ethernet address, which it keeps through crashes.
    ///
    /// # Errors
    ///
    /// [`LabError::NoInterface`].
    pub fn mac(&self) -> Result<Mac, LabError> {
        Ok(self.port()?.mac)
    }

    /// The addresses it was given, which it keeps through crashes.
    ///
    /// # Errors
    ///
    /// [`LabError::NoInterface`].
    pub fn addresses(&self) -> Result<Vec<IpNet>, LabError> {
        Ok(self.port()?.addresses)
    }

    /// Pulls the cable, or plugs it back in: the host sees its carrier go, and keeps addresses and routes.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the kernel refuses.
    pub fn set_carrier(&self, on: bool) -> Result<(), LabError> {
        let port = self.port()?;
        let change = SetLink::index(port.port);
        let mut batch = Batch::new();
        batch.add(if on { change.up() } else { change.down() });
        let what = format!("change the carrier of {} on host {}", self.name, self.host.name());
        self.host.lab()?.fabric.execute(what, batch)?;
        self.host.change_port(&self.name, |port| port.carrier = on);
        Ok(())
    }

    /// Brings the interface up or down on the host itself, which, down, forgets its IPv6 addresses and routes. Up, it
    /// gets its addresses again.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the kernel refuses, or the host is down.
    pub fn set_up(&self, up: bool) -> Result<(), LabError> {
        let port = self.port()?;
        let namespaces = self.host.namespaces()?;
        let mut batch = Batch::new();
        if up {
            port.bring_up(&mut batch);
        } else {
            batch.add(SetLink::index(port.link).down());
        }
        let what = format!(
            "bring {} on host {} {}",
            self.name,
            self.host.name(),
            if up { "up" } else { "down" }
        );
        namespaces
            .route_socket()?
            .execute(batch)
            .map_err(|source| LabError::Batch { what, source })
    }

    /// Changes the MTU on both ends of the cable.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the kernel refuses, or the host is down.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), LabError> {
        let port = self.port()?;
        let what = || {
            format!(
                "set the MTU of {} on host {} to {mtu}",
                self.name,
                self.host.name()
            )
        };
        let namespaces = self.host.namespaces()?;
        let mut batch = Batch::new();
        batch.add(SetLink::index(port.port).mtu(mtu));
        self.host.lab()?.fabric.execute(what(), batch)?;
        let mut batch = Batch::new();
        batch.add(SetLink::index(port.link).mtu(mtu));
        namespaces
            .route_socket()?
            .execute(batch)
            .map_err(|source| LabError::Batch { what: what(), source })?;
        self.host.change_port(&self.name, |port| port.mtu = mtu);
        Ok(())
    }

    fn port(&self) -> Result<Port, LabError> {
        self.host.port(&self.name)
    }
}

impl Port {
    /// Adds the addresses and brings the host's end up.
    pub(crate) fn bring_up(&self, batch: &mut Batch) {
        for &net in &self.addresses {
            batch.add(
                weft_netlink::route::Address {
                    link: self.link,
                    net,
                    prefix_route: true,
                }
                .add(),
            );
        }
        batch.add(SetLink::index(self.link).up());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_of_many_bridges_is_one_lan() {
        crate::isolated(|| {
            let lab = crate::Lab::new("grown").unwrap();
            let subnet: IpNet = "10.1.0.0/24".parse().unwrap();
            let options = SwitchOptions {
                ports_per_bridge: 2,
                ..SwitchOptions::new().subnet(subnet)
            };
            let lan = lab.switch("lan", options).unwrap();
            let hosts = lab.hosts(&["a", "b", "c", "d", "e"]).unwrap();
            lab.plug(&lan, &hosts).unwrap();
            assert_eq!(lan.bridges(), 3);
            let far = std::net::IpAddr::from([10, 1, 0, 5]);
            hosts[0].ping(far, std::time::Duration::from_secs(5)).unwrap();
            lab.partition(&[&[&hosts[0]], &[&hosts[4]]]).unwrap();
            hosts[0]
                .ping(far, std::time::Duration::from_millis(200))
                .unwrap_err();
            hosts[1].ping(far, std::time::Duration::from_secs(5)).unwrap();
            lab.close().unwrap();
        });
    }

    #[test]
    fn addresses_are_handed_out_from_one_until_the_subnet_ends() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(nth(net("10.0.0.0/24"), 1), Some(net("10.0.0.1/24")));
        assert_eq!(nth(net("10.0.0.0/24"), 254), Some(net("10.0.0.254/24")));
        assert_eq!(
            nth(net("10.0.0.0/24"), 255),
            None,
            "the broadcast address is nobody's"
        );
        assert_eq!(nth(net("fd00::/64"), 256), Some(net("fd00::100/64")));
        assert_eq!(nth(net("fd00::/127"), 2), None);
    }
}
