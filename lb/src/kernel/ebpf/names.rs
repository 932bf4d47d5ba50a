//! What all sandboxes share: the names of maps and links on the BPF file system, and programs that are attached.

use std::{fs::File, os::fd::AsFd as _, path::Path};

use weft_netlink::bpf::{BpfError, Link, Pins};

use super::{
    State,
    layout::{LAYOUT, MapId},
    made,
    table::Maps,
};

impl State {
    /// Whether all names are there and all programs attached.
    pub(super) fn is_whole(&self) -> bool {
        let Some(pins) = &self.pins else { return true };
        let Ok(names) = pins.names() else { return false };
        let maps = MapId::ALL.map(pin_name);
        let mut wanted = maps.iter().chain(self.programs.names());
        let is_attached = |link: &Link| link.is_attached().unwrap_or(false);
        pins.are_mounted() && wanted.all(|name| names.contains(name)) && self.links.values().all(is_attached)
    }

    /// Gives the maps their names and attaches the programs, as far as that is not so.
    pub(super) fn establish(&mut self, dir: &Path, cgroup: &File) -> Result<(), BpfError> {
        let was_whole = self.is_whole();
        let pins = Pins::mount(dir)?;
        let names = pins.names()?;
        for id in MapId::ALL {
            let name = pin_name(id);
            if !names.contains(&name) {
                pins.pin(&name, made(&mut self.maps)?.of(id))?;
            }
        }
        self.link(&pins, cgroup)?;
        self.pins = Some(pins);
        if !was_whole {
            tracing::warn!(dir = %dir.display(), "somebody else took away programs or their names; they are put back");
        }
        Ok(())
    }

    /// Attaches the programs, or takes the places of an earlier agent's. Where that had the same there is nothing to do, and nothing is
    /// loaded for it.
    pub(super) fn link(&mut self, pins: &Pins, cgroup: &File) -> Result<(), BpfError> {
        let mut names = pins.names()?;
        for name in self.programs.names() {
            let is_named = names.contains(name);
            let link = match self.links.remove(name) {
                None if is_named => pins.link(name)?,
                kept => kept,
            };
            match link {
                Some(link) if link.is_attached()? => {
                    if !is_named {
                        pins.pin(name, &link)?;
                    }
                    self.links.insert(name.clone(), link);
                }
                // It would not be attached again.
                _ => {
                    pins.remove(name)?;
                    names.retain(|found| found != name);
                }
            }
        }
        if self.programs.names().all(|name| self.links.contains_key(name)) {
            return Ok(());
        }
        for (name, program) in self.programs.load(made(&mut self.maps)?)? {
            if self.links.contains_key(name) {
                continue;
            }
            let prefix = |name: &str| name.rsplit_once('-').map(|(prefix, _)| prefix.to_owned());
            let earlier = names
                .iter()
                .find(|found| *found != name && prefix(found) == prefix(name));
            let earlier = match earlier {
                Some(found) => pins.link(found)?.map(|link| (found, link)),
                None => None,
            };
            let link = match earlier {
                Some((found, link)) if link.is_attached()? => {
                    program.replace_at(&link)?;
                    pins.rename(found, name)?;
                    link
                }
                earlier => {
                    if let Some((found, _)) = earlier {
                        pins.remove(found)?;
                    }
                    let link = program.attach(cgroup.as_fd())?;
                    pins.pin(name, &link)?;
                    link
                }
            };
            self.links.insert(name.clone(), link);
        }
        Ok(())
    }
}

pub(super) fn adopt_maps(pins: &Pins) -> Result<Option<Maps>, BpfError> {
    let maps = MapId::ALL.map(|id| pins.map(&pin_name(id), id.spec()));
    let maps = maps.into_iter().collect::<Result<Option<Vec<_>>, _>>()?;
    Ok(maps.map(Maps))
}

fn pin_name(id: MapId) -> String {
    format!("{}-{LAYOUT}", id.spec().name)
}
