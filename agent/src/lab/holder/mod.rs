//! The holder: the process in the background that a lab lives in.
//!
//! It leaves the machine for namespaces of its own, builds the lab, and then answers on the lab's control
//! socket until it is killed. It holds the lab by descriptors alone, so whichever way it ends, the kernel
//! takes everything with it.

mod build;
mod check;
mod cluster;
mod control;
mod replicas;
mod running;

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use netns_harness::{Isolate, isolate};

use self::build::Broken;
use super::{
    dir::{LabDir, Record},
    wire::{Progress, send},
};
use crate::api::ApiError;

/// What `weft lab hold` takes.
#[derive(Debug, clap::Args)]
pub struct HoldArgs {
    /// The lab's directory
    dir: PathBuf,
}

/// Holds the lab whose directory `weft lab up` has made. Progress goes to standard output; standard input is
/// the lab's lock, which every process of the holder keeps open.
pub(super) fn run(args: &HoldArgs) -> Result<ExitCode> {
    let dir = LabDir::at(args.dir.clone());
    match hold(&dir) {
        Ok(never) => match never {},
        Err(broken) => {
            let error = broken.error.downcast_ref::<ApiError>().cloned();
            let failed = Progress::Failed {
                error: error.unwrap_or_else(|| ApiError::internal(broken.error.to_string())),
                causes: broken.error.chain().skip(1).map(ToString::to_string).collect(),
                log: broken.log,
            };
            if send(io::stdout(), &failed).is_err() {
                // Nobody listens any more; the log has it.
                eprintln!("{:#}", broken.error);
            }
            // Nothing is unwound: the kernel takes the namespaces apart faster than we could.
            std::process::exit(1);
        }
    }
}

fn hold(dir: &LabDir) -> Result<std::convert::Infallible, Broken> {
    // A session of its own: the terminal's Ctrl-C and hang-up are for `weft lab up`. It fails only for the
    // leader of a group, which has what it needs.
    let _ = nix::unistd::setsid();
    let mut record = dir.read()?;
    record.holder = Some(std::process::id());
    dir.write(&record)?;
    let Record { topology, .. } = &record;

    isolate(&Isolate::new().keep(dir.path()).hostname(&topology.name)).map_err(|error| {
        // Its own text names the switch that is off and says how to go on.
        ApiError::forbidden(error.to_string())
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start an event loop")?;
    let running = runtime.block_on(build::build(dir, topology))?;
    record.footprint = Some(
        running
            .lab
            .footprint()
            .context("cannot describe the lab for its audit")?,
    );
    dir.write(&record)?;
    let control = control::Control::bind(dir)?;
    send(io::stdout(), &Progress::Ready).context("`weft lab up` is gone, so nobody wants this lab")?;
    Ok(control.serve(running)?)
}
