//! The flags about a service's health check, and how its backends' health is shown.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;

use crate::api::types::{BackendState, HealthCheck, HealthTest, HealthUpdate};

/// The health check of a new service.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// How each backend is checked, on its own host: tcp[=PORT], http=[:PORT]/PATH or cmd=COMMAND [default: not at
    /// all, every backend counts as healthy]
    #[arg(long, value_name = "TEST")]
    health: Option<HealthTest>,
    #[command(flatten)]
    timing: TimingArgs,
}

/// A change of a service's health check.
#[derive(Debug, Args)]
pub(super) struct HealthUpdateArgs {
    /// How each backend is checked from now on: tcp[=PORT], http=[:PORT]/PATH, cmd=COMMAND, or none for not at all
    #[arg(long, value_name = "TEST", value_parser = test_or_none)]
    health: Option<TestOrNone>,
    #[command(flatten)]
    timing: TimingArgs,
}

#[derive(Debug, Args)]
struct TimingArgs {
    /// Check so long after the last check ended [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = millis)]
    interval: Option<u32>,
    /// What one check may take [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = millis)]
    timeout: Option<u32>,
    /// Failures in a row that make a backend unhealthy; one success makes it healthy [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    retries: Option<u16>,
    /// For so long the failures of a backend that was never healthy do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = millis)]
    start_period: Option<u32>,
}

#[derive(Debug, Clone)]
enum TestOrNone {
    Test(HealthTest),
    None,
}

fn test_or_none(text: &str) -> Result<TestOrNone, String> {
    match text {
        "none" => Ok(TestOrNone::None),
        _ => text
            .parse()
            .map(TestOrNone::Test)
            .map_err(|error| format!("{error}")),
    }
}

fn millis(text: &str) -> Result<u32, String> {
    let time: Option<Duration> = humantime::parse_duration(text).ok();
    time.and_then(|time| u32::try_from(time.as_millis()).ok())
        .ok_or_else(|| "expected a time such as 500ms, 5s or 1m".to_owned())
}

impl TimingArgs {
    fn update(self) -> HealthUpdate {
        HealthUpdate {
            off: false,
            test: None,
            interval_ms: self.interval,
            timeout_ms: self.timeout,
            retries: self.retries,
            start_period_ms: self.start_period,
        }
    }
}

impl HealthArgs {
    pub(super) fn check(self, service: &str) -> Result<Option<HealthCheck>, crate::api::ApiError> {
        let update = HealthUpdate {
            test: self.health,
            ..self.timing.update()
        };
        if update == HealthUpdate::default() {
            return Ok(None);
        }
        update.apply(service, None)
    }
}

impl HealthUpdateArgs {
    /// `None` where nothing is to change.
    pub(super) fn update(self) -> Option<HealthUpdate> {
        let timing = self.timing.update();
        let update = match self.health {
            Some(TestOrNone::None) => HealthUpdate { off: true, ..timing },
            Some(TestOrNone::Test(test)) => HealthUpdate {
                test: Some(test),
                ..timing
            },
            None => timing,
        };
        Some(update).filter(|update| *update != HealthUpdate::default())
    }
}

/// The backends that are in a state: `2/3 ready, 1 unhealthy`.
pub(super) fn states(all: u32, states: &BTreeMap<BackendState, u32>) -> String {
    let ready = states.get(&BackendState::Ready).unwrap_or(&0);
    let others = states.iter().filter(|(state, _)| **state != BackendState::Ready);
    let others = others.map(|(state, count)| format!(", {count} {state}"));
    format!("{ready}/{all} ready{}", others.collect::<String>())
}
