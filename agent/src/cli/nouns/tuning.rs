//! The flags about how a service treats connections, and how that is shown.

use std::time::Duration;

use clap::Args;

use crate::api::types::Tuning;

#[derive(Debug, Args)]
pub(super) struct TuningArgs {
    /// Forget a connection that was silent for so long, and reset it when it next speaks; none for the default: TCP five
    /// days or for ever, UDP 30 to 120 seconds, by the host's datapath
    #[arg(long, value_name = "TIME", value_parser = secs)]
    idle_timeout: Option<u32>,
    /// Let the share of a backend that has just come grow for so long, from a tenth of its weight to all of it; with lc and
    /// wrr. none: it has all of it at once, which is the default
    #[arg(long, value_name = "TIME", value_parser = millis)]
    slow_start: Option<u32>,
    /// Give a backend none of a host's connections for a time (30s unless it is said, longer each time) when so many of them in a
    /// row failed; off is the default
    #[arg(long, value_name = "off|FAILURES[:TIME]", value_parser = Tuning::read_eject)]
    eject: Option<Tuning>,
}

fn secs(text: &str) -> Result<u32, String> {
    if text == "none" {
        return Ok(0);
    }
    let time = humantime::parse_duration(text).ok().map(|time| time.as_secs());
    time.and_then(|secs| u32::try_from(secs).ok())
        .filter(|secs| *secs > 0)
        .ok_or_else(|| "expected a time of at least 1s, such as 90s, 1h or 2days, or none".to_owned())
}

fn millis(text: &str) -> Result<u32, String> {
    if text == "none" {
        return Ok(0);
    }
    let time = humantime::parse_duration(text).ok().map(|time| time.as_millis());
    time.and_then(|ms| u32::try_from(ms).ok())
        .filter(|ms| *ms > 0)
        .ok_or_else(|| "expected a time such as 30s or 2m, or none".to_owned())
}

impl TuningArgs {
    /// The change that the flags ask for.
    pub(super) fn change(&self) -> Tuning {
        Tuning {
            idle_timeout_secs: self.idle_timeout,
            slow_start_ms: self.slow_start,
            ..self.eject.unwrap_or_default()
        }
    }
}

/// What a service says of idle connections.
pub(super) fn idle_timeout(tuning: &Tuning) -> String {
    let of_datapath = || "the datapath's own".to_owned();
    tuning.idle_timeout().map_or_else(of_datapath, shown)
}

/// What a service says of new backends.
pub(super) fn slow_start(tuning: &Tuning) -> String {
    tuning.slow_start().map_or_else(|| "none".to_owned(), shown)
}

/// What a service says of backends to which nobody can connect.
pub(super) fn eject(tuning: &Tuning) -> String {
    tuning.eject().map_or_else(
        || "off".to_owned(),
        |(failures, time)| format!("after {failures} failures in a row, for {}", shown(time)),
    )
}

fn shown(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}
