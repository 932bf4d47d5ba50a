//! Joining: the exchange with a member before this node takes part in gossip.

use std::{net::SocketAddr, time::Duration};

use rand::random;
use tokio::time::timeout;
use weft_gossip::transport::{Transport, exchange};

use super::{
    Daemon,
    cluster::{Membership, listen},
    now,
};
use crate::{
    api::{ApiError, types::*},
    control::{
        Command, Responder,
        admission::{self, JoinError, Refused, Welcome},
        token::Token,
    },
};

/// For name resolution, connection and answer together.
const PATIENCE: Duration = Duration::from_secs(6);

/// What came of asking to be let in.
pub(super) struct Attempt {
    result: Result<(Welcome, Transport), ApiError>,
    responder: Responder<ClusterJoinResponse>,
}

pub(super) fn already(membership: &Membership) -> ApiError {
    let id = membership.control.facts().id;
    ApiError::conflict(format!("this node is in a cluster already ({})", id.short()))
        .with_help("`weft leave` makes it leave; `weft status` shows the cluster")
}

impl Daemon {
    pub(super) fn start_join(&self, request: ClusterJoinRequest, responder: Responder<ClusterJoinResponse>) {
        let advertise = self.gossip_address();
        let identity = self.identity.clone();
        let name = self.node_name.clone();
        let sender = self.join_sender.clone();
        // Apart from the owner of the state, which must not wait for another host.
        tokio::spawn(async move {
            let result = async {
                let token: Token = request.token.parse().map_err(|error| {
                    ApiError::invalid(format!("{error}")).with_help(
                        "`weft token create` on a node of the cluster prints a whole command to paste",
                    )
                })?;
                let address = advertise?;
                // Before anything is asked: a joiner that cannot be reached would be half a member.
                let transport = listen(address).await?;
                let frame = admission::request(&token, identity.node(), &name, random());
                let answer = ask(&request.address, frame).await?;
                let welcome = admission::read_answer(&token, &identity, &answer)
                    .map_err(|error| refused(&request.address, &error))?;
                Ok((welcome, transport))
            }
            .await;
            // The daemon is gone only when the process ends.
            let _ = sender.send(Attempt { result, responder }).await;
        });
    }

    pub(super) async fn on_join(&mut self, Attempt { result, responder }: Attempt) -> anyhow::Result<()> {
        let (welcome, transport) = match result {
            Ok(_) if self.membership.is_some() => {
                responder.send(Err(already(self.membership.as_ref().expect("checked"))));
                return Ok(());
            }
            Ok(welcome) => welcome,
            Err(error) => {
                responder.send(Err(error));
                return Ok(());
            }
        };
        // A ring without a cluster is nobody's; a cluster without a ring could not be spoken to.
        self.gossip_keys.save(&welcome.ring)?;
        self.store.set_cluster(&welcome.facts)?;
        let mut membership = self.assemble(welcome.facts, welcome.ring, true, transport)?;
        membership.control.join(welcome.members, responder, now());
        self.enter(membership).await
    }

    /// A command while this node is in no cluster: only its status can be told.
    pub(super) fn command_alone(&self, command: Command) {
        let Command::Status(facts, responder) = command else {
            // A dropped responder is answered with "in no cluster" by the server.
            return;
        };
        let address = self.gossip_address();
        let underlay_address = address.unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        responder.send(Ok(StatusResponse {
            node: NodeInfo {
                id: self.identity.node(),
                name: self.node_name.clone(),
                state: NodeState::Alive,
                underlay_address,
                vtep: underlay_address.ip(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                endpoint_count: 0,
                availability: Availability::Active,
                is_self: true,
            },
            started: crate::api::Timestamp::from_unix_millis(self.started.unix_millis),
            cluster: None,
            peers: Vec::new(),
            networks: Vec::new(),
            datapath: facts.datapath,
            names: facts.names,
            encryption: None,
            problems: Vec::new(),
        }));
    }
}

async fn ask(address: &str, frame: Vec<u8>) -> Result<bytes::Bytes, ApiError> {
    let unreachable = |why: String| {
        ApiError::unavailable(format!("no weft agent could be reached at {address}: {why}; nothing was changed"))
            .with_help("check the address, that the agent runs there, and that TCP and UDP port 7946 are open between the hosts")
    };
    let whole = async {
        let resolved = tokio::net::lookup_host(address)
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidInput => {
                    ApiError::invalid(format!("`{address}` is not HOST:PORT"))
                        .with_help("for example 192.0.2.1:7946")
                }
                _ => unreachable(error.to_string()),
            })?;
        let mut last = String::from("the name has no address");
        for candidate in resolved {
            match exchange(candidate, &frame).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error.to_string(),
            }
        }
        Err(unreachable(last))
    };
    timeout(PATIENCE, whole).await.unwrap_or_else(|_| {
        Err(unreachable(format!(
            "no answer within {} seconds",
            PATIENCE.as_secs()
        )))
    })
}

fn refused(address: &str, error: &JoinError) -> ApiError {
    let message = format!("{address} did not let this node in: {error}; nothing was changed");
    match error {
        JoinError::OtherCluster => ApiError::forbidden(message).with_help(
            "use a token and an address of the same cluster: `weft token create` there prints both",
        ),
        JoinError::Refused(Refused::Untold { .. }) => ApiError::exhausted(message)
            .with_help("join at another member with the same token; `weft status` on any of them lists them"),
        JoinError::Refused(Refused::NoRoom) => ApiError::exhausted(message)
            .with_help("each node keeps what was said by all that ever were in its cluster; make another cluster with `weft init`"),
        JoinError::OtherKey | JoinError::Refused(_) => ApiError::forbidden(message)
            .with_help("`weft token create` on a node of the cluster makes a new token"),
        JoinError::Malformed => ApiError::unavailable(message).with_help("check the address and the port"),
    }
}
