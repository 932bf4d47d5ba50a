//! Sandboxes: what a container is to its host. A network namespace with a name, and an `/etc/resolv.conf` of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use weft_netlink::netns::Netns;

use crate::enter::EnterSpec;
use crate::error::LabError;
use crate::host::Host;
use crate::namespaces::{Inside, Namespaces};
use crate::{audit, mounts, sys};

/// A sandbox on a host.
#[derive(Clone, Debug)]
pub struct Sandbox {
    inner: Arc<SandboxInner>,
}

#[derive(Debug)]
struct SandboxInner {
    host: Host,
    name: String,
    namespaces: Mutex<Option<Arc<Namespaces>>>,
}

impl Sandbox {
    pub(crate) fn create(host: &Host, name: &str) -> Result<Self, LabError> {
        let place = format!("sandbox {name} on host {}", host.name());
        let outer = host.namespaces()?;
        // Two threads, one after the other: the outer one is in the host, the inner one leaves it.
        let namespaces = outer.run(|| {
            Namespaces::create(place.clone(), || {
                // A thread inherits its namespaces, but shares root and working directory with its process.
                unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNET)
                    .map_err(LabError::os(format!("make a network namespace for {place}")))?;
                name_namespace(name)
                    .map_err(LabError::os(format!("name the network namespace of {place}")))?;
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                    .map_err(LabError::os(format!("make a mount namespace for {place}")))?;
                furnish(name).map_err(LabError::os(format!("prepare the files of {place}")))
            })
        })??;
        let inner = SandboxInner {
            host: host.clone(),
            name: name.to_owned(),
            namespaces: Mutex::new(Some(Arc::new(namespaces))),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The host it is on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.inner.host
    }

    /// Where its network namespace is to be found on the host, also by `ip netns`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.inner.name)
    }

    /// How a process outside the lab gets in.
    ///
    /// # Errors
    ///
    /// [`LabError::Gone`] after a removal or a crash of its host.
    pub fn enter_spec(&self) -> Result<EnterSpec, LabError> {
        EnterSpec::new(&*self.inner.host.lab()?, &*self.namespaces()?)
    }

    /// Kills its processes and removes it.
    ///
    /// # Errors
    ///
    /// [`LabError`] if something cannot be ended or removed.
    pub fn remove(&self) -> Result<(), LabError> {
        let namespaces = self.namespaces()?;
        let what = format!("remove {}", namespaces.place());
        let inodes = namespaces.inodes().map_err(LabError::os(what.clone()))?;
        audit::kill_all_in(&inodes.into(), namespaces.place())?;
        namespaces.let_go();
        let path = self.path();
        self.inner.host.run(|| {
            Netns::remove_at(&path).map_err(|source| LabError::Netns {
                what: what.clone(),
                source,
            })?;
            std::fs::remove_dir_all(private_dir(&self.inner.name)).map_err(LabError::os(what))
        })??;
        self.forget();
        self.inner.host.forget_sandbox(&self.inner.name);
        Ok(())
    }

    /// Lets go of the namespaces, which end when nothing else holds them.
    pub(crate) fn forget(&self) {
        let namespaces = self
            .inner
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(namespaces) = namespaces {
            namespaces.let_go();
        }
    }
}

impl Inside for Sandbox {
    fn namespaces(&self) -> Result<Arc<Namespaces>, LabError> {
        let namespaces = self
            .inner
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        namespaces.ok_or_else(|| LabError::Gone {
            sandbox: format!("sandbox {} on host {}", self.inner.name, self.inner.host.name()),
        })
    }
}

fn private_dir(name: &str) -> PathBuf {
    Path::new(mounts::PRIVATE).join("sandbox").join(name)
}

/// Binds the calling thread's network namespace under the host's `/run/netns`.
fn name_namespace(name: &str) -> std::io::Result<()> {
    let path = Path::new("/run/netns").join(name);
    std::fs::File::create_new(&path)?;
    mounts::bind(Path::new("/proc/thread-self/ns/net"), &path)
}

fn furnish(name: &str) -> std::io::Result<()> {
    // A slave: what the host mounts and, above all, unmounts later happens here too. Otherwise this copy of a namespace's
    // mount would keep that namespace alive after the host has removed it.
    mounts::set_propagation(MsFlags::MS_SLAVE)?;
    mounts::own_files(&private_dir(name), name)?;
    sys::set_hostname(name)?;
    sys::loopback_up()
}
