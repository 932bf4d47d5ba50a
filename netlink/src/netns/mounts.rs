//! The folder that names of namespaces are in, as a mount of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where `ip netns` keeps its names. It stays a mount of its own, as iproute2 leaves it.
const IPROUTE2_DIRS: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// One line of `/proc/self/mountinfo`, as far as we need it.
struct Mount {
    point: PathBuf,
    shared: bool,
}

/// The mounts that hold a path, the innermost last.
fn mounts_above(path: &Path) -> io::Result<Vec<Mount>> {
    let path = path.canonicalize()?;
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mounts = table.lines().filter_map(|line| {
        // 36 35 98:0 /root /point options shared:1 - type source options (proc_pid_mountinfo(5))
        let mut fields = line.split(' ').skip(4);
        let point = PathBuf::from(unescape(fields.next()?));
        let shared = fields
            .skip(1)
            .take_while(|field| *field != "-")
            .any(|field| field.starts_with("shared:"));
        path.starts_with(&point).then_some(Mount { point, shared })
    });
    Ok(mounts.collect())
}

/// The kernel writes space, tab, line end and backslash as three octal digits.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (escaped, plain)| {
            text.replace(escaped, plain)
        })
}

pub(crate) fn share_mount(dir: &Path) -> io::Result<()> {
    let mounts = mounts_above(dir)?;
    if mounts
        .iter()
        .max_by_key(|mount| mount.point.as_os_str().len())
        .is_some_and(|mount| mount.shared)
    {
        return Ok(());
    }
    let dir = dir.canonicalize()?;
    if !mounts.iter().any(|mount| mount.point == dir) {
        mount(
            Some(&dir),
            &dir,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )?;
    }
    mount(
        None::<&str>,
        &dir,
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}

pub(super) fn unshare_mount(dir: &Path) -> io::Result<()> {
    let Ok(dir) = dir.canonicalize() else {
        return Ok(());
    };
    let is_ours = !IPROUTE2_DIRS.iter().any(|path| dir == Path::new(path));
    let empty = fs::read_dir(&dir)?.next().is_none();
    if is_ours && empty && mounts_above(&dir)?.iter().any(|mount| mount.point == dir) {
        umount2(&dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    Ok(())
}
