//! What there is to measure: the name of each metric, what it means, and by what it is told apart.

/// A metric, or one for each set of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Family {
    /// Its name, without the `_total` that counters get.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows, until the agent is started again.
    Counter,
    /// Is what it is now.
    Gauge,
    /// Stays as it was when the agent was started.
    Constant,
}

macro_rules! families {
    ($($name:ident = $kind:ident $text:literal [$($label:literal)*] $help:literal;)*) => {
        $(pub(crate) const $name: Family = Family {
            name: $text,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*

        /// All of them, in the order in which they are shown.
        pub(crate) const ALL: &[Family] = &[$($name),*];
    };
}

families! {
    AGENT = Constant "weft_agent_info" ["version" "datapath" "node"]
        "Always 1; the labels say which agent this is, and what balances connections on its host.";
    STARTED = Constant "weft_agent_start_time_seconds" []
        "When this agent was started, since the Unix epoch.";
    NODES = Gauge "weft_nodes" ["state"]
        "Nodes of the cluster as this one sees them. More than 0 that are down or away: look at weft status.";
    NETWORKS = Gauge "weft_networks" []
        "Networks of the cluster.";
    ENDPOINTS = Gauge "weft_network_endpoints" ["network"]
        "Endpoints of a network, on all nodes.";
    LOCAL_ENDPOINTS = Gauge "weft_node_endpoints" []
        "Endpoints on this node.";
    ADDRESSES_USED = Gauge "weft_network_addresses_used" ["network" "node"]
        "Addresses of a network that were given to endpoints, services and published ports, by the node that gave them.";
    ADDRESSES_FREE = Gauge "weft_network_addresses_free" ["network" "node"]
        "Addresses of a network that a node can give without asking others. At 0 it asks; when all are at 0 the network is full.";
    BACKENDS = Gauge "weft_service_backends" ["network" "service" "state"]
        "Backends of a service. Only those that are ready get new connections; without one, whoever connects is refused.";
    BACKEND_READY = Gauge "weft_service_backend_ready" ["network" "service" "backend"]
        "1 for a backend that gets new connections, else 0; weft service inspect says why.";
    OPEN = Gauge "weft_service_connections_open" ["network" "service" "backend"]
        "Connections that clients on this host, or what its published ports let in, have open to a backend.";
    TRIED = Counter "weft_service_connections" ["network" "service" "backend"]
        "Connections that clients on this host, or what its published ports let in, tried to make to a backend. Over UDP, conversations.";
    FAILED = Counter "weft_service_connection_failures" ["network" "service" "backend"]
        "Of these, those over TCP that were never made. On one host only: the way there; on all: the backend. What nf_tables cannot see is in docs/load-balancing.md.";
    GOSSIP_MESSAGES = Counter "weft_gossip_messages" ["direction"]
        "Packets between this node and others, without the networks' own traffic.";
    GOSSIP_BYTES = Counter "weft_gossip_bytes" ["direction"]
        "Bytes of these packets.";
    GOSSIP_REFUSED = Counter "weft_gossip_refused" ["reason"]
        "What came in and was not taken, or could not be sent. Foreign or forged: somebody who is not of this cluster speaks to its port. Flooded: one sender says more than is taken of each.";
    GOSSIP_RECORDS = Gauge "weft_gossip_records" []
        "Facts that this node knows of the cluster.";
    GOSSIP_ROOM = Gauge "weft_gossip_room" []
        "Facts that this node can say beside those that it says, however long they are. From 256 down it makes no endpoints, networks, services and tokens; others do.";
    GOSSIP_RECORDS_TOLD = Counter "weft_gossip_records_told" []
        "Copies of records that were sent because they were new, or because another node lacked them.";
    LOST = Counter "weft_network_lost_frames" ["network" "direction"]
        "Frames of a network to and from other hosts that this host's kernel dropped: sent, there is no way to the other host, or what encrypts does not keep up; received, they were damaged, or the kernel does not keep up.";
    DNS_QUESTIONS = Counter "weft_dns_questions" ["outcome"]
        "Questions of endpoints by what became of them. Negative: there is no such name, or nothing of that type; refused: by a rule or a limit.";
    DNS_FAILURES = Counter "weft_dns_failures" ["reason"]
        "What went wrong at the DNS servers: messages that are no questions, connections beyond the limit, forwarded questions that no resolver of this host answered, answers of others that lost records because they pointed into an overlay network.";
    KERNEL_APPLIES = Counter "weft_kernel_applies" []
        "Times that this host's kernel was compared with what is wanted, and made so.";
    KERNEL_READ_BACKS = Counter "weft_kernel_read_backs" []
        "Of these, those before which everything was read back: every half minute, and when somebody else seemed to have changed something.";
    KERNEL_SECONDS = Counter "weft_kernel_apply_seconds" []
        "How long all the times took together that the kernel was compared with what is wanted.";
    KERNEL_CHANGES = Counter "weft_kernel_changes" []
        "Changes that were written to the kernel: links, addresses, routes, rules, services.";
    KERNEL_REPAIRS = Counter "weft_kernel_repairs" []
        "Of these, those that made right what somebody else had changed. If it grows, another program manages the same objects.";
    KERNEL_ERRORS = Counter "weft_kernel_errors" []
        "What could not be done on this host, each time that it is tried, such as a published port that something else has; weft status says what and why.";
    HEALTH_CHECKS = Counter "weft_health_checks" ["result"]
        "Health checks of backends on this node that have ended.";
    EJECTIONS = Counter "weft_service_ejections" []
        "Times that this host gave a backend no connections for a time, because those of its clients failed one after the other.";
    TUNNELS = Gauge "weft_tunnels" ["state"]
        "Tunnels to the nodes that this host shares an encrypted network with. Waiting: there was no handshake yet, and nothing passes.";
    TUNNELS_RUNNING = Gauge "weft_tunnels_running" []
        "1 while something encrypts; at 0 nothing leaves this host on encrypted networks. Without such a network on this host there is no value, here and below.";
    TUNNEL_BYTES = Counter "weft_tunnel_bytes" ["node" "direction"]
        "Bytes of WireGuard to and from a node, since what encrypts was started.";
    TUNNEL_LOST = Counter "weft_tunnel_lost_frames" ["node"]
        "Frames to a node that were dropped here: no session yet, or the underlay refused them. The kernel's WireGuard does not count them.";
    TUNNEL_HANDSHAKE = Gauge "weft_tunnel_handshake_age_seconds" ["node"]
        "Since the last handshake with a node, if there was one. More than 180 with traffic to it: nothing passes.";
    TUNNEL_PATH = Gauge "weft_tunnel_path_mtu_bytes" ["node"]
        "The largest packet that the path to a node takes, while that is less than full packets need.";
    TUNNELS_REFUSED = Counter "weft_tunnels_refused" ["reason"]
        "Packets that came in by tunnels or pretended to, and were not delivered, by the first check they failed. The kernel's WireGuard counts not_a_member alone.";
}
