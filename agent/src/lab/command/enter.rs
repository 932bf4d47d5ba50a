//! `weft lab exec` and `weft lab call`: run something inside a host or a replica.

use std::{env, ffi::OsString, io, process::ExitCode};

use anyhow::{Context as _, Result};
use netns_harness::{EnterError, EnterSpec, enter_and_exec};

use super::super::{
    dir::LabDir,
    wire::{Request, ask},
};
use crate::api::ApiError;

/// What shells report for a command that does not exist.
const NOT_FOUND: u8 = 127;

pub(super) fn exec(dir: &LabDir, target: &str, command: &[OsString]) -> Result<ExitCode> {
    let mut argv = command.to_vec();
    if argv[0] == "weft" {
        argv[0] = this_program()?;
    }
    enter(dir, target, &argv)
}

pub(super) fn call(dir: &LabDir, from: &str, url: &str, times: u32) -> Result<ExitCode> {
    let times = times.to_string();
    let rest = ["lab", "fetch", url, "--times", &times];
    let argv: Vec<_> = [this_program()?]
        .into_iter()
        .chain(rest.into_iter().map(OsString::from))
        .collect();
    enter(dir, from, &argv)
}

fn enter(dir: &LabDir, target: &str, argv: &[OsString]) -> Result<ExitCode> {
    let spec: EnterSpec = ask(
        dir,
        &Request::Enter {
            target: target.to_owned(),
        },
    )?;
    // On a host, `weft` talks to that host's agent; in a replica there is none to talk to.
    let socket = dir.agent_socket(target);
    let env: Vec<_> = socket
        .exists()
        .then(|| {
            (
                OsString::from("WEFT_HOST"),
                OsString::from(format!("unix://{}", socket.display())),
            )
        })
        .into_iter()
        .collect();
    match enter_and_exec(&spec, argv, &env) {
        Ok(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Err(error @ EnterError::Execute { .. }) => {
            let missing = matches!(&error, EnterError::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound);
            eprintln!("error: {:#}", anyhow::Error::from(error));
            Ok(ExitCode::from(if missing { NOT_FOUND } else { NOT_FOUND - 1 }))
        }
        Err(error @ EnterError::NotYours { .. }) => Err(ApiError::forbidden(error.to_string()).into()),
        Err(error) => Err(error.into()),
    }
}

/// A path that leads to this program inside, too.
fn this_program() -> Result<OsString> {
    Ok(env::current_exe()
        .context("cannot find the path of this program")?
        .into_os_string())
}
