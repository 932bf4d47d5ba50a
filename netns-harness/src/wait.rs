//! Waiting for conditions with a deadline. This is the only place in the crate where time passes on purpose.

use std::fmt;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

/// A condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not happen within {timeout:?}; the last look showed {last}")]
pub struct TimedOut {
    /// What was waited for, as the caller named it.
    pub what: String,
    /// How long it was waited for.
    pub timeout: Duration,
    /// What the last look showed.
    pub last: String,
}

/// Looks every `every` until `look` returns `Ok`, at most `timeout` long. The last look is taken after the deadline,
/// so a slow machine gets one more chance.
///
/// `what` completes the sentence "… did not happen"; the `Err` of the last look completes "the last look showed …".
///
/// ```
/// use std::time::Duration;
/// let mut n = 0;
/// let value = netns_harness::eventually("the third look", Duration::from_secs(1), Duration::from_millis(1), || {
///     n += 1;
///     if n == 3 { Ok(n) } else { Err(n) }
/// });
/// assert_eq!(value.unwrap(), 3);
/// ```
///
/// # Errors
///
/// [`TimedOut`] with the value of the last look.
pub fn eventually<T, E: fmt::Display>(
    what: impl Into<String>,
    timeout: Duration,
    every: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, TimedOut> {
    let deadline = Instant::now() + timeout;
    loop {
        let late = Instant::now() >= deadline;
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if late => {
                return Err(TimedOut {
                    what: what.into(),
                    timeout,
                    last: last.to_string(),
                });
            }
            Err(_) => pause(every.min(deadline.saturating_duration_since(Instant::now()))),
        }
    }
}

/// Lets `duration` pass; a signal may end it early, as every caller looks at its deadline anyway.
pub(crate) fn pause(duration: Duration) {
    // Rounded up, so that a rest of microseconds does not become a busy loop.
    let millis = u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [], timeout);
}

/// The rest of the time until `deadline`, as poll wants it.
pub(crate) fn poll_timeout(deadline: Instant) -> PollTimeout {
    let rest = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(u64::try_from(rest.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
        .unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_names_the_wish_and_the_last_value() {
        let mut looks = 0;
        let error = eventually(
            "a blue moon",
            Duration::from_millis(5),
            Duration::from_millis(1),
            || {
                looks += 1;
                Err::<(), _>(format!("{looks} grey ones"))
            },
        )
        .unwrap_err();
        assert!(looks >= 2, "a deadline still allows a last look");
        assert_eq!(
            error.to_string(),
            format!("a blue moon did not happen within 5ms; the last look showed {looks} grey ones")
        );
    }
}
