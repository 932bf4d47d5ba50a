use std::path::PathBuf;

use clap::Args;

use crate::{broker::BrokerOptions, options::DEFAULT_RUN_DIR};

/// What `weft broker` takes.
#[derive(Debug, Args)]
#[command(after_help = BROKER_EXAMPLES)]
pub struct BrokerArgs {
    /// Below which directory it makes namespaces, and mounts
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Mount the eBPF file system there when it is asked to
    #[arg(long)]
    bpf: bool,
    /// Run the commands of health checks when it is asked to
    #[arg(long)]
    commands: bool,
    /// Start `weft tunnels` when it is asked to
    #[arg(long)]
    encrypter: bool,
    /// Start that without its sandbox
    #[arg(long, requires = "encrypter")]
    no_sandbox: bool,
    /// Do nothing until the one at the other end of standard output is gone
    #[arg(long)]
    stand_by: bool,
}

const BROKER_EXAMPLES: &str = "\
It is started by `weft agent`, whose requests come by standard input, and ends with it.";

impl BrokerArgs {
    pub fn options(self) -> BrokerOptions {
        BrokerOptions {
            run_dir: self.run_dir,
            bpf: self.bpf,
            commands: self.commands,
            encrypter: self.encrypter.then_some(!self.no_sandbox),
            stands_by: self.stand_by,
        }
    }
}
