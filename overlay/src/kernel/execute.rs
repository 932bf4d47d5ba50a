//! Carries plans out: operations become batches, one per socket and stretch of the plan.

mod endpoint;
mod ingress;
mod network;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use weft_netlink::{
    netns::{Netns, NetnsId},
    route::{Batch, BatchError, Request, RouteSocket},
};
use weft_types::{EndpointId, NetworkId};

#[cfg(test)]
pub(super) use self::network::BRIDGE_ONLY;
pub(super) use self::{ingress::loopback_route, network::TUNNEL_PORT};
use super::{Cause, Kernel, OpError, Space, gate, observe::FORWARDING, rules};
use crate::plan::{HostOp, Op, Plan};

const LOOPBACK: u32 = 1;

/// Whose socket a batch goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Host,
    Space(NetworkId),
    Sandbox(NetnsId),
}

/// A sandbox, open for the length of one plan.
struct Open {
    netns: Netns,
    route: RouteSocket,
    names: BTreeSet<String>,
    next_index: u32,
    loopback_up: bool,
}

/// One run through a plan.
struct Run<'a> {
    kernel: &'a mut Kernel,
    op: usize,
    target: Target,
    batch: Batch,
    /// Per message of the batch, the operation it belongs to.
    owners: Vec<usize>,
    failed: BTreeMap<usize, Cause>,
    sandboxes: HashMap<NetnsId, Open>,
    /// New links in sandboxes that are still down.
    unborn: BTreeMap<(NetworkId, EndpointId), usize>,
}

impl Kernel {
    /// Carries the operations out, all that can be, and returns the others with their places in the plan.
    pub(super) fn apply(&mut self, plan: &Plan) -> Vec<(usize, OpError)> {
        let mut run = Run {
            kernel: self,
            op: 0,
            target: Target::Host,
            batch: Batch::new(),
            owners: Vec::new(),
            failed: BTreeMap::new(),
            sandboxes: HashMap::new(),
            unborn: BTreeMap::new(),
        };
        for (place, op) in plan.ops.iter().enumerate() {
            run.op = place;
            tracing::debug!(%op, "carrying out");
            if let Err(cause) = run.step(op) {
                run.failed.insert(place, cause);
            }
        }
        // Endpoints without an address.
        for ((network, endpoint), place) in run.unborn.clone() {
            run.op = place;
            if let Err(cause) = run.bring_up(network, endpoint) {
                run.failed.insert(place, cause);
            }
        }
        run.flush();
        run.failed
            .into_iter()
            .filter_map(|(place, cause)| {
                Some((
                    place,
                    OpError {
                        op: plan.ops.get(place)?.clone(),
                        cause,
                    },
                ))
            })
            .collect()
    }
}

impl Run<'_> {
    fn step(&mut self, op: &Op) -> Result<(), Cause> {
        match op {
            Op::Host(op) => self.host(op),
            Op::Network(id, op) => self.network(*id, op),
            Op::Endpoint(id, endpoint, op) => self.endpoint(*id, *endpoint, op),
        }
    }

    /// Puts messages into the batch for a socket, after sending what is for another.
    fn push(&mut self, target: Target, requests: impl IntoIterator<Item = Request>) {
        if self.target != target {
            self.flush();
            self.target = target;
        }
        self.batch.add(requests);
        self.owners.resize(self.batch.len(), self.op);
    }

    fn flush(&mut self) {
        let (batch, owners) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.owners));
        if batch.is_empty() {
            return;
        }
        let socket = match self.target {
            Target::Host => Some(&mut self.kernel.route),
            Target::Space(id) => self.kernel.spaces.get_mut(&id).map(|space| &mut space.route),
            Target::Sandbox(id) => self.sandboxes.get_mut(&id).map(|sandbox| &mut sandbox.route),
        };
        let Some(socket) = socket else {
            owners.into_iter().for_each(|op| {
                self.failed.entry(op).or_insert(Cause::Missing("the namespace"));
            });
            return;
        };
        match socket.execute(batch) {
            Ok(()) => {}
            Err(BatchError::Refused(refusals)) => {
                for refusal in refusals {
                    if let Some(op) = owners.get(refusal.index) {
                        // The first refusal is the cause, later ones its consequences.
                        self.failed.entry(*op).or_insert(Cause::Refused(refusal));
                    }
                }
            }
            Err(error @ BatchError::Interrupted { after, .. }) => {
                let mut unanswered = owners.into_iter().skip(after);
                if let Some(op) = unanswered.next() {
                    self.failed.entry(op).or_insert(Cause::Batch(error));
                }
                for op in unanswered {
                    self.failed
                        .entry(op)
                        .or_insert(Cause::Missing("the kernel's answer"));
                }
            }
        }
    }

    /// Sends what is waiting; fails if anything of the current operation was refused.
    fn flush_checked(&mut self) -> Result<(), Cause> {
        self.flush();
        self.failed.remove(&self.op).map_or(Ok(()), Err)
    }

    fn space(&mut self, id: NetworkId) -> Result<&mut Space, Cause> {
        self.kernel
            .spaces
            .get_mut(&id)
            .ok_or(Cause::Missing("the network's namespace"))
    }

    fn host(&mut self, op: &HostOp) -> Result<(), Cause> {
        match op {
            HostOp::EnableForwarding { ipv6: false } => {
                self.kernel.host.set_sysctls(&[(FORWARDING[0], "1")])?;
            }
            HostOp::EnableForwarding { ipv6: true } => {
                keep_router_advertisements(&self.kernel.host)?;
                self.kernel.host.set_sysctls(&[(FORWARDING[1], "1")])?;
            }
            HostOp::SetGate { ipv6, to } => {
                gate::set(&self.kernel.nft, *ipv6, *to)?;
                self.kernel.docker[usize::from(*ipv6)] = Some(*to);
            }
            HostOp::SetRules(wanted) => self.kernel.nft.commit(&rules::host(wanted))?,
            HostOp::DeleteRules => self.kernel.nft.commit(&rules::delete())?,
            HostOp::SetPorts(wanted) => self.set_ports(Some(wanted))?,
            HostOp::DeletePorts => self.set_ports(None)?,
        }
        Ok(())
    }
}

/// A host that forwards takes no router advertisements any more unless `accept_ra` is 2: it would lose its
/// own address and default route.
fn keep_router_advertisements(host: &Netns) -> Result<(), Cause> {
    const DEVICES: &str = "net/ipv6/conf";
    // The calling thread is in the host's namespace.
    let entries = fs::read_dir(Path::new("/proc/sys").join(DEVICES));
    let names = entries.into_iter().flatten().flatten();
    for device in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let setting = format!("{DEVICES}/{device}/accept_ra");
        // A device may go between the two steps.
        if host.sysctls(&[&setting]).is_ok_and(|value| value == ["1"]) {
            host.set_sysctls(&[(&setting, "2")])?;
        }
    }
    Ok(())
}
