use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What an agent answers and asks beside the names of its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// Where programs of this host are answered; null when they are not.
    pub host: Option<SocketAddr>,
    /// The networks they are shown; empty for all that are on this host.
    pub host_networks: Vec<String>,
    /// Domains that are asked of servers of their own.
    pub forward: Vec<ForwardedDomain>,
}

/// A domain that is asked of servers of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardedDomain {
    /// The domain, or the subnet with the names of its addresses.
    pub domain: String,
    /// Who is asked, and nobody else.
    pub servers: Vec<SocketAddr>,
}
