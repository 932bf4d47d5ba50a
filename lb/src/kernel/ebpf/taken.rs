//! Which programs the kernel takes.
//!
//! To look through all of them takes it a tenth of a second, with all of one processor. An agent that starts again has to know only that
//! it would take them: it took the same ones since it was booted, so they are loaded when a sandbox needs them, and maps are made then.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use weft_netlink::bpf::{Attach, BpfError, Loaded, Map, Program};

use super::{super::program::fnv, program::programs, table::Maps};

const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// All programs, loaded when they are needed.
#[derive(Debug)]
pub(super) struct Programs {
    /// With the names of their links.
    all: Vec<(String, Attach, &'static str, Program)>,
    loaded: Vec<(String, Loaded)>,
}

impl Programs {
    pub(super) fn new() -> Self {
        let all = programs().into_iter().map(|(attach, name, program)| {
            (
                format!("{name}-{:016x}", fnv(&program.bytes())),
                attach,
                name,
                program,
            )
        });
        Self {
            all: all.collect(),
            loaded: Vec::new(),
        }
    }

    /// Each is of what it is made of.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.all.iter().map(|(name, ..)| name)
    }

    pub(super) fn load(&mut self, maps: &Maps) -> Result<&[(String, Loaded)], BpfError> {
        if self.loaded.is_empty() {
            let maps: Vec<&Map> = maps.0.iter().collect();
            let loaded = self
                .all
                .iter()
                .map(|(link, attach, name, program)| Ok((link.clone(), program.load(name, *attach, &maps)?)));
            self.loaded = loaded.collect::<Result<_, BpfError>>()?;
        }
        Ok(&self.loaded)
    }

    #[cfg(test)]
    pub(super) fn are_loaded(&self) -> bool {
        !self.loaded.is_empty()
    }
}

/// A note, beside the folder of a datapath, of what the kernel took since it was booted.
#[derive(Debug)]
pub(super) struct Taken {
    at: PathBuf,
    /// What it says, where that can be known.
    text: Option<String>,
}

impl Taken {
    pub(super) fn of(dir: &Path, programs: &Programs) -> Self {
        let names: Vec<&str> = programs.names().map(String::as_str).collect();
        let boot = fs::read_to_string(BOOT).ok();
        Self {
            at: Self::path(dir),
            text: boot.map(|boot| format!("{}\n{}\n", boot.trim_end(), names.join("\n"))),
        }
    }

    fn path(dir: &Path) -> PathBuf {
        dir.with_extension("taken")
    }

    pub(super) fn is_known(&self) -> bool {
        let text = self.text.as_deref();
        text.is_some_and(|text| fs::read_to_string(&self.at).is_ok_and(|found| found == text))
    }

    /// Half of it, or none, is a start that takes longer.
    pub(super) fn note(&self) {
        let Some(text) = self.text.as_deref().filter(|_| !self.is_known()) else {
            return;
        };
        let parent = self.at.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = parent.and_then(|()| fs::write(&self.at, text)) {
            tracing::debug!(path = %self.at.display(), %error, "it is not noted that the kernel takes the programs");
        }
    }

    pub(super) fn forget(dir: &Path) {
        match fs::remove_file(Self::path(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, "a note on what the kernel takes stays");
            }
            _ => {}
        }
    }
}
