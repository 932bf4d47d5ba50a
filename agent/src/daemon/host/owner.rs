//! The owner's end: what the thread is told, and what it says.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::mpsc::{Sender, channel},
    time::Instant,
};

use anyhow::Context;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use weft_lb::{
    Attempts,
    kernel::{Choice, NftDatapath, choose},
};
use weft_overlay::{
    kernel::{Kernel, Options},
    plan::ObservedNetwork,
};
use weft_types::{EndpointId, NetworkId};

use super::{Host, KernelView, count::Measured};
use crate::{
    api::types::DatapathStatus,
    control::{CountOrder, HostReport, HostState, Traffic},
    daemon::{entry::Entry, names::DnsSockets, service::Kept, tally::Tally, watch::Watch},
    metrics::Work,
    options::{AgentOptions, DatapathChoice},
};

/// What the thread has to say.
pub(in crate::daemon) enum Said {
    Report(Report),
    /// `None` where it could not be found out.
    Counted(CountOrder, Option<BTreeMap<EndpointId, Traffic>>),
    /// What clients have tried so far, for [`Control::handle_attempts`](crate::control::Control::handle_attempts).
    Tried(BTreeMap<EndpointId, Attempts>),
}

pub(in crate::daemon) struct Report {
    pub(in crate::daemon) host: HostReport,
    pub(in crate::daemon) sockets: Vec<DnsSockets>,
}

pub(in crate::daemon) enum Order {
    /// A state will come in a moment, and sandboxes like these are likely to be in it.
    LookAhead(Vec<PathBuf>),
    Apply(Box<HostState>),
    Count(CountOrder),
    /// Somebody wants to know all of it.
    Measure(Box<dyn FnOnce(Measured) + Send>),
    /// Somebody wants to know what differs from what should be, and perhaps have it made right.
    Examine {
        fix: bool,
        tell: Box<dyn FnOnce(KernelView) + Send>,
    },
    /// Somebody wants to know what the kernel holds of a network.
    Ways {
        network: NetworkId,
        tell: Box<dyn FnOnce(Option<ObservedNetwork>) + Send>,
    },
    /// This node is in no cluster: nothing of ours is to be left.
    Clear,
    /// Somebody else may have changed what is ours.
    Look,
    /// A link of ours was changed or deleted, by whomever, in the namespace of a network or the host's.
    Damaged {
        network: Option<NetworkId>,
        link: u32,
    },
    End,
}

/// The owner's end. The thread ends when this is dropped, and leaves the kernel as it is.
pub(in crate::daemon) struct HostThread {
    orders: Sender<Order>,
    said: UnboundedReceiver<Said>,
    datapath: DatapathStatus,
}

impl Drop for HostThread {
    fn drop(&mut self) {
        // The thread's own watch can send orders too, so it would not learn from the channel that we are gone.
        let _ = self.orders.send(Order::End);
    }
}

impl HostThread {
    /// `kept` are the sockets of networks that an agent before this one had open.
    pub(in crate::daemon) fn start(options: &AgentOptions, kept: Kept) -> anyhow::Result<Self> {
        let kernel = Kernel::new(Options {
            run_dir: options.run_dir.clone(),
        })
        .context(
            "the kernel cannot be used for overlay networks; the agent needs CAP_NET_ADMIN and CAP_SYS_ADMIN",
        )?;
        let choice = match options.datapath {
            DatapathChoice::Auto => Choice::Auto,
            DatapathChoice::Nft => Choice::Nft,
            DatapathChoice::Ebpf => Choice::Ebpf,
        };
        let chosen = choose(choice, &options.run_dir.join("bpf"))
            .context("the kernel cannot be used for load balancing")?;
        let datapath = DatapathStatus {
            name: chosen.datapath.name().to_owned(),
            reason: chosen.reason,
        };
        tracing::info!(
            datapath = datapath.name,
            reason = datapath.reason,
            "services are balanced"
        );
        let entry = Entry::new(NftDatapath::entry()?);
        let (orders, receiver) = channel();
        let (sender, said) = unbounded_channel();
        let host = Host {
            kernel,
            datapath: chosen.datapath.into(),
            entry,
            state: None,
            is_told: false,
            served: BTreeMap::new(),
            kept,
            balanced: BTreeMap::new(),
            tally: Tally::default(),
            told: Instant::now(),
            work: Work::default(),
            suspects: false,
            ifnames: BTreeMap::new(),
            read_back: Instant::now(),
            looked: Instant::now(),
            watch: Watch::new(orders.clone()),
            said: sender,
        };
        std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || host.run(&receiver))?;
        Ok(Self {
            orders,
            said,
            datapath,
        })
    }

    /// Has it begin with what takes it longest, while it is found out what it is to do.
    pub(in crate::daemon) fn look_ahead(&self, sandboxes: Vec<PathBuf>) {
        self.order(Order::LookAhead(sandboxes));
    }

    pub(in crate::daemon) fn apply(&self, state: HostState) {
        self.order(Order::Apply(Box::new(state)));
    }

    pub(in crate::daemon) fn clear(&self) {
        self.order(Order::Clear);
    }

    pub(in crate::daemon) fn count(&self, order: CountOrder) {
        self.order(Order::Count(order));
    }

    /// Has somebody told what there is to know of this host.
    pub(in crate::daemon) fn measure(&self, tell: impl FnOnce(Measured) + Send + 'static) {
        self.order(Order::Measure(Box::new(tell)));
    }

    /// Has somebody told what the kernel holds that differs from what it should, after it was made right if `fix` says so.
    pub(in crate::daemon) fn examine(&self, fix: bool, tell: impl FnOnce(KernelView) + Send + 'static) {
        let tell = Box::new(tell);
        self.order(Order::Examine { fix, tell });
    }

    /// Has somebody told what the kernel holds of a network, which is read anew.
    pub(in crate::daemon) fn ways(
        &self,
        network: NetworkId,
        tell: impl FnOnce(Option<ObservedNetwork>) + Send + 'static,
    ) {
        let tell = Box::new(tell);
        self.order(Order::Ways { network, tell });
    }

    fn order(&self, order: Order) {
        // The thread ends only by a panic, which its log has; what is asked for then cannot be done.
        if self.orders.send(order).is_err() {
            tracing::error!("the host thread is gone: the kernel is not changed any more");
        }
    }

    /// The next thing it says. Cancel-safe.
    pub(in crate::daemon) async fn says(&mut self) -> Said {
        match self.said.recv().await {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }

    /// What balances connections.
    pub(in crate::daemon) fn datapath(&self) -> DatapathStatus {
        self.datapath.clone()
    }
}
