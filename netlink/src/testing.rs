//! Tests that need more than a machine gives.

use std::{env, fmt::Display, io::Write as _, thread};

use crate::netns::{Netns, NetnsError};

/// A network namespace for the calling test. Rootless runs happen under `unshare -Urnm`; a plain user has nothing to test with, which
/// is [said](skip).
pub fn netns() -> Option<Netns> {
    made(Netns::create())
}

/// The same of one that was to be made in another way.
///
/// # Panics
///
/// If it is not for lack of permission that there is none.
pub fn made(netns: Result<Netns, NetnsError>) -> Option<Netns> {
    match netns {
        Ok(netns) => Some(netns),
        Err(error @ NetnsError::Permission { .. }) => {
            skip(format_args!(
                "it needs root, or `unshare -Urnm` around it: {error}"
            ));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Says what the calling test lacks, also where the output of tests that pass is not shown.
///
/// # Panics
///
/// With `WEFT_SKIP=never` in the environment, as in CI: a test that never runs anywhere tests nothing.
pub fn skip(lacking: impl Display) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(
        env::var_os("WEFT_SKIP").is_none_or(|may| may != "never"),
        "{test} must not be skipped here, and {lacking}"
    );
    let _ = writeln!(std::io::stderr(), "{test} is skipped: {lacking}");
}
