//! The sockets at which names are asked: they live in the namespaces of networks.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use weft_overlay::plan::Desired;

use super::{Host, sentence};
use crate::{control::HostReport, daemon::names::DnsSockets};

impl Host {
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
            let bound = netns.run(|| {
                network
                    .service_addresses
                    .iter()
                    .map(|address| bind(*address))
                    .collect::<Vec<_>>()
            });
            let sockets = bound.unwrap_or_else(|error| {
                report.problems.push(sentence(&error));
                Vec::new()
            });
            for socket in sockets {
                match socket {
                    Ok((udp, tcp)) => opened.push(DnsSockets {
                        network: *id,
                        udp,
                        tcp,
                    }),
                    Err((address, error)) => report.problems.push(format!(
                        "names on network `{}` are not answered at {address}: {error}",
                        network.name
                    )),
                }
            }
            self.served.insert(*id, netns.id());
        }
        opened
    }
}

fn bind(address: IpAddr) -> Result<(UdpSocket, TcpListener), (IpAddr, std::io::Error)> {
    let address = SocketAddr::new(address, 53);
    let open = || Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?));
    open().map_err(|error| (address.ip(), error))
}
