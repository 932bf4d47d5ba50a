//! The resolver configuration of a named namespace: `/etc/netns/NAME/resolv.conf`, which
//! `ip netns exec` binds over `/etc/resolv.conf`. The host's own file is never touched, nor one that
//! somebody else wrote.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Where `ip netns exec` looks for the configuration of named namespaces.
pub const ROOT: &str = "/etc/netns";

const MARK: &str = "# Written by weft; `weft network disconnect` removes it.\n";

/// The text of a resolv.conf (see resolv.conf(5)).
pub fn text(servers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::from(MARK);
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    // Names with a dot are asked as they are first; single labels go through the search list.
    text.push_str("options ndots:1 timeout:1 attempts:3\n");
    text
}

fn file_of(root: &Path, target: &str) -> Option<PathBuf> {
    let named = !target.starts_with('/') && !target.starts_with("pid:");
    named.then(|| root.join(target).join("resolv.conf"))
}

fn is_ours(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.starts_with(MARK))
}

/// Writes the file for a namespace that has a name. `None` if there is none to write or somebody
/// else's is there; an error if it cannot be written (an ordinary user's lab, a read-only `/etc`).
pub fn write(root: &Path, target: &str, text: &str) -> io::Result<Option<PathBuf>> {
    let Some(file) = file_of(root, target) else {
        return Ok(None);
    };
    if file.exists() && !is_ours(&file) {
        return Ok(None);
    }
    std::fs::create_dir_all(file.parent().expect("a file in a directory"))?;
    std::fs::write(&file, text)?;
    Ok(Some(file))
}

/// Removes what [`write`] made, and the directory if nothing else is in it.
pub fn remove(root: &Path, target: &str) {
    let Some(file) = file_of(root, target) else { return };
    if is_ours(&file) && std::fs::remove_file(&file).is_ok() {
        // Not empty is fine: then it is not ours alone.
        let _ = std::fs::remove_dir(file.parent().expect("a file in a directory"));
        let _ = std::fs::remove_dir(root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_for_a_name_and_removed_again() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("netns");
        let text = text(&["169.254.53.53".parse().unwrap()], &["app.weft.internal".into()]);
        let file = write(&etc, "web", &text).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        assert_eq!(write(&etc, "pid:1", &text).unwrap(), None);
        assert_eq!(write(&etc, "/run/netns/web", &text).unwrap(), None);
        remove(&etc, "web");
        assert!(!etc.exists());
    }

    #[test]
    fn a_foreign_file_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("web/resolv.conf");
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(write(root.path(), "web", "x").unwrap(), None);
        remove(root.path(), "web");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
    }
}
