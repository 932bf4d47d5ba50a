//! What differs in the kernel from what should be there.

use weft_overlay::plan::{ObservedNetwork, Op};
use weft_types::NetworkId;

use super::{Host, sentence};

/// What a look at the kernel found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::daemon) struct KernelView {
    /// What it took to make the kernel what it should be, or would take.
    pub(in crate::daemon) differences: Vec<Op>,
    /// What is still to be done, where it was tried.
    pub(in crate::daemon) left: Option<Vec<Op>>,
    /// Whether it is not known yet what it should be.
    pub(in crate::daemon) is_early: bool,
    /// Why it could not be looked at.
    pub(in crate::daemon) error: Option<String>,
}

impl Host {
    pub(super) fn examine(&mut self, fix: bool) -> KernelView {
        let mut view = KernelView::default();
        if !self.is_told {
            view.is_early = true;
            return view;
        }
        match self.differences() {
            Ok(differences) => view.differences = differences,
            Err(error) => view.error = Some(error),
        }
        if fix {
            self.suspect();
            self.apply();
            match self.differences() {
                Ok(left) => view.left = Some(left),
                Err(error) => view.error = Some(error),
            }
        }
        view
    }

    pub(super) fn ways(&mut self, network: NetworkId) -> Option<ObservedNetwork> {
        if !self.is_told {
            return None;
        }
        let (desired, _) = self.desired();
        let looked = self.kernel.examine(&desired);
        if let Err(error) = &looked {
            tracing::warn!(error = sentence(error), "the kernel cannot be read");
        }
        self.kernel.observed(network).cloned()
    }

    fn differences(&mut self) -> Result<Vec<Op>, String> {
        let (desired, _) = self.desired();
        let plan = self.kernel.examine(&desired);
        plan.map(|plan| plan.ops).map_err(|error| sentence(&error))
    }
}
