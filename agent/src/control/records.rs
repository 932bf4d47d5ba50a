//! What the agents of a cluster tell each other: the kinds of records and their contents.
//!
//! A record's author is the only one who can change it. What several nodes may set (a network, a
//! service) is a [`Register`]: every author keeps its own record, and the register with the highest
//! (Lamport time, author) is the one that holds. No wall clock decides anything.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use weft_gossip::{Key, KeyId, Record};
use weft_ipam::Block;
use weft_types::{EndpointId, Mac, NetworkId, NodeId, ServiceId, Vni};

use super::finding::EndpointHealth;
use crate::api::types::{EndpointMode, HealthCheck, PublishedPort, Scheduler, ServicePort, Tuning};

/// The scope of records that concern the whole cluster.
pub const CLUSTER: NetworkId = NetworkId([0; 16]);

/// The first byte of every value. A node keeps and passes on values of a version it does not know,
/// and does not read them.
const VERSION: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Node = 1,
    Network = 2,
    Service = 3,
    Endpoint = 4,
    Grant = 5,
    Token = 6,
    TokenUse = 7,
    Removal = 8,
    Drain = 9,
    Ingress = 11,
    /// Numbers that its author has from a node that was removed.
    Holding = 12,
    /// What its author believes a removed node to own, and who is to take it over.
    Consent = 13,
    /// Which keys of gossip its author has.
    Keys = 14,
    /// A key of gossip for some members, sealed for each of them alone.
    KeyOffer = 15,
    /// That its author has endpoints on a network.
    Use = 16,
}

/// The kinds of records that are told to those only who want to know of the network that they are about. All other kinds are told
/// to all nodes.
pub const NETWORK_KINDS: [Kind; 2] = [Kind::Endpoint, Kind::Ingress];

impl Kind {
    pub fn of(key: &Key) -> Option<Self> {
        Some(match key.kind {
            1 => Self::Node,
            2 => Self::Network,
            3 => Self::Service,
            4 => Self::Endpoint,
            5 => Self::Grant,
            6 => Self::Token,
            7 => Self::TokenUse,
            8 => Self::Removal,
            9 => Self::Drain,
            11 => Self::Ingress,
            12 => Self::Holding,
            13 => Self::Consent,
            14 => Self::Keys,
            15 => Self::KeyOffer,
            16 => Self::Use,
            _ => return None,
        })
    }

    /// Whether what is said so is of no use to anybody once its author was removed from the cluster: it is about what the author
    /// has, or lets others in.
    pub fn ends_with_its_author(self) -> bool {
        use Kind::{Consent, Endpoint, Ingress, KeyOffer, Keys, Token, Use};
        matches!(self, Endpoint | Ingress | Use | Token | Consent | Keys | KeyOffer)
    }

    pub fn key(self, scope: NetworkId, name: impl Into<Vec<u8>>) -> Key {
        Key {
            kind: self as u8,
            scope,
            name: name.into(),
        }
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFact {
    pub name: String,
    /// Where its gossip listens on the underlay.
    pub gossip: SocketAddr,
    /// Where its VXLAN tunnels end.
    pub vtep: IpAddr,
    /// The MTU of the device that carries `vtep`, in bytes.
    pub underlay_mtu: u32,
    pub version: String,
    pub tunnel: TunnelFact,
}

/// The smallest MTU of IPv6 (RFC 8200), and so of any underlay.
const MIN_UNDERLAY_MTU: u32 = 1280;

impl NodeFact {
    /// Whether a node can be reached so. All networks have to fit the smallest underlay.
    pub fn is_plausible(&self) -> bool {
        let is_broadcast = self.vtep == IpAddr::V4(Ipv4Addr::BROADCAST);
        let is_one = !(self.vtep.is_unspecified() || self.vtep.is_multicast() || is_broadcast);
        is_one && self.underlay_mtu >= MIN_UNDERLAY_MTU
    }
}

/// Where a node's encrypted tunnels end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelFact {
    /// Its X25519 key.
    pub key: [u8; 32],
    /// Its address inside the tunnels.
    pub address: Ipv4Addr,
    /// The UDP port on its underlay address.
    pub port: u16,
    /// Which of its keys this is: the first, the second, …
    pub epoch: u32,
    /// The key that is to follow, while it changes: it takes packets by both.
    pub next: Option<[u8; 32]>,
}

impl TunnelFact {
    /// The keys that it takes packets by, the newest first, each with its number.
    pub fn keys(&self) -> impl Iterator<Item = ([u8; 32], u32)> {
        let next = self.next.map(|next| (next, self.epoch.saturating_add(1)));
        next.into_iter().chain([(self.key, self.epoch)])
    }
}

/// A value that several nodes may set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register<T> {
    pub lamport: u64,
    /// A removal keeps the value: a node that still has an endpoint on a network removed elsewhere
    /// during a split asserts it again.
    pub removed: bool,
    pub value: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub name: String,
    /// The Lamport time of its creation: the older of two networks of one name keeps the name.
    pub created: u64,
    /// The creator's wall clock then, in milliseconds since the Unix epoch; only ever shown.
    pub created_millis: u64,
    pub creator: NodeId,
    pub vni: Vni,
    pub mtu: u16,
    pub subnets: Vec<SubnetSpec>,
    pub internal: bool,
    pub labels: Vec<(String, String)>,
    pub options: Vec<(String, String)>,
    /// Whether what goes from host to host is encrypted; never changed.
    pub encrypted: bool,
}

impl NetworkSpec {
    /// The gateways of the subnets that somebody with these addresses is in.
    pub fn gateways<'a>(&'a self, addresses: &'a [IpNet]) -> impl Iterator<Item = IpAddr> + 'a {
        let is_in = |subnet: &&SubnetSpec| {
            addresses
                .iter()
                .any(|address| subnet.net.contains(&address.addr()))
        };
        self.subnets.iter().filter(is_in).map(|subnet| subnet.gateway)
    }

    /// The subnets that somebody with these addresses is not in, of the IP versions that it has.
    pub fn other_subnets<'a>(&'a self, addresses: &'a [IpNet]) -> impl Iterator<Item = IpNet> + 'a {
        let nets = self.subnets.iter().map(|subnet| subnet.net);
        nets.filter(|net| weft_overlay::plan::is_other(net, addresses))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    pub net: IpNet,
    pub gateway: IpAddr,
    /// Where addresses nobody asked for by number come from; the whole subnet if none.
    pub range: Option<IpNet>,
    /// Addresses that belong to things Weft does not manage, by name.
    pub aux: Vec<(String, IpAddr)>,
    /// The blocks taken from the pool of default subnets, if it came from there.
    pub pooled: Option<Block>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub network: NetworkId,
    pub name: String,
    pub created: u64,
    pub creator: NodeId,
    pub vips: Vec<IpAddr>,
    /// The node that took `vips` from its blocks, and gives them back.
    pub vips_from: NodeId,
    pub scheduler: Scheduler,
    pub mode: EndpointMode,
    pub ports: Vec<ServicePort>,
    pub health: Option<HealthCheck>,
    pub publish: Vec<PublishedPort>,
    pub tuning: Tuning,
}

/// A node's own place on a network, without a sandbox: where connections come from that it lets in by published ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressSpec {
    pub mac: Mac,
    pub addresses: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub name: String,
    pub aliases: Vec<String>,
    pub mac: Mac,
    pub addresses: Vec<IpNet>,
    /// The service it serves, by name, so that it does not matter which of the two is known first.
    pub service: Option<String>,
    pub weight: u16,
    /// Whether its sandbox's default routes go through it.
    pub gives_default_route: bool,
    /// Read by its own node only.
    pub attachment: Attachment,
    pub health: EndpointHealth,
    /// It is about to be stopped or detached: no new connections.
    pub leaving: bool,
}

/// How an endpoint's interface gets to where it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attachment {
    /// The agent puts it into this namespace and sets it up there.
    Sandbox(SandboxSpec),
    /// The agent makes it in the host's namespace for Docker, which moves it to a container and sets it
    /// up there.
    Docker(DockerSpec),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerSpec {
    /// The interface's name while it is in the host's namespace.
    pub ifname: String,
    /// The container, once it has joined.
    pub joined: Option<JoinedSpec>,
    /// The container's namespace, once it was looked at.
    pub sandbox: Option<SandboxSpec>,
}

/// A container on a network, as its engine names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedSpec {
    /// The engine's name for the container's namespace: the same for all its networks.
    pub key: String,
    /// How many of the addresses around the DNS address are on-link here, as a power of two; `None` for
    /// none. It differs between the networks of a container, because the engine adds the routes to them
    /// all with the same metric.
    pub dns_bits: Option<u8>,
}

impl EndpointSpec {
    /// The namespace it is in, as far as that is known.
    pub fn sandbox(&self) -> Option<&SandboxSpec> {
        match &self.attachment {
            Attachment::Sandbox(sandbox) => Some(sandbox),
            Attachment::Docker(docker) => docker.sandbox.as_ref(),
        }
    }

    /// How many bytes its record takes once it is as long as it may become.
    pub fn longest(&self) -> usize {
        let mut longest = Self {
            gives_default_route: true,
            health: EndpointHealth::longest(),
            leaving: true,
            ..self.clone()
        };
        if let Attachment::Docker(docker) = &mut longest.attachment {
            // As names of namespaces are at most, unless it has one that is longer.
            let path = || "x".repeat(64);
            docker.joined.get_or_insert_with(|| JoinedSpec {
                key: path(),
                dns_bits: Some(0),
            });
            docker.sandbox.get_or_insert_with(|| SandboxSpec {
                target: path(),
                path: path(),
                device: u64::MAX,
                inode: u64::MAX,
            });
        }
        encode(&longest).len()
    }

    pub fn docker(&self) -> Option<&DockerSpec> {
        match &self.attachment {
            Attachment::Sandbox(_) => None,
            Attachment::Docker(docker) => Some(docker),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// As the user named it.
    pub target: String,
    pub path: String,
    /// Device and inode of the namespace: another namespace under the same path is another sandbox.
    pub device: u64,
    pub inode: u64,
}

/// Which space of numbers a grant is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SpaceKey {
    /// Units of the IPv4 pool of default subnets.
    Subnets4,
    /// Units of the IPv6 pool of default subnets.
    Subnets6,
    Vnis,
    /// The addresses of the n-th subnet of a network.
    Addresses(NetworkId, u8),
}

impl SpaceKey {
    pub fn scope(self) -> NetworkId {
        match self {
            Self::Addresses(network, _) => network,
            _ => CLUSTER,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantFact {
    pub space: SpaceKey,
    pub to: NodeId,
    pub version: u64,
}

/// That its author has numbers from a node that was removed: taken over with the word of all, or given while it was a member
/// and nobody else heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingFact {
    pub space: SpaceKey,
    pub from: NodeId,
    pub version: u64,
}

/// That a node was removed, by its author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalFact {
    /// It rests on an operator's word, where too few nodes are left to agree, or on its own that it leaves.
    pub forced: bool,
}

/// What a removed node owns, as its author knows, who hears nothing from it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsentFact {
    pub heir: NodeId,
    /// A digest of all the numbers.
    pub estate: [u8; 16],
}

/// The keys of gossip that its author has, the newest first: the number of each, and what only who has it can say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysFact {
    pub proofs: Vec<(u32, [u8; 16])>,
}

/// A key of gossip for some members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferFact {
    pub epoch: u32,
    pub made_millis: u64,
    /// How many records of its author about this key there are with this one.
    pub records: u16,
    pub to: Vec<(NodeId, SealedKey)>,
}

/// The 32 bytes of a key and the 16 of the seal.
pub type SealedKey = ([u8; 32], [u8; 16]);

/// So many fit a record.
pub const OFFERS_PER_RECORD: usize = 11;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFact {
    /// The public half of the key that the token's secret is; the secret itself is never stored.
    pub public: [u8; 32],
    /// Seconds since the Unix epoch; the only place where a wall clock counts, and only against joining.
    pub expires_secs: u64,
    pub reusable: bool,
}

impl TokenFact {
    pub fn expires_millis(&self) -> u64 {
        self.expires_secs.saturating_mul(1000)
    }
}

/// What is drained: one endpoint, or all that a node has and will have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Drainee {
    Endpoint(NetworkId, EndpointId),
    Node(NodeId),
}

impl Drainee {
    /// What a record of the kind [`Kind::Drain`] is about.
    pub fn of(key: &Key) -> Option<Self> {
        if key.scope == CLUSTER {
            return Some(Self::Node(NodeId(key.name.as_slice().try_into().ok()?)));
        }
        Some(Self::Endpoint(key.scope, EndpointId(id_of(key)?)))
    }

    pub fn key(self) -> Key {
        match self {
            Self::Endpoint(network, id) => Kind::Drain.key(network, id.0),
            Self::Node(node) => Kind::Drain.key(CLUSTER, node.0),
        }
    }
}

/// That something gets no new connections. A [`Register`]: any node may be asked to drain anything, whether or not
/// the host it is on can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainSpec {
    pub phase: DrainPhase,
    /// The node that was asked for it.
    pub by: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DrainPhase {
    /// What is open stays open.
    Draining,
    /// Nothing was open any more.
    Drained,
    /// Time was up: what was open is reset.
    Cut,
}

/// The name of a network's record.
pub fn network_key(id: NetworkId) -> Key {
    Kind::Network.key(CLUSTER, id.0)
}

pub fn service_key(network: NetworkId, id: ServiceId) -> Key {
    Kind::Service.key(network, id.0)
}

pub fn endpoint_key(network: NetworkId, id: EndpointId) -> Key {
    Kind::Endpoint.key(network, id.0)
}

/// Each node has its own.
pub fn ingress_key(network: NetworkId) -> Key {
    Kind::Ingress.key(network, Vec::new())
}

/// That its author has endpoints there.
pub fn use_key(network: NetworkId) -> Key {
    Kind::Use.key(CLUSTER, network.0)
}

/// An author has as many records about one key as there have to be.
pub fn offer_key(id: KeyId, number: u16) -> Key {
    Kind::KeyOffer.key(CLUSTER, [&id.0, number.to_be_bytes().as_slice()].concat())
}

/// What [`offer_key`] names.
pub fn offer_of_key(key: &Key) -> Option<(KeyId, u16)> {
    let (id, number) = key.name.split_first_chunk::<16>()?;
    Some((KeyId(*id), u16::from_be_bytes(number.try_into().ok()?)))
}

/// One record per granted block: a later grant of the same block by the same node replaces it.
pub fn grant_key(space: SpaceKey, block: Block) -> Key {
    let name = postcard::to_allocvec(&(space_tag(space), block)).expect("a block always encodes");
    Kind::Grant.key(space.scope(), name)
}

/// One record per block and node that gave it. With one per block a node that takes the same block over from two nodes, one after
/// the other, would unsay how the first came to lose it, and whoever joins later would never learn who owns it.
pub fn holding_key(space: SpaceKey, block: Block, from: NodeId) -> Key {
    let name = postcard::to_allocvec(&(space_tag(space), block, from)).expect("a block always encodes");
    Kind::Holding.key(space.scope(), name)
}

/// The block that the key of a grant or a holding names.
pub fn block_of_key(key: &Key) -> Option<Block> {
    let (_, block): ((u8, u8), Block) = postcard::take_from_bytes(&key.name).ok()?.0;
    Some(block)
}

fn space_tag(space: SpaceKey) -> (u8, u8) {
    match space {
        SpaceKey::Subnets4 => (0, 0),
        SpaceKey::Subnets6 => (1, 0),
        SpaceKey::Vnis => (2, 0),
        SpaceKey::Addresses(_, index) => (3, index),
    }
}

pub fn encode<T: Serialize>(value: &T) -> bytes::Bytes {
    let bytes = postcard::to_extend(value, vec![VERSION]).expect("plain data always encodes");
    bytes.into()
}

/// `None` for a value of another version or one that does not parse: it is kept and passed on, not read.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    postcard::from_bytes(rest).ok()
}

/// Where the sandboxes are that a node's own records name, each once.
pub fn sandboxes_of(node: NodeId, records: &[Record]) -> Vec<PathBuf> {
    let of_endpoint = |record: &Record| {
        let value = record.value.as_deref().filter(|_| record.author == node)?;
        let is_endpoint = Kind::of(&record.key)? == Kind::Endpoint;
        let spec: EndpointSpec = is_endpoint.then(|| decode(value))??;
        Some(PathBuf::from(&spec.sandbox()?.path))
    };
    let paths: BTreeSet<PathBuf> = records.iter().filter_map(of_endpoint).collect();
    paths.into_iter().collect()
}

/// The last bytes of a key's name as an id.
pub fn id_of(key: &Key) -> Option<[u8; 16]> {
    key.name.as_slice().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_an_unknown_version_is_not_read() {
        let bytes = encode(&Register {
            lamport: 7,
            removed: false,
            value: 3_u8,
        });
        assert_eq!(
            decode(&bytes),
            Some(Register {
                lamport: 7,
                removed: false,
                value: 3_u8
            })
        );
        let mut newer = bytes.to_vec();
        newer[0] = VERSION + 1;
        assert_eq!(decode::<Register<u8>>(&newer), None);
        assert_eq!(decode::<Register<u8>>(&[]), None);
    }

    #[test]
    fn a_record_full_of_offers_is_not_too_long_and_its_key_says_of_what() {
        let fact = OfferFact {
            epoch: u32::MAX,
            made_millis: u64::MAX,
            records: u16::MAX,
            to: vec![(NodeId([0xff; 32]), ([0xff; 32], [0xff; 16])); OFFERS_PER_RECORD],
        };
        assert!(encode(&fact).len() <= weft_gossip::MAX_VALUE);
        let id = KeyId([7; 16]);
        assert_eq!(offer_of_key(&offer_key(id, 259)), Some((id, 259)));
        assert_eq!(offer_of_key(&Kind::KeyOffer.key(CLUSTER, [7; 16])), None);
    }

    #[test]
    fn a_grant_key_names_its_block() {
        let block = Block::new(5 << 70, 70).unwrap();
        let key = grant_key(SpaceKey::Addresses(NetworkId([1; 16]), 2), block);
        assert!(key.name.len() <= 64);
        assert_eq!(block_of_key(&key), Some(block));
    }
}
