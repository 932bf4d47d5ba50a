//! Numbers that are never handed out twice: addresses, VIPs, VNIs, default subnets.
//!
//! A [`Space`] is one set of numbers, a [`Block`] of them. At every time each number has exactly one
//! owner among the nodes, and only the owner hands it out. Ownership changes by a [`Grant`], which the
//! owner alone writes. There is no vote and no lease: a node that owns free numbers allocates without
//! asking anybody, through any partition, and two halves never hand out the same number.
//!
//! The crate decides and does nothing else: no I/O, no clock (time is an argument), no chance (a seed is
//! an argument). `docs/algorithms/addresses.md` holds the model and the proof.
//!
//! # What the caller must do, and in which order
//!
//! Safety rests on grants being durable before anybody acts on them:
//!
//! 1. **Giving** ([`Space::give`], [`Space::answer`]): store [`Given::to_store`], *then* call
//!    [`Given::stored`] and send, and publish the grants as replicated records. If storing fails, the
//!    process must not go on with this `Space`: the numbers count as given until it is loaded again.
//! 2. **Receiving**, from a reply or as a record: store a grant, *then* [`Space::merge`] it. The numbers
//!    of a grant to this node may be used as soon as it is merged.
//! 3. **Using**: [`Space::allocate`] or [`Space::claim`], store the endpoint or service that has the number,
//!    *then* answer whoever asked for it. After a crash in between the number is simply free.
//! 4. **Ending use**: store that the endpoint is gone, *then* [`Space::release`].
//! 5. **After a start**: [`Space::new`] with a fresh seed, [`Space::reserve`], [`Space::load`] with what
//!    is stored, [`Space::restore`] for each number that a stored endpoint or service of this node
//!    has. Only then merge what others say, and allocate.
//!
//! What is stored may be compacted at any time to [`Space::grants`]; nothing that is missing there
//! can matter again. When [`Merged::Quarantined`] is returned, store [`Space::conflicts`] as well and
//! tell an operator.
//!
//! When [`AllocateError::NoFreeOwned`] or [`ClaimError::OwnedBy`] names owners, run a [`Negotiation`] with
//! them, then try again.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod block;
mod faults;
mod give;
mod grant;
mod ledger;
mod message;
mod negotiation;
mod released;
mod runs;
mod space;
#[cfg(test)]
mod tests;

pub use block::{Block, BlockError, MAX_ORDER};
pub use give::{Answer, GiveError, Given};
pub use grant::{BadGrant, Conflict, Grant, MAX_VERSION, Merged, Node};
pub use message::{Outcome, Refusal, Reply, Request, Want};
pub use negotiation::{Negotiation, NegotiationError, Patience, Step, Why};
pub use space::{AllocateError, ClaimError, DEFAULT_REST, Space};
