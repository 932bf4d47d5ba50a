//! Desired state, observed state, and the operations between them. Nothing here touches the kernel.
//!
//! The rules:
//!
//! - Only networks with a local endpoint or a published port are programmed; with the last of these goes everything.
//! - What is missing is added before what is superfluous is deleted, and an address or an Ethernet address that
//!   is somewhere else now is moved in one step, so that it never points at the old place and never nowhere.
//! - What cannot be changed in place (a VNI, a sandbox) is deleted and made again.
//! - A half-made network, which a crash leaves, is deleted and made again.

mod desired;
mod diff;
mod ingress;
mod observed;
mod op;
mod record;
mod remotes;
mod rules;
mod since;

pub use desired::{Desired, Encryption, LocalEndpoint, Network, Place, Sandbox, Subnet, is_other};
pub use diff::plan;
pub use ingress::{HostPort, HostPorts, Ingress, IngressLink, SourceRules, Transport};
pub use observed::{
    Bridge, Carrier, EndpointRoute, Far, Forwarding, Gate, Host, HostRules, Observed, ObservedEndpoint,
    ObservedNetwork, Tunnel, Uplink,
};
pub use op::{EndpointOp, HostOp, Link, NetworkOp, Op, Plan};
pub use remotes::{RemoteEndpoint, Remotes};
pub use since::plan_since;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
