//! How much is looked at: tests hold a change to what it may cost by this, and not by time.

/// Something of what is known was looked at.
#[inline]
pub(super) fn looked() {
    #[cfg(test)]
    LOOKED.with(|looked| looked.set(looked.get() + 1));
}

#[cfg(test)]
thread_local! {
    static LOOKED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How often so far, on this thread.
#[cfg(test)]
pub(super) fn looks() -> u64 {
    LOOKED.with(std::cell::Cell::get)
}
