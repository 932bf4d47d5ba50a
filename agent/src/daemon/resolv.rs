//! The resolver configuration of named namespaces: `/etc/netns/NAME/resolv.conf`, which
//! `ip netns exec` binds over `/etc/resolv.conf`. The host's own file is never touched, nor one that
//! somebody else wrote.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use weft_netlink::broker;

use super::host::sentence;
use crate::control::Resolver;

/// Where `ip netns exec` looks for the configuration of named namespaces.
pub const ROOT: &str = "/etc/netns";

const MARK: &str = "# Written by weft; `weft network disconnect` removes it.\n";

/// What is being written, until it is whole.
const UNFINISHED: &str = ".resolv.conf.weft";

/// The files below one directory, kept as they are wanted.
pub struct ResolverFiles {
    root: PathBuf,
    /// What was asked for last; nothing is known of what an earlier agent left.
    set: Option<BTreeMap<String, Resolver>>,
}

impl ResolverFiles {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            set: None,
        }
    }

    /// From now on there are files for these targets, and no others of ours. What cannot be written (in an
    /// ordinary user's lab, or on a read-only `/etc`) is left out.
    pub fn set(&mut self, wanted: BTreeMap<String, Resolver>) {
        let before = match self.set.take() {
            Some(set) => set.into_keys().collect(),
            None => found(&self.root),
        };
        for gone in before.iter().filter(|target| !wanted.contains_key(*target)) {
            self.change(gone, None);
        }
        for (target, resolver) in &wanted {
            let Some(file) = file_of(&self.root, target) else {
                continue;
            };
            let text = text(resolver);
            let is_there =
                fs::read_to_string(file).is_ok_and(|there| there == text || !there.starts_with(MARK));
            if !is_there {
                self.change(target, Some(&text));
            }
        }
        self.set = Some(wanted);
    }

    /// By the broker, as an agent that could write to `/etc` could do everything.
    fn change(&self, target: &str, text: Option<&str>) {
        let changed = match broker::set_resolver(target, text) {
            Some(changed) => changed.map_err(|error| sentence(&error)),
            None => change(&self.root, target, text).map_err(|error| error.to_string()),
        };
        if let Err(error) = changed {
            tracing::debug!(%target, error, "resolv.conf not written");
        }
    }
}

/// What the broker does for the agent, whom it does not trust: one file below one directory, in which nothing but resolvers is named.
pub fn change_checked(target: &str, text: Option<&str>) -> io::Result<()> {
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if matches!(target, "" | "." | "..") || target.len() > 255 || target.contains(['/', '\0']) {
        return refused("a resolver configuration is of a named namespace");
    }
    let is_plain = |line: &str| {
        let mut words = line.split(' ');
        match words.next() {
            Some("nameserver") => words.all(|word| word.parse::<std::net::IpAddr>().is_ok()),
            Some("search" | "options") => {
                words.all(|word| word.bytes().all(|byte| is_name(byte) || byte == b':'))
            }
            _ => false,
        }
    };
    match text.map(|text| text.strip_prefix(MARK)) {
        Some(None) => return refused("a resolver configuration begins with who wrote it"),
        Some(Some(lines)) if !lines.lines().all(is_plain) => {
            return refused("a resolver configuration names resolvers, and domains to search");
        }
        _ => {}
    }
    change(Path::new(ROOT), target, text)
}

fn change(root: &Path, target: &str, text: Option<&str>) -> io::Result<()> {
    match text {
        Some(text) => write(root, target, text),
        None => {
            remove(root, target);
            Ok(())
        }
    }
}

/// The file for a target, if one of ours is there.
pub fn written(root: &Path, target: &str) -> Option<PathBuf> {
    file_of(root, target).filter(|file| is_ours(file))
}

/// The text of a resolv.conf (see resolv.conf(5)).
fn text(Resolver { servers, search }: &Resolver) -> String {
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
    fs::read_to_string(file).is_ok_and(|text| text.starts_with(MARK))
}

/// The targets that have a file of ours.
fn found(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let has_ours = |name: &String| {
        written(root, name).is_some() || fs::exists(root.join(name).join(UNFINISHED)).unwrap_or(false)
    };
    names.filter(has_ours).collect()
}

fn write(root: &Path, target: &str, text: &str) -> io::Result<()> {
    let Some(file) = file_of(root, target) else {
        return Ok(());
    };
    match fs::read_to_string(&file) {
        Ok(there) if there == text || !there.starts_with(MARK) => return Ok(()),
        _ => {}
    }
    fs::create_dir_all(file.parent().expect("a file in a directory"))?;
    // Whole or not at all: half a file would not show that it is ours.
    let unfinished = file.with_file_name(UNFINISHED);
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, file)
}

/// Removes a file of ours, and its directories if nothing else is in them.
fn remove(root: &Path, target: &str) {
    let Some(file) = file_of(root, target) else { return };
    let dir = file.parent().expect("a file in a directory");
    if is_ours(&file) {
        let _ = fs::remove_file(&file);
    }
    // What is gone already, or not empty and so not ours alone, is left as it is.
    let _ = fs::remove_file(dir.join(UNFINISHED));
    let _ = fs::remove_dir(dir);
    let _ = fs::remove_dir(root);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(targets: &[&str]) -> BTreeMap<String, Resolver> {
        let resolver = Resolver {
            servers: vec!["169.254.53.53".parse().unwrap()],
            search: vec!["app.weft.internal".to_owned()],
        };
        let each = targets
            .iter()
            .map(|target| ((*target).to_owned(), resolver.clone()));
        each.collect()
    }

    #[test]
    fn for_an_agent_that_is_not_trusted_only_resolvers_are_written() {
        let good = format!("{MARK}nameserver 169.254.53.53\nsearch app.weft.internal\noptions ndots:1\n");
        for (target, text) in [
            ("", good.clone()),
            ("..", good.clone()),
            ("a/b", good.clone()),
            ("/etc", good.clone()),
            ("a\0b", good.clone()),
            ("web", "nameserver 10.0.0.1\n".to_owned()),
            ("web", format!("{MARK}root::0:0::/:/bin/sh\n")),
            ("web", format!("{MARK}nameserver evil\n")),
            ("web", format!("{MARK}search a;b\n")),
        ] {
            let refused = change_checked(target, Some(&text)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{target} {text}");
        }
        assert!(change_checked("../x", None).is_err());
    }

    #[test]
    fn there_are_files_for_names_that_are_wanted_also_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("netns");
        let mut files = ResolverFiles::new(&etc);
        files.set(wanted(&["web", "db", "pid:1", "/run/netns/web"]));
        let text = fs::read_to_string(written(&etc, "web").unwrap()).unwrap();
        assert!(
            text.contains("nameserver 169.254.53.53\nsearch app.weft.internal\n"),
            "{text}"
        );
        assert_eq!(found(&etc).len(), 2);
        fs::create_dir(etc.join("half")).unwrap();
        fs::write(etc.join("half").join(UNFINISHED), "# Wri").unwrap();

        let mut next = ResolverFiles::new(&etc);
        next.set(wanted(&["db"]));
        assert_eq!(found(&etc), ["db"]);
        next.set(wanted(&[]));
        assert!(!etc.exists());
    }

    #[test]
    fn a_foreign_file_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("web/resolv.conf");
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let mut files = ResolverFiles::new(root.path());
        files.set(wanted(&["web"]));
        files.set(wanted(&[]));
        assert_eq!(written(root.path(), "web"), None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
    }
}
