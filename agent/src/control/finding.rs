//! What an endpoint's own host found out about its health: part of the endpoint's record.

use serde::{Deserialize, Serialize};

/// The longest reason that is told the other nodes, in characters.
const MAX_REASON: usize = 160;

/// What is known of an endpoint, from each who looks. Whoever does not look counts for healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    /// What the health check of its service says.
    pub check: Option<Finding>,
    /// What its container engine says.
    pub engine: Option<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub state: HealthState,
    /// One sentence; empty where there is nothing to say.
    pub reason: String,
    /// The endpoint's host's wall clock when it became so, in milliseconds since the Unix epoch; only ever shown.
    pub since_millis: u64,
}

/// From good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HealthState {
    Healthy,
    /// It was never healthy, and may still be on its way.
    Starting,
    Unhealthy,
}

impl Finding {
    pub fn new(state: HealthState, reason: &str, unix_millis: u64) -> Self {
        Self {
            state,
            reason: reason.chars().take(MAX_REASON).collect(),
            since_millis: unix_millis,
        }
    }
}

impl EndpointHealth {
    /// The worst of what is said, which is what holds.
    pub fn worst(&self) -> Option<&Finding> {
        let all = self.check.iter().chain(&self.engine);
        // The first of two that are equally bad: it is our own check, which says more.
        all.reduce(|worst, finding| {
            if finding.state > worst.state {
                finding
            } else {
                worst
            }
        })
    }

    pub fn state(&self) -> HealthState {
        self.worst().map_or(HealthState::Healthy, |worst| worst.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_what_is_said_holds() {
        use HealthState::*;
        for (check, engine, expected) in [
            (None, None, Healthy),
            (Some(Healthy), None, Healthy),
            (None, Some(Starting), Starting),
            (Some(Healthy), Some(Unhealthy), Unhealthy),
            (Some(Unhealthy), Some(Healthy), Unhealthy),
            (Some(Starting), Some(Healthy), Starting),
        ] {
            let finding = |state: Option<HealthState>, who| state.map(|state| Finding::new(state, who, 0));
            let health = EndpointHealth {
                check: finding(check, "check"),
                engine: finding(engine, "engine"),
            };
            assert_eq!(health.state(), expected, "{health:?}");
        }
    }

    #[test]
    fn a_reason_is_short() {
        assert_eq!(
            Finding::new(HealthState::Unhealthy, &"ä".repeat(1000), 0)
                .reason
                .len(),
            320
        );
    }
}
