//! Mount namespaces: a `/run` of one's own, files under `/etc` of one's own.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

/// Programs of some distributions live here; without them nothing could be executed.
const ALWAYS_KEPT: [&str; 4] = [
    "/run/current-system",
    "/run/booted-system",
    "/run/wrappers",
    "/run/opengl-driver",
];

/// Where a host keeps the files that are bound over those of the machine.
pub(crate) const PRIVATE: &str = "/run/netns-harness";

/// Sets how mounts and unmounts spread, for the whole tree.
pub(crate) fn set_propagation(kind: MsFlags) -> nix::Result<()> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        kind | MsFlags::MS_REC,
        None::<&str>,
    )
}

/// Those of the paths, and of the ones every program needs, that exist under `/run` and so need keeping.
pub(crate) fn keepable(wanted: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = ALWAYS_KEPT
        .iter()
        .map(PathBuf::from)
        .chain(wanted.iter().cloned())
        .filter_map(|path| fs::canonicalize(path).ok())
        .filter(|path| path.starts_with("/run") && path != Path::new("/run"))
        .collect();
    paths.sort();
    // A path below another one comes with it.
    paths.dedup_by(|later, earlier| later.starts_with(&*earlier));
    paths
}

/// Covers `/run` with an empty tmpfs in which only `keep` shows through, and in which `/etc/resolv.conf` still leads
/// somewhere if it is a link into `/run`.
pub(crate) fn fresh_run(keep: &[PathBuf]) -> io::Result<()> {
    let kept: Vec<(&PathBuf, OwnedFd)> = keep
        .iter()
        .filter_map(|path| {
            Some((
                path,
                open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?,
            ))
        })
        .collect();
    let resolver = fs::canonicalize("/etc/resolv.conf").ok().and_then(|path| {
        let text = fs::read(&path).ok()?;
        path.starts_with("/run").then_some((path, text))
    });
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        flags,
        Some("mode=755,size=64m"),
    )?;
    for (path, fd) in kept {
        if fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.is_dir() {
            fs::create_dir_all(path)?;
        } else {
            create_with_parents(path, b"")?;
        }
        let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
        bind(Path::new(&source), path)?;
    }
    if let Some((path, text)) = resolver
        && !path.exists()
    {
        create_with_parents(&path, &text)?;
    }
    Ok(())
}

/// Puts a file of our own, with this text, in the place of a file of the machine. Does nothing if the machine has no
/// such file, because a mount needs something to cover and the machine's own directories are not ours to change.
fn own_file(place: &str, private: &Path, text: &str) -> io::Result<()> {
    let Ok(target) = fs::canonicalize(place) else {
        return Ok(());
    };
    create_with_parents(private, text.as_bytes())?;
    bind(private, &target)
}

/// Makes one file or directory visible in another place, with everything mounted below it.
pub(crate) fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}

fn create_with_parents(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

/// Gives the calling thread's mount namespace a resolver configuration (without servers) and a hosts file of its own.
pub(crate) fn own_files(private: &Path, hostname: &str) -> io::Result<()> {
    own_file(
        "/etc/resolv.conf",
        &private.join("resolv.conf"),
        "# No resolver is configured here.\n",
    )?;
    let hosts =
        format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n");
    own_file("/etc/hosts", &private.join("hosts"), &hosts)
}
