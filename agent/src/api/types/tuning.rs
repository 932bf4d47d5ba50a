use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::ApiError;

/// The kernel counts in ticks of a millisecond or less, in 32 bits of which one is a sign.
const MAX_IDLE_SECS: u32 = 24 * 24 * 3600;
const SLOW_START_MS: (u32, u32) = (100, 3_600_000);
const MAX_EJECT_FAILURES: u32 = 1_000;
const EJECT_MS: (u32, u32) = (1_000, 3_600_000);
/// For how long a backend is ejected at first, unless it is said.
const DEFAULT_EJECT_MS: u32 = 30_000;

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
    /// When so many connections in a row of one host's clients to a backend have failed, that host gives it none for a time. By
    /// default none is ejected.
    pub eject_failures: Option<u32>,
    /// For so many milliseconds at first. By default 30,000.
    pub eject_ms: Option<u32>,
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
        let failures = self.eject_failures.unwrap_or_default();
        if failures > MAX_EJECT_FAILURES {
            return Err(ApiError::invalid(format!(
                "service `{service}` cannot eject backends after {failures} failures in a row: the most is {MAX_EJECT_FAILURES}"
            )));
        }
        let eject = self.eject_ms.filter(|ms| *ms > 0);
        if let Some(ms) = eject.filter(|ms| !(EJECT_MS.0..=EJECT_MS.1).contains(ms)) {
            return Err(ApiError::invalid(format!(
                "service `{service}` cannot eject backends for {}: it is {} to {}",
                shown(ms),
                shown(EJECT_MS.0),
                shown(EJECT_MS.1)
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
            eject_failures: changed(self.eject_failures, before.eject_failures),
            eject_ms: changed(self.eject_ms, before.eject_ms),
        })
    }

    /// What `off` or `FAILURES[:TIME]` changes.
    pub fn read_eject(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a number of failures such as 5 or 5:30s, nor off");
        let (failures, time) = match text.split_once(':') {
            _ if text == "off" => ("0", None),
            Some((failures, time)) => (failures, Some(time)),
            None => (text, None),
        };
        let failures: u32 = failures.parse().map_err(|_| wrong())?;
        if failures == 0 && text != "off" {
            return Err(wrong());
        }
        let ms = match time {
            None => 0,
            Some(time) => {
                let time = humantime::parse_duration(time).map_err(|_| wrong())?;
                u32::try_from(time.as_millis())
                    .ok()
                    .filter(|ms| *ms > 0)
                    .ok_or_else(wrong)?
            }
        };
        Ok(Self {
            eject_failures: Some(failures),
            eject_ms: Some(ms),
            ..Self::default()
        })
    }

    /// After how many failures in a row a backend is ejected, and for how long at first, if it is.
    pub fn eject(&self) -> Option<(u32, Duration)> {
        let ms = self.eject_ms.unwrap_or(DEFAULT_EJECT_MS);
        Some((self.eject_failures?, Duration::from_millis(ms.into())))
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
        for (text, eject) in [("5", Some((5, 30))), ("1:1h", Some((1, 3600))), ("off", None)] {
            let before = Tuning::read_eject("7:2s").unwrap();
            let after = Tuning::read_eject(text).unwrap().apply("web", before).unwrap();
            let eject = eject.map(|(failures, secs)| (failures, Duration::from_secs(secs)));
            assert_eq!(after.eject(), eject, "{text}");
        }
        for text in ["", "0", "off:1s", "5:", "5:soon", ":1s", "-1"] {
            assert!(Tuning::read_eject(text).is_err(), "{text}");
        }
        for text in ["1001", "5:500ms", "5:2h"] {
            let change = Tuning::read_eject(text).unwrap();
            assert!(change.apply("web", Tuning::default()).is_err(), "{text}");
        }
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
