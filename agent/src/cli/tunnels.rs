use std::path::PathBuf;

use clap::Args;

use crate::{options::DEFAULT_RUN_DIR, privileges};

/// What `weft tunnels` takes.
#[derive(Debug, Args)]
#[command(after_help = TUNNELS_EXAMPLES)]
pub struct TunnelsArgs {
    /// Where the agent finds it: by the socket tunnels.sock in this directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Let it reach all files of this host, should what keeps it from them keep it from its work
    #[arg(long)]
    no_sandbox: bool,
}

const TUNNELS_EXAMPLES: &str = "\
Examples:
  sudo weft tunnels

It stays in the foreground and does what the agent of this host says. Without an agent it goes on as
it was last told; encrypted networks carry nothing while it is away.";

pub fn run(args: &TunnelsArgs) -> anyhow::Result<()> {
    privileges::keep_only(privileges::OF_TUNNELS)?;
    if !args.no_sandbox && !privileges::confine_tunnels(&args.run_dir)? {
        eprintln!(
            "note: this kernel, or a filter of system calls, has no Landlock that would keep files of this host out of reach"
        );
    }
    Ok(weft_wireguard::run(&args.run_dir.join("tunnels.sock"))?)
}
