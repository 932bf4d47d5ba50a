//! What an endpoint's own host found out about its health: part of the endpoint's record.

use serde::{Deserialize, Serialize};

/// The longest reason that is told the other nodes, in bytes.
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
            reason: reason[..reason.floor_char_boundary(MAX_REASON)].to_owned(),
            since_millis: unix_millis,
        }
    }

    fn longest() -> Self {
        Self::new(HealthState::Unhealthy, &"x".repeat(MAX_REASON), u64::MAX)
    }
}

impl EndpointHealth {
    /// Nothing takes more room in a record. An engine says the same in each case, which is short.
    pub fn longest() -> Self {
        let engine = "x".repeat(64);
        Self {
            check: Some(Finding::longest()),
            engine: Some(Finding {
                reason: engine,
                ..Finding::longest()
            }),
        }
    }

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
    fn a_reason_is_short_and_ends_with_a_whole_character() {
        for (character, length) in [("x", 160), ("ä", 160), ("健", 159), ("𐍈", 160)] {
            let finding = Finding::new(HealthState::Unhealthy, &character.repeat(1000), 0);
            assert_eq!(finding.reason, character.repeat(length / character.len()));
        }
    }
}
