//! What goes on between the clients of a host and a backend.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use weft_lb::Attempts;

use super::eject::EjectedUntil;

/// Connections of one host's clients to one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Open now.
    pub open: u64,
    /// Tried so far.
    pub total: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Whether the host ejects the backend; known to its control only.
    pub ejected: Option<EjectedUntil>,
}

impl Traffic {
    /// So many are open.
    pub fn open(open: u64) -> Self {
        Self {
            open,
            ..Self::default()
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.open += other.open;
        self.total += other.total;
        self.failed += other.failed;
    }
}

impl AddAssign<Attempts> for Traffic {
    fn add_assign(&mut self, attempts: Attempts) {
        self.total += attempts.total;
        self.failed += attempts.failed;
    }
}
