//! `weft lab exec` and `weft lab call`: run something inside a host or a replica.

use std::{env, ffi::OsString, io, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use netns_harness::{EnterError, EnterSpec, enter_and_exec};

use super::{
    super::{
        dir::LabDir,
        wire::{Request, ask},
    },
    CallArgs,
};
use crate::api::ApiError;

/// What shells report for a command that does not exist.
const NOT_FOUND: u8 = 127;
/// What `weft` does without an agent.
const WITHOUT_AGENT: [&str; 5] = ["agent", "completion", "lab", "version", "whoami"];

pub(super) fn exec(dir: &LabDir, target: &str, command: &[OsString]) -> Result<ExitCode> {
    let mut argv = command.to_vec();
    if argv[0] == "weft" {
        argv[0] = this_program()?;
    }
    let asks = (command[0] == "weft").then(|| command.get(1)).flatten();
    enter(dir, target, &argv, asks.and_then(|verb| verb.to_str()))
}

pub(super) fn call(dir: &LabDir, args: &CallArgs) -> Result<ExitCode> {
    let times = args.times.to_string();
    let timeout = args.timeout.as_millis().to_string();
    let rest = [
        "lab",
        "fetch",
        "--times",
        &times,
        "--timeout-ms",
        &timeout,
        "--",
        &args.url,
    ];
    let argv: Vec<_> = [this_program()?]
        .into_iter()
        .chain(rest.into_iter().map(OsString::from))
        .collect();
    enter(dir, &args.from, &argv, None)
}

/// `asks` is the verb of a `weft` that is to be run inside.
fn enter(dir: &LabDir, target: &str, argv: &[OsString], asks: Option<&str>) -> Result<ExitCode> {
    let spec: EnterSpec = ask(
        dir,
        &Request::Enter {
            target: target.to_owned(),
        },
    )?;
    // On a host, `weft` talks to that host's agent; in a replica there is none to talk to.
    let socket = dir.agent_socket(target);
    let mut env = vec![("PATH".into(), path_to_this_program()?)];
    if socket.exists() {
        env.push(("WEFT_HOST".into(), format!("unix://{}", socket.display()).into()));
    } else if let Some(verb) = asks.filter(|verb| !verb.starts_with('-') && !WITHOUT_AGENT.contains(verb)) {
        return Err(
            ApiError::not_found(format!("{target} has no agent that `weft {verb}` could ask"))
                .with_help(format!(
                    "ask a host: weft lab exec {} HOST -- weft {verb}",
                    dir.name()
                ))
                .into(),
        );
    }
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

/// The search path, with this program at its end: a shell inside finds it, too.
fn path_to_this_program() -> Result<OsString> {
    let mut path = env::var_os("PATH").unwrap_or_default();
    if let Some(directory) = PathBuf::from(this_program()?).parent() {
        if !path.is_empty() {
            path.push(":");
        }
        path.push(directory);
    }
    Ok(path)
}

/// A path that leads to this program inside, too.
fn this_program() -> Result<OsString> {
    Ok(env::current_exe()
        .context("cannot find the path of this program")?
        .into_os_string())
}
