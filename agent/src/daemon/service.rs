//! What the service manager does for the agent, be it systemd or one that speaks like it (`sd_notify(3)`, `sd_listen_fds(3)`): it waits until
//! the host is as it should be, starts an agent anew that does not move any more, and keeps sockets while there is none.
//!
//! Questions for names that come meanwhile wait in the sockets that it keeps. Without a service manager nothing of this happens.

use std::{
    collections::BTreeMap,
    env, io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsFd as _, unix::net::UnixListener},
    time::Duration,
};

use listenfd::ListenFd;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use sd_notify::NotifyState;
use socket2::Socket;
use tokio::time::{Interval, MissedTickBehavior, interval};
use weft_netlink::{
    broker::SocketKind,
    netns::{Netns, NetnsId},
};
use weft_types::NetworkId;

/// What the sockets are called at which names are asked.
const NAMES: &str = "names";
/// Room for what is asked at one address while the agent is away, in bytes of the kernel's, of which a question takes about 800.
const ROOM: usize = 1 << 20;

/// Connections by TCP that wait to be taken.
const WAITING: i32 = 128;

/// Where names are asked at one address.
#[derive(Debug)]
pub(super) struct NameSockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// What the service manager has passed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Where Docker finds its driver.
    pub(super) docker: Option<UnixListener>,
    /// What an agent before this one had kept.
    pub(super) kept: Kept,
}

/// Sockets that are kept, by the name they are kept by and the address they are bound to.
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<String, BTreeMap<IpAddr, NameSockets>>);

/// The sockets of a network in one namespace. While they are open that is there, and no other has its number.
pub(super) fn name_of(network: NetworkId, netns: NetnsId) -> String {
    format!("{}{}", names_of(network), netns.ino)
}

/// What the names of all sockets of a network begin with.
pub(super) fn names_of(network: NetworkId) -> String {
    format!("{NAMES}-{network}-")
}

/// Those for programs of the host.
pub(super) fn name_of_host() -> String {
    format!("{NAMES}-host")
}

/// Takes what was passed to this process.
pub(super) fn passed() -> Passed {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut descriptors = ListenFd::from_env();
    let mut passed = Passed::default();
    let mut udp = BTreeMap::new();
    let mut tcp = BTreeMap::new();
    for at in 0..descriptors.len() {
        let name = names.next().unwrap_or_default().to_owned();
        if !name.starts_with(NAMES) {
            match descriptors.take_unix_listener(at) {
                Ok(listener) => passed.docker = passed.docker.or(listener),
                Err(error) => tracing::warn!(name, %error, "the service manager has passed what is no use"),
            }
        } else if let Ok(Some(socket)) = descriptors.take_udp_socket(at) {
            let address = socket.local_addr().map(|bound| bound.ip());
            drop(address.map(|address| udp.insert((name, address), socket)));
        } else if let Ok(Some(socket)) = descriptors.take_tcp_listener(at) {
            let address = socket.local_addr().map(|bound| bound.ip());
            drop(address.map(|address| tcp.insert((name, address), socket)));
        }
    }
    for ((name, address), udp) in udp {
        if let Some(tcp) = tcp.remove(&(name.clone(), address)) {
            let pairs = passed.kept.0.entry(name).or_default();
            pairs.insert(address, NameSockets { udp, tcp });
        }
    }
    passed
}

impl NameSockets {
    pub(super) fn bind(netns: &Netns, address: SocketAddr) -> io::Result<Self> {
        let ipv4 = address.is_ipv4();
        let udp = Socket::from(netns.socket(SocketKind::Udp { ipv4 })?);
        udp.bind(&address.into())?;
        let tcp = Socket::from(netns.socket(SocketKind::Tcp { ipv4 })?);
        // An agent before this one may have left connections there that are still ending.
        tcp.set_reuse_address(true)?;
        tcp.bind(&address.into())?;
        tcp.listen(WAITING)?;
        // What the kernel gives by itself is room for some 250 questions.
        if let Err(error) = setsockopt(&udp, RcvBufForce, &ROOM) {
            tracing::debug!(%error, "the socket for names keeps its size");
        }
        Ok(Self {
            udp: udp.into(),
            tcp: tcp.into(),
        })
    }
}

impl Kept {
    /// The sockets of this name, if they were kept.
    pub(super) fn take(&mut self, name: &str) -> BTreeMap<IpAddr, NameSockets> {
        self.0.remove(name).unwrap_or_default()
    }

    /// Closes all whose name is not wanted, and has them kept no more.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        for (name, _) in self.0.extract_if(.., |name, _| !is_wanted(name)) {
            let_go(&name);
        }
    }
}

/// Has the sockets kept until they are let go, also when this process ends.
pub(super) fn keep(name: &str, sockets: &NameSockets) {
    let states = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        // They are nothing to look after.
        NotifyState::Custom("FDPOLL=0"),
    ];
    let descriptors = [sockets.udp.as_fd(), sockets.tcp.as_fd()];
    if let Err(error) = sd_notify::notify_with_fds(&states, &descriptors) {
        tracing::debug!(name, %error, "the service manager does not keep sockets");
    }
}

/// Has all sockets of this name closed, which would keep their namespace alive.
pub(super) fn let_go(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// The host is as it should be.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Says again and again that whoever asks this is at work.
#[derive(Debug)]
pub(super) struct Watchdog(Option<Interval>);

impl Watchdog {
    pub(super) fn start() -> Self {
        Self(sd_notify::watchdog_enabled().map(|patience| {
            let mut often = interval((patience / 2).max(Duration::from_millis(1)));
            often.set_missed_tick_behavior(MissedTickBehavior::Delay);
            often
        }))
    }

    /// Until it is time to say so; for ever if nobody wants to know. Cancel-safe.
    pub(super) async fn due(&mut self) {
        match &mut self.0 {
            Some(often) => drop(often.tick().await),
            None => std::future::pending().await,
        }
    }

    pub(super) fn at_work(&self) {
        notify(&[NotifyState::Watchdog]);
    }
}
