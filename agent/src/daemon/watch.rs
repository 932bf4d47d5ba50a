//! Notices when somebody else changes links of ours or takes rules away, so that they are repaired at once.
//!
//! What is not noticed here (a flushed forwarding table, say, or rules of a sandbox) is found by looking again now and
//! then, which the host thread does anyway.

use std::{
    collections::{BTreeMap, HashMap},
    sync::mpsc::Sender,
    time::Duration,
};

use tokio::{
    runtime,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use weft_netlink::{
    netns::{Netns, NetnsId},
    nft,
    route::{Event, Link, Monitor, PortFlags, RouteSocket},
};
use weft_types::NetworkId;

use super::host::Order;

/// Every link of ours has an alias that starts with this.
const MARK: &str = "weft:";
/// And every table of ours has a name that does with this.
const TABLE: &str = "weft";
/// Where dockerd has its firewall, with a chain for rules of others.
const DOCKERS: &str = "filter";
/// It changes with each port that a container publishes, and is seldom of interest to us.
const DOCKER_PAUSE: Duration = Duration::from_millis(250);

/// Watches namespaces. Ends watching when it is dropped.
pub(super) struct Watch {
    runtime: runtime::Handle,
    orders: Sender<Order>,
    /// By network; `None` is the host's own namespace.
    watched: BTreeMap<Option<NetworkId>, Watched>,
    /// Those that are listened to already, for whoever looks at their links next.
    ears: BTreeMap<Option<NetworkId>, Ears>,
}

/// What a namespace tells, from the moment it was opened.
struct Ears {
    netns: NetnsId,
    links: Monitor,
    rules: nft::Monitor,
}

impl Ears {
    /// Must be called within a tokio runtime.
    fn open(netns: &Netns) -> anyhow::Result<Self> {
        Ok(Self {
            netns: netns.id(),
            links: Monitor::open(netns)?,
            rules: nft::Monitor::open(netns)?,
        })
    }
}

/// Watching one namespace, until it is dropped.
struct Watched {
    netns: NetnsId,
    task: JoinHandle<((), ())>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Whatever is noticed is said as [`Order::Look`] or [`Order::Damaged`]. Must be called within a tokio runtime.
    pub(super) fn new(orders: Sender<Order>) -> Self {
        Self {
            runtime: runtime::Handle::current(),
            orders,
            watched: BTreeMap::new(),
            ears: BTreeMap::new(),
        }
    }

    /// The namespace that is watched as a network's, or as the host's.
    pub(super) fn watched(&self, what: Option<NetworkId>) -> Option<NetnsId> {
        Some(self.watched.get(&what)?.netns)
    }

    /// Listens to a namespace that is about to be looked at, so that [`Self::watch`] can take what is seen there for what it knows: no change
    /// falls between the two. What cannot be opened here is opened there, or said to fail.
    pub(super) fn listen(&mut self, what: Option<NetworkId>, netns: &Netns) {
        let _entered = self.runtime.enter();
        if let Ok(ears) = Ears::open(netns) {
            self.ears.insert(what, ears);
        }
    }

    /// `seen` are its links, if they were looked at after [`Self::listen`].
    pub(super) fn watch(
        &mut self,
        what: Option<NetworkId>,
        netns: &Netns,
        seen: Option<Vec<Link>>,
    ) -> anyhow::Result<()> {
        let _entered = self.runtime.enter();
        let earlier = self.ears.remove(&what).filter(|ears| ears.netns == netns.id());
        let seen = seen.filter(|_| earlier.is_some());
        let ears = match earlier {
            Some(ears) => ears,
            None => Ears::open(netns)?,
        };
        // Read after the monitor is open, so that no change falls between the two.
        let known = match seen {
            Some(seen) => seen,
            None => RouteSocket::open(netns)?.links()?,
        };
        let known = known.into_iter().map(|link| (link.index, link)).collect();
        let links = follow_links(what, ears.links, known, self.orders.clone());
        let rules = follow_rules(ears.rules, self.orders.clone());
        let task = self.runtime.spawn(async { tokio::join!(links, rules) });
        let netns = netns.id();
        self.watched.insert(what, Watched { netns, task });
        Ok(())
    }

    /// Nobody looks any more at what [`Self::listen`] has opened.
    pub(super) fn stop_listening(&mut self) {
        self.ears.clear();
    }

    /// Stops to watch networks that `keep` does not know.
    pub(super) fn retain(&mut self, keep: impl Fn(NetworkId) -> bool) {
        self.watched.retain(|what, _| what.is_none_or(&keep));
    }
}

async fn follow_links(
    network: Option<NetworkId>,
    mut monitor: Monitor,
    mut known: HashMap<u32, Link>,
    orders: Sender<Order>,
) {
    while let Some(event) = monitor.next().await {
        let damaged = |link| Order::Damaged { network, link };
        let order = match event {
            Event::Changed(now) => {
                let before = known.insert(now.index, (*now).clone());
                let damage = before.is_some_and(|before| is_damage(&before, &now));
                damage.then(|| damaged(now.index))
            }
            Event::Deleted(link) => {
                let ours = known.remove(&link.index).is_some_and(|link| is_ours(&link));
                ours.then(|| damaged(link.index))
            }
            Event::Port { link, flags } => known.get_mut(&link).and_then(|port| {
                let before = port.detail.port.replace(flags);
                let damage = is_ours(port) && before.is_some_and(|before| is_opened(before, flags));
                damage.then(|| damaged(link))
            }),
            Event::Overrun => Some(Order::Look),
        };
        if order.is_some_and(|order| orders.send(order).is_err()) {
            return;
        }
    }
}

/// A commit that only takes from a table of ours is somebody else's, but for services that go: then there is nothing to
/// repair. Our own changes replace what they take.
async fn follow_rules(mut monitor: nft::Monitor, orders: Sender<Order>) {
    let mut later = None;
    loop {
        let event = match later {
            None => monitor.next().await,
            Some(at) => match timeout_at(at, monitor.next()).await {
                Ok(event) => event,
                Err(_) => Some(nft::Event::Overrun),
            },
        };
        let damage = match event {
            Some(nft::Event::Commit(tables)) => {
                if tables.contains_key(DOCKERS) {
                    later.get_or_insert_with(|| Instant::now() + DOCKER_PAUSE);
                }
                let mut ours = tables.iter().filter(|(name, _)| name.starts_with(TABLE));
                ours.any(|(_, change)| change.lost && !change.gained)
            }
            Some(nft::Event::Overrun) => true,
            None => return,
        };
        if damage {
            later = None;
            if orders.send(Order::Look).is_err() {
                return;
            }
        }
    }
}

fn is_ours(link: &Link) -> bool {
    link.alias.as_ref().is_some_and(|alias| alias.starts_with(MARK))
}

/// Whether a link of ours lost something. What it gains on its way up is our own doing.
fn is_damage(before: &Link, now: &Link) -> bool {
    let lost_master = before.master.is_some() && before.master != now.master;
    let ports = before.detail.port.zip(now.detail.port);
    is_ours(before)
        && (lost_master
            || ports.is_some_and(|(before, now)| is_opened(before, now))
            || (before.up && !now.up)
            || before.mtu != now.mtu
            || before.mac != now.mac
            || before.name != now.name
            || !is_ours(now))
}

/// Whether a port does again what it had been told not to do. A new one does everything at first.
fn is_opened(before: PortFlags, now: PortFlags) -> bool {
    let goes = |flag, to: bool| flag == (Some(!to), Some(to));
    // In full, so that a flag that is added is not forgotten here.
    let PortFlags {
        learning,
        neigh_suppress,
        flood,
        mcast_flood,
        bcast_flood,
        hairpin,
    } = before;
    goes((neigh_suppress, now.neigh_suppress), false)
        || [
            (learning, now.learning),
            (flood, now.flood),
            (mcast_flood, now.mcast_flood),
            (bcast_flood, now.bcast_flood),
            (hairpin, now.hairpin),
        ]
        .into_iter()
        .any(|flag| goes(flag, true))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use weft_netlink::route::{Batch, BridgeOptions, NewLink, Request, SetLink};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn execute(socket: &mut RouteSocket, requests: impl IntoIterator<Item = Request>) {
        let mut batch = Batch::new();
        batch.add(requests);
        socket.execute(batch).unwrap();
    }

    /// What is seen is older than the watch, so damage in between is told by nothing but what was listened to meanwhile.
    #[test]
    fn damage_between_the_look_and_the_watch_is_noticed() {
        let Some(netns) = weft_netlink::testing::netns() else {
            return;
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        let mut socket = RouteSocket::open(&netns).unwrap();
        let bridge = NewLink::bridge("br0", BridgeOptions::default())
            .index(10)
            .alias("weft:1");
        execute(&mut socket, bridge.up());
        let network = Some(NetworkId([7; 16]));
        for (is_listened_to, is_noticed) in [(true, true), (false, false)] {
            let (orders, told) = channel();
            let mut watch = Watch::new(orders);
            execute(&mut socket, SetLink::index(10).up());
            if is_listened_to {
                watch.listen(network, &netns);
            }
            let seen = socket.links().unwrap();
            execute(&mut socket, SetLink::index(10).down());
            watch.watch(network, &netns, Some(seen)).unwrap();
            // Whatever was told comes before this.
            execute(&mut socket, SetLink::index(10).up());
            execute(&mut socket, SetLink::index(10).mtu(1300));
            let damaged =
                |order| matches!(order, Ok(Order::Damaged { link: 10, network: n }) if n == network);
            assert!(damaged(told.recv_timeout(PATIENCE)));
            if is_noticed {
                assert!(damaged(told.recv_timeout(PATIENCE)), "the one before, too");
            }
            drop(watch);
            execute(&mut socket, SetLink::index(10).mtu(1500));
        }
    }
}
