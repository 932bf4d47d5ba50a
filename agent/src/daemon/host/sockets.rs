//! The sockets at which names are asked: they live in the namespaces of networks.

use std::net::SocketAddr;

use weft_overlay::plan::Desired;

use super::Host;
use crate::{
    control::HostReport,
    daemon::{
        names::DnsSockets,
        service::{NameSockets, name_of, names_of},
    },
};

impl Host {
    /// Closes what an agent before this one had open for networks that are not here any more, whose namespaces it would keep alive.
    pub(super) fn let_go_of_sockets(&mut self, desired: &Desired) {
        let ids = desired.networks.keys();
        let there: Vec<String> = ids.map(|id| names_of(*id)).collect();
        self.kept
            .retain(|name| there.iter().any(|there| name.starts_with(there)));
    }

    /// Opens the DNS sockets of networks that have none yet, inside their namespaces.
    pub(super) fn open_sockets(&mut self, desired: &Desired, report: &mut HostReport) -> Vec<DnsSockets> {
        self.served
            .retain(|network, _| desired.networks.contains_key(network));
        let mut opened = Vec::new();
        for (id, network) in &desired.networks {
            let served = self.served.get(id).copied();
            if network.endpoints.is_empty() || (served.is_some() && served == self.kernel.namespace_id(*id)) {
                continue;
            }
            let Ok(Some(netns)) = self.kernel.namespace(*id) else {
                continue;
            };
            let name = name_of(*id, netns.id());
            let mut kept = self.kept.take(&name);
            let addresses = network.service_addresses.iter().copied();
            for address in addresses {
                let sockets = match kept.remove(&address) {
                    Some(sockets) => Ok(sockets),
                    None => NameSockets::bind(&netns, SocketAddr::new(address, 53)),
                };
                match sockets {
                    Ok(sockets) => opened.push(DnsSockets {
                        network: *id,
                        name: name.clone(),
                        sockets,
                    }),
                    Err(error) => report.problems.push(format!(
                        "names on network `{}` are not answered at {address}: {error}",
                        network.name
                    )),
                }
            }
            self.served.insert(*id, netns.id());
        }
        self.kept.retain(|_| false);
        opened
    }
}
