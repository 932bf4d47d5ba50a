use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::ApiError;

/// The kernel counts in ticks of a millisecond or less, in 32 bits of which one is a sign.
const MAX_IDLE_SECS: u32 = 24 * 24 * 3600;
const SLOW_START_MS: (u32, u32) = (100, 3_600_000);

/// How a service treats connections beyond the choice of a backend. In a change, what is not given stays, and 0 stands
/// for the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// After so many seconds of silence a connection is forgotten, and reset when it next speaks. By default each host's
    /// datapath has times of its own.
    pub idle_timeout_secs: Option<u32>,
    /// For so many milliseconds the share of a backend that has just come grows, from a tenth of its weight to all of it;
    /// under `lc` and `wrr`. By default it has all of it at once.
    pub slow_start_ms: Option<u32>,
}

impl Tuning {
    /// What comes of a change, which this is.
    pub fn apply(self, service: &str, before: Self) -> Result<Self, ApiError> {
        if let Some(secs) = self.idle_timeout_secs.filter(|secs| *secs > MAX_IDLE_SECS) {
            return Err(ApiError::invalid(format!(
                "service `{service}` cannot have an idle time-out of {}: the longest is {}",
                shown_secs(secs),
                shown_secs(MAX_IDLE_SECS)
            )));
        }
        let slow = self.slow_start_ms.filter(|ms| *ms > 0);
        if let Some(ms) = slow.filter(|ms| !(SLOW_START_MS.0..=SLOW_START_MS.1).contains(ms)) {
            return Err(ApiError::invalid(format!(
                "service `{service}` cannot have a slow start of {}: it is {} to {}",
                shown(ms),
                shown(SLOW_START_MS.0),
                shown(SLOW_START_MS.1)
            )));
        }
        let changed = |new: Option<u32>, before| match new {
            None => before,
            Some(0) => None,
            some => some,
        };
        Ok(Self {
            idle_timeout_secs: changed(self.idle_timeout_secs, before.idle_timeout_secs),
            slow_start_ms: changed(self.slow_start_ms, before.slow_start_ms),
        })
    }

    /// For how long the share of a new backend grows, if it does.
    pub fn slow_start(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.slow_start_ms?.into()))
    }

    /// How long connections may be idle, if the service says so.
    pub fn idle_timeout(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.idle_timeout_secs?.into()))
    }
}

fn shown(ms: u32) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(ms.into()))
}

fn shown_secs(secs: u32) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(secs.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_what_it_does_not_name_and_zero_is_the_default() {
        let idle = |secs| Tuning {
            idle_timeout_secs: secs,
            ..Tuning::default()
        };
        for (before, change, after) in [
            (None, None, None),
            (None, Some(60), Some(60)),
            (Some(60), None, Some(60)),
            (Some(60), Some(5), Some(5)),
            (Some(60), Some(0), None),
            (None, Some(MAX_IDLE_SECS), Some(MAX_IDLE_SECS)),
        ] {
            let got = idle(change).apply("web", idle(before)).unwrap();
            assert_eq!(got, idle(after), "{before:?} {change:?}");
        }
        let slow = |ms| Tuning {
            slow_start_ms: ms,
            ..Tuning::default()
        };
        assert_eq!(slow(Some(0)).apply("web", slow(Some(500))).unwrap(), slow(None));
        let both = slow(Some(500)).apply("web", idle(Some(60))).unwrap();
        assert_eq!(
            (both.idle_timeout_secs, both.slow_start_ms),
            (Some(60), Some(500))
        );
        let error = slow(Some(99)).apply("web", slow(None)).unwrap_err();
        assert!(error.message.contains("it is 100ms to 1h"), "{}", error.message);
        let error = idle(Some(MAX_IDLE_SECS + 1))
            .apply("web", idle(None))
            .unwrap_err();
        assert!(
            error.message.contains("the longest is 24days"),
            "{}",
            error.message
        );
    }
}
