//! Being a member: the control together with its sockets, and how both begin.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use rand::random;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep_until, timeout},
};
use weft_gossip::{
    Config, Gossip, Output,
    transport::{Input, Transport},
};
use weft_types::{ClusterId, NodeId};
use weft_wireguard::Secret32;

use super::{Daemon, advertise, now};
use crate::{
    api::{ApiError, types::*},
    control::{
        ClusterFacts, Control, Pools, Probe, Responder, Ring, Settings, Stored, TunnelKeys, admission,
        records,
    },
};

/// How long a host that is asked whether it is there may take, on whatever path.
const PROBE: Duration = Duration::from_millis(500);
/// More than this at once means that this host is cut off, not that the others are gone.
const MAX_PROBES: usize = 256;

pub(super) struct Membership {
    pub(super) control: Control,
    transport: Transport,
    probes: JoinSet<(NodeId, bool)>,
}

impl Membership {
    /// Waits for one input and lets the control handle it; for ever where there is no membership.
    ///
    /// Cancel-safe: an input is taken and handled without an await in between.
    pub(super) async fn progress(membership: &mut Option<Self>) {
        let Some(Self {
            control,
            transport,
            probes,
        }) = membership
        else {
            return std::future::pending().await;
        };
        let due = control.poll_timeout();
        let expiry = async {
            match due {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            input = transport.recv() => match input {
                Input::Packet { from, bytes } => control.handle_packet(from, &bytes, now()),
                Input::StreamRequest { frame, responder } if admission::is_request(&frame) => {
                    responder.respond(control.handle_join_request(&frame, now()));
                }
                Input::StreamRequest { frame, responder } => {
                    responder.respond(control.handle_stream_request(&frame, now()));
                }
                Input::StreamResponse { frame } => control.handle_stream_response(&frame, now()),
            },
            Some(Ok((node, answers))) = probes.join_next() => control.handle_probe(node, answers, now()),
            () = expiry => control.handle_timeout(now()),
        }
    }

    pub(super) fn probe(&mut self, probes: Vec<Probe>) {
        for Probe { node, address } in probes {
            if self.probes.len() < MAX_PROBES {
                self.probes.spawn(async move { (node, is_there(address).await) });
            }
        }
    }

    pub(super) fn send(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Packet { to, bytes } => self.transport.send_packet(to, &bytes),
                Output::Stream { to, request } => {
                    if self.transport.open_stream(to, request).is_none() {
                        tracing::debug!(%to, "too many streams are open; this one is tried again later");
                    }
                }
                Output::Event(_) => unreachable!("the control handles events itself"),
            }
        }
    }
}

impl Daemon {
    /// Opens the sockets and takes up the state of the disk.
    pub(super) async fn open_membership(
        &self,
        facts: ClusterFacts,
        ring: Ring,
        fresh: bool,
    ) -> anyhow::Result<Membership> {
        let transport = listen(advertise(&self.options)?).await?;
        self.assemble(facts, ring, fresh, transport)
    }

    pub(super) fn assemble(
        &self,
        facts: ClusterFacts,
        ring: Ring,
        fresh: bool,
        transport: Transport,
    ) -> anyhow::Result<Membership> {
        let records = self.store.records()?;
        self.host
            .look_ahead(records::sandboxes_of(self.identity.node(), &records));
        let gossip_address = transport.local_addr();
        let boot = self.store.next_boot()?;
        let mut config = Config::new(facts.id, ring.to_seal(), gossip_address);
        config.network_kinds = records::NETWORK_KINDS.map(|kind| kind as u8).to_vec();
        let gossip = Gossip::new(config, self.identity.clone(), boot, random(), now().instant);
        let settings = Settings {
            node_name: self.node_name.clone(),
            gossip: gossip_address,
            vtep: gossip_address.ip(),
            underlay_mtu: super::host::underlay_mtu(gossip_address.ip()),
            vxlan_port: self.options.vxlan_port,
            domain: crate::options::DOMAIN.to_owned(),
            health_commands: self.options.health_commands,
            wireguard_port: self.options.wireguard_port,
            encrypter: self.encrypter.clone(),
            encrypt: self.options.encrypt,
            rotate_keys: self.options.rotate_keys,
            rotate_gossip_key: self.options.rotate_gossip_key,
            shown_networks: self.options.dns.host_networks.clone(),
            run_dir: self.options.run_dir.clone(),
            host: super::target::host()?,
        };
        let stored = Stored {
            tunnel_keys: self.tunnel_keys()?,
            ring,
            records,
            kept: self.store.kept()?,
            bindings: self.store.bindings()?,
        };
        let control = Control::new(facts, settings, gossip, stored, fresh, random(), now());
        Ok(Membership {
            control,
            transport,
            probes: JoinSet::new(),
        })
    }

    /// Becomes a member and carries out what follows from that at once.
    pub(super) async fn enter(&mut self, membership: Membership) -> anyhow::Result<()> {
        self.membership = Some(membership);
        self.carry_out().await
    }

    /// Makes a cluster of which this node is the first.
    pub(super) async fn init(&mut self, responder: Responder<ClusterInitResponse>) -> anyhow::Result<()> {
        let id = ClusterId(random());
        let facts = ClusterFacts {
            id,
            founder: self.identity.node(),
            keys: Vec::new(),
            pools: Pools::of_cluster(id),
            secret: Secret32::new(random()),
        };
        let ring = Ring::first(Secret32::new(random()), now().unix_millis);
        let membership = match self.open_membership(facts.clone(), ring.clone(), true).await {
            Ok(membership) => membership,
            Err(error) => {
                responder.send(Err(could_not_open(error)));
                return Ok(());
            }
        };
        self.gossip_keys.save(&ring)?;
        self.store.set_cluster(&facts)?;
        self.enter(membership).await?;
        let membership = self.membership.as_mut().expect("entered above");
        let token = membership
            .control
            .create_token(&TokenCreateRequest::default(), now());
        self.carry_out().await?;
        responder.send(token.map(|join| ClusterInitResponse {
            cluster_id: id,
            node_id: self.identity.node(),
            node_name: self.node_name.clone(),
            join,
        }));
        Ok(())
    }

    /// The keys of gossip, from their file. A version that could not change the key had it with the facts.
    pub(super) fn ring(&self, facts: &mut ClusterFacts) -> anyhow::Result<Ring> {
        if let Some(ring) = self.gossip_keys.load()? {
            return Ok(ring);
        }
        let first = facts.keys.first().copied().with_context(|| {
            format!(
                "the keys of gossip are missing in {}; without them no other node is understood. Put them back from a copy, or                  remove that directory, and join again after `weft node rm` on another host",
                self.options.data_dir.display()
            )
        })?;
        let ring = Ring::first(Secret32::new(first), now().unix_millis);
        self.gossip_keys.save(&ring)?;
        facts.keys.clear();
        self.store.set_cluster(facts)?;
        Ok(ring)
    }

    /// This node's keys for encrypted networks, made where there are none.
    fn tunnel_keys(&self) -> anyhow::Result<TunnelKeys> {
        if let Some(keys) = self.keys.load()? {
            return Ok(keys);
        }
        let keys = TunnelKeys::first(Secret32::new(random()), now().unix_millis);
        self.keys.save(&keys)?;
        Ok(keys)
    }

    pub(super) fn gossip_address(&self) -> Result<SocketAddr, ApiError> {
        advertise(&self.options)
    }
}

/// Whether a host answers a TCP connection, be it with a refusal.
async fn is_there(address: SocketAddr) -> bool {
    match timeout(PROBE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

/// Opens the sockets of gossip.
pub(super) async fn listen(address: SocketAddr) -> Result<Transport, ApiError> {
    Transport::bind(address).await.map_err(|error| {
        let help = match error.source.kind() {
            std::io::ErrorKind::AddrInUse => {
                "stop that process (`ss -lntup` names it), or start the agent with another port: \
                 --advertise IP:PORT"
            }
            _ => "start the agent with an address of this host that the others reach: --advertise IP[:PORT]",
        };
        ApiError::unavailable(format!("{error}; nothing was changed")).with_help(help)
    })
}

/// What kept the agent from becoming a member, for whoever asked it to.
pub(super) fn could_not_open(error: anyhow::Error) -> ApiError {
    error
        .downcast::<ApiError>()
        .unwrap_or_else(|error| ApiError::unavailable(format!("{error:#}")))
}
