//! Mistakes that tests plant to see that they would be noticed.

/// One planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A grant of an equal version replaces the known one.
    EqualVersionWins,
    /// Whatever is merged last wins, whatever its version.
    LastMergeWins,
    /// A node gives a single number that it does not own.
    GiveUnowned,
    /// A node gives numbers it has in use.
    GiveInUse,
    /// A node goes on owning what it gave.
    KeepGiven,
    /// The version counts from the one grant of exactly this block, not from all that overlap.
    VersionOfBlockOnly,
}

#[cfg(not(test))]
pub(crate) fn planted(_: Fault) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(crate) fn planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Runs `body` on this thread with `fault` in place.
#[cfg(test)]
pub(crate) fn with<T>(fault: Fault, body: impl FnOnce() -> T) -> T {
    PLANTED.set(Some(fault));
    let result = body();
    PLANTED.set(None);
    result
}
