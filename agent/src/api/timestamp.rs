use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A moment as people and JSON read it: RFC 3339 in UTC with milliseconds, `2026-11-21T12:15:47.250Z`.
///
/// It is for showing only: nothing in a cluster is ordered by a wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// A number of milliseconds since 1970-01-01T00:00:00Z, as durable state keeps it.
    pub fn from_unix_millis(millis: u64) -> Self {
        // The last moment RFC 3339 can write is 9999-12-31T23:59:59.999Z.
        Self(UNIX_EPOCH + Duration::from_millis(millis.min(253_402_300_799_999)))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z; a clock set before then counts as that moment.
    pub fn unix_millis(self) -> u64 {
        self.0
            .duration_since(UNIX_EPOCH)
            .map_or(0, |past| past.as_millis() as u64)
    }
}

impl From<SystemTime> for Timestamp {
    /// Cuts to milliseconds, so that a value is the same after a round trip.
    fn from(time: SystemTime) -> Self {
        Self::from_unix_millis(Self(time).unix_millis())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&humantime::format_rfc3339_millis(self.0).to_string())
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339_weak(text).map(Self::from)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_and_read_back_to_the_millisecond() {
        let moment = Timestamp::from_unix_millis(1_795_263_347_250);
        assert_eq!(moment.to_string(), "2026-11-21T12:15:47.250Z");
        assert_eq!(moment.to_string().parse(), Ok(moment));
        assert_eq!(
            serde_json::to_string(&moment).unwrap(),
            "\"2026-11-21T12:15:47.250Z\""
        );
        assert_eq!(moment.unix_millis(), 1_795_263_347_250);
        assert_eq!(
            Timestamp::from_unix_millis(u64::MAX).to_string(),
            "9999-12-31T23:59:59.999Z"
        );
    }
}
