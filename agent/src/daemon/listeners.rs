//! Who else on this host waits on a port that is to be published.

use std::{collections::BTreeSet, net::IpAddr};

use weft_netlink::diag::{Diag, DiagError, Listener, Transport as Diagnosed};
use weft_overlay::plan::{HostPort, Transport};

use crate::{
    api::{ApiError, types::PublishedPort},
    control::host_port,
};

/// The ports that a socket of this host waits on, each with the first one found.
pub(super) fn in_use(
    ports: impl IntoIterator<Item = HostPort>,
) -> Result<Vec<(HostPort, IpAddr)>, DiagError> {
    let ports: BTreeSet<HostPort> = ports.into_iter().collect();
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let listeners = Diag::open()?.listeners()?;
    let user = |port: &HostPort| listeners.iter().find(|listener| waits_on(listener, port));
    Ok(ports
        .into_iter()
        .filter_map(|port| Some((port, user(&port)?.address)))
        .collect())
}

/// An IPv6 socket on all addresses may take IPv4 packets as well; it is taken to do so.
fn waits_on(listener: &Listener, port: &HostPort) -> bool {
    let transport = match listener.transport {
        Diagnosed::Tcp => Transport::Tcp,
        Diagnosed::Udp => Transport::Udp,
    };
    let at = |at: IpAddr| {
        let everywhere = listener.address.is_unspecified() && (listener.address.is_ipv6() || at.is_ipv4());
        let within = at.is_unspecified() && at.is_ipv6() == listener.address.is_ipv6();
        everywhere || within || at == listener.address
    };
    (transport, listener.port) == (port.transport, port.port) && port.at.is_none_or(at)
}

/// Refuses ports that something else on this host uses.
pub(super) fn check(ports: &[PublishedPort]) -> Result<(), ApiError> {
    let found = in_use(ports.iter().map(host_port)).map_err(|error| {
        ApiError::internal(format!(
            "whether the ports are free on this host cannot be found out: {error}; nothing was changed"
        ))
    })?;
    let Some((port, address)) = found.first() else {
        return Ok(());
    };
    Err(ApiError::conflict(format!(
        "port {}/{} of this host is in use: something listens on {address}; nothing was changed",
        port.port, port.transport
    ))
    .with_help(format!(
        "`ss -lnp 'sport = :{}'` says what it is; end it, or choose another port of the hosts",
        port.port
    )))
}

/// What `status` says of such a port.
pub(super) fn sentence(port: HostPort, address: IpAddr, is_open: bool) -> String {
    let outcome = if is_open {
        "gets nothing there, because the port is published"
    } else {
        "keeps it: the published port is closed on this host"
    };
    format!("port {port} is in use on this host: what listens on {address} {outcome}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_in_the_way_where_addresses_meet() {
        let port = |at: Option<&str>| HostPort {
            port: 80,
            transport: Transport::Tcp,
            at: at.map(|at| at.parse().unwrap()),
        };
        let listener = |address: &str| Listener {
            transport: Diagnosed::Tcp,
            address: address.parse().unwrap(),
            port: 80,
        };
        for (address, at, meets) in [
            ("0.0.0.0", None, true),
            ("127.0.0.1", None, true),
            ("::1", None, true),
            ("0.0.0.0", Some("10.1.0.1"), true),
            ("0.0.0.0", Some("2001:db8::1"), false),
            ("::", Some("10.1.0.1"), true),
            ("10.1.0.2", Some("10.1.0.1"), false),
            ("10.1.0.1", Some("10.1.0.1"), true),
            ("10.1.0.1", Some("0.0.0.0"), true),
            ("10.1.0.1", Some("::"), false),
        ] {
            assert_eq!(waits_on(&listener(address), &port(at)), meets, "{address} {at:?}");
        }
        let udp = Listener {
            transport: Diagnosed::Udp,
            ..listener("0.0.0.0")
        };
        assert!(!waits_on(&udp, &port(None)));
    }
}
