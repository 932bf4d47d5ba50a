//! Tests that need more than a machine gives.

use std::{env, fmt::Display, io::Write as _, thread};

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
