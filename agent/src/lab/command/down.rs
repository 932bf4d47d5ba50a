//! `weft lab down`: kill the holder, remove the files, and look whether anything is left.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use netns_harness::left_behind;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{super::dir::LabDir, show::say};
use crate::api::ApiError;

/// The kernel takes namespaces apart in the background: some milliseconds for each.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn run(dir: &LabDir) -> Result<ExitCode> {
    let name = dir.name();
    if !dir.exists() {
        return Err(dir.not_found().into());
    }
    let held = dir.is_held();
    let record = match dir.read() {
        Ok(record) => Some(record),
        // A lab that died before it wrote anything has nothing to look for.
        Err(_) if !held => None,
        Err(error) => return Err(error),
    };
    if held {
        let holder = record.as_ref().and_then(|record| record.holder).ok_or_else(|| {
            ApiError::unavailable(format!("the lab `{name}` is only beginning to be built"))
                .with_help("try again in a moment")
        })?;
        // The lock says that the process lives, so the number is its own.
        match kill(Pid::from_raw(holder.cast_signed()), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("cannot end process {holder}, which holds the lab `{name}`"));
            }
        }
        dir.wait_until_free()?;
    }
    let footprint = record
        .and_then(|record| record.footprint)
        .unwrap_or_default()
        .path(dir.path());
    dir.remove()?;
    let left = left_behind(&footprint, AUDIT_TIMEOUT).context("cannot look for what is left of the lab")?;
    if !left.is_empty() {
        return Err(ApiError::internal(format!(
            "the lab `{name}` is down, but something is left of it: {}",
            left.join("; ")
        ))
        .into());
    }
    let was = if held { "" } else { "was dead already; it " };
    say(&format!(
        "lab {name} {was}is down: no process, namespace, mount or file of it is left\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}
