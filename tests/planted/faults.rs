//! The faults. Each was somebody's in the field, or is the loss of one of our own guards.

mod cluster;
mod host;

/// A fault: an edit of one place, and the test that fails because of it.
pub struct Fault {
    pub name: &'static str,
    /// What it does to users, and where it is known from.
    pub known: &'static str,
    pub file: &'static str,
    /// What stands in the file, once.
    pub right: &'static str,
    pub wrong: &'static str,
    pub suite: Suite,
    pub caught_by: &'static str,
}

/// Where a test is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Beside the code of a crate.
    Unit(&'static str),
    /// In `tests/NAME` of a crate.
    Crate(&'static str, &'static str),
    /// In `tests/NAME` of the workspace.
    Workspace(&'static str),
}

impl Suite {
    /// What cargo runs it by.
    pub fn arguments(self) -> Vec<&'static str> {
        let which = match self {
            Self::Unit(package) => vec!["--package", package, "--lib"],
            Self::Crate(package, name) => vec!["--package", package, "--test", name],
            Self::Workspace(name) => vec!["--workspace", "--test", name],
        };
        [vec!["test", "--quiet"], which].concat()
    }

    /// Whether it runs the program, and not only its parts.
    pub fn needs_the_program(self) -> bool {
        matches!(self, Self::Workspace("cluster"))
    }
}

const AGENT: Suite = Suite::Unit("weft");
const DNS: Suite = Suite::Unit("weft-dns");
const GOSSIP: Suite = Suite::Unit("weft-gossip");
const IPAM: Suite = Suite::Unit("weft-ipam");
const LB: Suite = Suite::Unit("weft-lb");
const OVERLAY: Suite = Suite::Unit("weft-overlay");
const SIM: Suite = Suite::Workspace("sim");

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    host::FAULTS.iter().chain(cluster::FAULTS)
}
