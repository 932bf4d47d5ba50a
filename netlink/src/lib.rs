//! Network namespaces, route netlink in batches, nf_tables and conntrack: the kernel's words for Weft's edges
#![warn(missing_docs)]

pub mod conntrack;
pub mod netns;
pub mod nft;
pub mod route;
