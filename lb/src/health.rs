//! Whether a backend is well, from what its probes say.
//!
//! A [`Monitor`] decides and does nothing: it says when a probe is due ([`Monitor::poll_timeout`]), is told that one
//! began ([`Monitor::begin`]) and how it ended ([`Monitor::handle_result`]). One probe at a time; the next is due an
//! interval after the last one ended, so a backend that is slow to answer is not asked more often for it.
//!
//! ```text
//!             passes                    `retries` failures in a row
//! Starting ───────────► Healthy ◄──────────────────────────────► Unhealthy
//!     │                               passes                          ▲
//!     └───────────── `retries` failures in a row, after the start period
//! ```

use std::{
    num::NonZeroU16,
    time::{Duration, Instant},
};

/// How often a backend that was never well is probed, if its interval is longer: it is wanted as soon as it is well.
const WHILE_STARTING: Duration = Duration::from_secs(1);

/// When probes are due, and how many of them make a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the end of one probe to the next.
    pub interval: Duration,
    /// So many failures in a row make a backend unhealthy.
    pub retries: NonZeroU16,
    /// For so long failures of a backend that was never well do not count.
    pub start_period: Duration,
}

/// What is known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// It was never well, and may still be on its way.
    Starting,
    /// It gets new connections.
    Healthy,
    /// It gets none until a probe passes.
    Unhealthy,
}

/// The probes of one backend.
#[derive(Debug, Clone)]
pub struct Monitor {
    timing: Timing,
    health: Health,
    /// How many probes in a row failed and count.
    failures: u16,
    counts_from: Instant,
    /// `None` while one is on its way.
    due: Option<Instant>,
}

impl Monitor {
    /// Goes on from `health`: what is known of it stays true until probes say otherwise, so that neither a restart nor
    /// another check makes it flap. `chance` is a random number; it keeps the probes of many backends apart.
    pub fn new(timing: Timing, health: Health, now: Instant, chance: u16) -> Self {
        let wait = match health {
            Health::Starting => Duration::ZERO,
            Health::Healthy | Health::Unhealthy => timing.interval * u32::from(chance) / u32::from(u16::MAX),
        };
        Self {
            timing,
            health,
            failures: 0,
            counts_from: now + timing.start_period,
            due: Some(now + wait),
        }
    }

    /// What is known now.
    pub fn health(&self) -> Health {
        self.health
    }

    /// When the next probe is due; `None` while one is on its way.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// A probe is on its way.
    pub fn begin(&mut self) {
        self.due = None;
    }

    /// The probe ended: it passed, or it failed or took too long. True if that changed what is known.
    pub fn handle_result(&mut self, passed: bool, now: Instant, chance: u16) -> bool {
        let before = self.health;
        if passed {
            self.failures = 0;
            self.health = Health::Healthy;
        } else if before != Health::Starting || now >= self.counts_from {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.timing.retries.get() {
                self.health = Health::Unhealthy;
            }
        }
        let wait = match self.health {
            Health::Starting => self.timing.interval.min(WHILE_STARTING),
            Health::Healthy | Health::Unhealthy => self.timing.interval,
        };
        // Between 0.9 and 1.1 of it: probes that began together drift apart.
        let tenth = wait / 10;
        self.due = Some(now + wait - tenth + tenth * 2 * u32::from(chance) / u32::from(u16::MAX));
        self.health != before
    }
}

#[cfg(test)]
mod tests;
