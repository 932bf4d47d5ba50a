//! Finding the namespace that a user names: `NAME`, `/a/path` or `pid:N`.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use weft_netlink::{
    netns::{Netns, NetnsError},
    route::RouteSocket,
};

use crate::{
    api::ApiError,
    control::{
        own::{HostRoute, TARGET},
        records::SandboxSpec,
    },
};

/// Where `ip netns add` keeps its namespaces.
const NAMED: &str = "/run/netns";

pub fn path_of(target: &str) -> Result<PathBuf, ApiError> {
    if let Some(pid) = target.strip_prefix("pid:") {
        let pid: u32 = pid.parse().map_err(|_| {
            ApiError::invalid(format!(
                "`{target}` names no process: `{pid}` is not a process id"
            ))
            .with_help("write pid:1234, a namespace name, or an absolute path")
        })?;
        return Ok(PathBuf::from(format!("/proc/{pid}/ns/net")));
    }
    if target.starts_with('/') {
        return Ok(PathBuf::from(target));
    }
    if target.is_empty() || target.contains('/') || target == "." || target == ".." {
        return Err(
            ApiError::invalid(format!("`{target}` is not the name of a network namespace"))
                .with_help("give a name as `ip netns list` shows it, an absolute path, or pid:N"),
        );
    }
    Ok(Path::new(NAMED).join(target))
}

/// The sandbox behind `target` as it is now.
pub fn resolve(target: &str) -> Result<SandboxSpec, ApiError> {
    let path = path_of(target)?;
    let shown = path.display();
    let id = match Netns::open(&path) {
        Ok(netns) => netns.id(),
        Err(NetnsError::NotFound { .. }) if target.starts_with("pid:") => {
            return Err(
                ApiError::not_found(format!("there is no process {}", &target[4..]))
                    .with_help("`ps` lists the running ones"),
            );
        }
        Err(NetnsError::NotFound { .. }) => {
            return Err(
                ApiError::not_found(format!("there is no network namespace `{target}` ({shown})")).with_help(
                    format!("make one with `ip netns add {target}`, or see `ip netns list`"),
                ),
            );
        }
        Err(NetnsError::Permission { .. }) => {
            return Err(ApiError::forbidden(format!("the agent may not open {shown}"))
                .with_help("run the agent as root, or name a namespace of the agent's own user"));
        }
        Err(NetnsError::NotANetns { .. }) => {
            return Err(
                ApiError::invalid(format!("{shown} is not a network namespace")).with_help(
                    "after a reboot the files in /run/netns are empty: delete and make the namespace again",
                ),
            );
        }
        Err(error) => {
            return Err(ApiError::internal(format!(
                "cannot look at {shown}: {}",
                super::host::sentence(&error)
            )));
        }
    };
    Ok(SandboxSpec {
        target: target.to_owned(),
        path: path.to_string_lossy().into_owned(),
        device: id.dev,
        inode: id.ino,
    })
}

/// The host's own namespace.
pub fn host() -> Result<SandboxSpec, ApiError> {
    let unknown = |error| {
        ApiError::internal(format!(
            "the host's own network namespace cannot be seen: {error}"
        ))
    };
    let id = Netns::current().map_err(unknown)?.id();
    Ok(SandboxSpec::of_host(id.dev, id.ino))
}

/// The same as [`resolve`], but not the host's own.
pub fn resolve_sandbox(target: &str) -> Result<SandboxSpec, ApiError> {
    let (found, host) = (resolve(target)?, host()?);
    if (found.device, found.inode) == (host.device, host.inode) {
        return Err(
            ApiError::invalid(format!("`{target}` is the host's own network namespace")).with_help(format!(
                "if the host itself is to be on the network, say so: `weft network connect NETWORK {TARGET}`"
            )),
        );
    }
    Ok(found)
}

/// The routes of the host that are neither ours nor default routes.
pub fn routes_of_host() -> Result<Vec<HostRoute>, ApiError> {
    let unknown = |error: &dyn std::error::Error| {
        ApiError::internal(format!(
            "the routes of this host cannot be read: {}; nothing was changed",
            super::host::sentence(error)
        ))
    };
    let host = Netns::current().map_err(|error| unknown(&error))?;
    let mut socket = RouteSocket::open(&host).map_err(|error| unknown(&error))?;
    let links = socket.links().map_err(|error| unknown(&error))?;
    let found = socket.destinations().map_err(|error| unknown(&error))?;
    let routes = found.into_iter().filter_map(|(to, link)| {
        let link = links.iter().find(|known| Some(known.index) == link);
        let ours = link.is_some_and(|link| {
            link.alias
                .as_deref()
                .is_some_and(|alias| alias.starts_with("weft:"))
        });
        // Two halves are what some VPNs have instead of a default route.
        (!ours && to.prefix_len() > 1).then(|| HostRoute {
            to,
            device: link.map(|link| link.name.clone()),
        })
    });
    Ok(routes.collect())
}

/// Whether the namespace that `spec` was made with is still the one at its path. Asked of all sandboxes with every change, so where it can it
/// opens nothing: a namespace's file has its identity.
pub fn still_there(spec: &SandboxSpec) -> bool {
    is_at(Path::new(&spec.path), spec.device, spec.inode)
}

/// The same of a namespace by its identity.
pub fn is_at(path: &Path, device: u64, inode: u64) -> bool {
    let found = match fs::metadata(path) {
        Ok(found) => Some((found.dev(), found.ino())),
        // At processes of others only the broker may look.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let netns = Netns::open(path).ok();
            netns.map(|netns| (netns.id().dev, netns.id().ino))
        }
        Err(_) => None,
    };
    found == Some((device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_a_path_or_a_process() {
        assert_eq!(path_of("web").unwrap(), Path::new("/run/netns/web"));
        assert_eq!(path_of("/x/y").unwrap(), Path::new("/x/y"));
        assert_eq!(path_of("pid:12").unwrap(), Path::new("/proc/12/ns/net"));
        for bad in ["", "a/b", "..", "pid:", "pid:x"] {
            assert!(path_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ordinary_file_is_not_a_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = resolve(file.path().to_str().unwrap()).unwrap_err();
        assert!(
            error.message.contains("is not a network namespace"),
            "{}",
            error.message
        );
        assert!(resolve(&format!("pid:{}", std::process::id())).is_ok());
    }
}
