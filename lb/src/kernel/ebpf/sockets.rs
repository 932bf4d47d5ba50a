//! The sockets of a sandbox that have to be closed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use weft_netlink::{
    diag::{Diag, Transport},
    netns::Netns,
};

use super::{
    super::Failure,
    State,
    layout::{MapId, SocketEntry, way_back},
};

impl State {
    /// Closes the TCP sockets that were idle for longer than their service allows, and says how many. A tenth of the
    /// shortest limit is how much too late that may be.
    pub(super) fn expire(&mut self, name: &str, netns: &Netns, now: Instant) -> Result<usize, Failure> {
        let (Some(table), Some(maps)) = (&self.table, &self.maps) else {
            return Ok(0);
        };
        let Some(sandbox) = self.sandboxes.get_mut(name) else {
            return Ok(0);
        };
        let tables = sandbox.synced.iter().flatten();
        let services = tables.flat_map(|table| table.services.iter());
        let Some(shortest) = services.filter_map(|service| service.idle_secs()).min() else {
            return Ok(0);
        };
        let every = Duration::from_secs(shortest.into()) / 10;
        if sandbox
            .expired
            .is_some_and(|last| now.saturating_duration_since(last) < every)
        {
            return Ok(0);
        }
        sandbox.expired = Some(now);
        let limits = table.idle_limits();
        let diag = Diag::open_in(netns)?;
        let mut closed = 0;
        for socket in diag.connected(maps.of(MapId::Sockets), true)? {
            let stored = socket.stored.as_deref().and_then(SocketEntry::decode);
            let limit = stored
                .filter(|stored| {
                    stored.peer == socket.peer && table.living().get(&stored.number) == Some(&stored.tag)
                })
                .and_then(|stored| limits.get(&stored.number));
            let is_over = limit.zip(socket.idle).is_some_and(|(limit, idle)| idle >= *limit);
            closed += usize::from(is_over && diag.close(&socket)?);
        }
        Ok(closed)
    }

    /// Closes the sockets whose backend is down or gone, and says how many.
    pub(super) fn cut(&mut self, name: &str, netns: &Netns) -> Result<usize, Failure> {
        self.table()?;
        let (Some(table), Some(maps)) = (&self.table, &self.maps) else {
            return Ok(0);
        };
        let (losses, living) = (table.losses, table.living());
        let Some(sandbox) = self
            .sandboxes
            .get_mut(name)
            .filter(|sandbox| sandbox.looked < losses)
        else {
            return Ok(0);
        };
        let none = BTreeSet::new();
        let vips = sandbox.routes.as_ref().unwrap_or(&none);
        let (sockets, flows) = (maps.of(MapId::Sockets), maps.of(MapId::Flows));
        let close = || -> Result<usize, Failure> {
            let diag = Diag::open_in(netns)?;
            let mut cut = 0;
            for socket in diag.connected(sockets, false)? {
                let backend = match socket.transport {
                    Transport::Tcp => socket.stored.as_deref().and_then(SocketEntry::decode),
                    // What is kept with datagram sockets is not shown.
                    Transport::Udp => flows
                        .get(&way_back(socket.cookie, socket.peer, socket.peer_port))?
                        .map(|flow| SocketEntry::of_flow(socket.peer, &flow)),
                };
                let is_stale = match backend.filter(|backend| backend.peer == socket.peer) {
                    Some(backend) => living.get(&backend.number) != Some(&backend.tag),
                    // It was connected before the address was a virtual one.
                    None => socket.transport == Transport::Udp && vips.contains(&socket.peer),
                };
                cut += usize::from(is_stale && diag.close(&socket)?);
            }
            Ok(cut)
        };
        match close() {
            Ok(cut) => {
                sandbox.looked = losses;
                Ok(cut)
            }
            Err(error) => {
                tracing::warn!(sandbox = %name, %error, "connections to backends that are gone are not cut");
                Ok(0)
            }
        }
    }
}
