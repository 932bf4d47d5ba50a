//! Hosts: namespaces that live like a machine does, crashes included.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use weft_netlink::route::{Batch, SetLink, delete_link};

use crate::enter::EnterSpec;
use crate::error::LabError;
use crate::fabric::Pair;
use crate::lab::{LabInner, check_name};
use crate::namespaces::{Inside, Namespaces};
use crate::sandbox::Sandbox;
use crate::switch::{Interface, Port};
use crate::{audit, mounts, sys};

/// A host of a lab: network, mount and UTS namespaces with a `/run` of its own, and the interfaces plugged into it.
///
/// A clone is another handle on the same host.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<HostInner>,
}

#[derive(Debug)]
struct HostInner {
    name: String,
    lab: Weak<LabInner>,
    state: Mutex<HostState>,
}

#[derive(Debug, Default)]
struct HostState {
    /// None after a crash.
    namespaces: Option<Arc<Namespaces>>,
    ports: Vec<Port>,
    sandboxes: BTreeMap<String, Sandbox>,
}

impl Host {
    pub(crate) fn new(name: &str, lab: Weak<LabInner>, namespaces: Namespaces) -> Self {
        let state = HostState {
            namespaces: Some(Arc::new(namespaces)),
            ..HostState::default()
        };
        Self {
            inner: Arc::new(HostInner {
                name: name.to_owned(),
                lab,
                state: Mutex::new(state),
            }),
        }
    }

    /// Its name, which is its host name too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether it is up, not crashed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.lock().namespaces.is_some()
    }

    /// The interfaces plugged into it.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        let state = self.lock();
        state
            .ports
            .iter()
            .map(|port| Interface {
                host: self.clone(),
                name: port.name.clone(),
            })
            .collect()
    }

    /// The interface of this name.
    ///
    /// # Errors
    ///
    /// [`LabError::NoInterface`].
    pub fn interface(&self, name: &str) -> Result<Interface, LabError> {
        self.port(name).map(|port| Interface {
            host: self.clone(),
            name: port.name,
        })
    }

    /// Makes a sandbox: a network namespace named `/run/netns/NAME` on this host, with its own `/etc/resolv.conf`.
    ///
    /// # Errors
    ///
    /// [`LabError::NameTaken`], [`LabError::BadName`], [`LabError::Down`], or what the kernel refuses.
    pub fn sandbox(&self, name: &str) -> Result<Sandbox, LabError> {
        check_name("sandbox", name)?;
        if self.lock().sandboxes.contains_key(name) {
            return Err(LabError::NameTaken {
                kind: "sandbox",
                name: format!("{name} on host {}", self.name()),
            });
        }
        let lab = self.lab()?;
        let sandbox = Sandbox::create(self, name)?;
        lab.watch(&*sandbox.namespaces()?)?;
        self.lock().sandboxes.insert(name.to_owned(), sandbox.clone());
        Ok(sandbox)
    }

    /// Its sandboxes, by name.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.lock().sandboxes.values().cloned().collect()
    }

    /// How a process outside the lab gets in.
    ///
    /// # Errors
    ///
    /// [`LabError::Down`] after a crash.
    pub fn enter_spec(&self) -> Result<EnterSpec, LabError> {
        EnterSpec::new(&*self.lab()?, &*self.namespaces()?)
    }

    /// Takes the host off the network and kills everything on it, as a power cut does: nobody else sees a FIN, a reset or a
    /// goodbye. Its namespaces, sandboxes and `/run` are gone; files elsewhere, such as data directories, stay.
    ///
    /// # Errors
    ///
    /// [`LabError::Down`] if it has crashed before, or what cannot be ended.
    pub fn crash(&self) -> Result<(), LabError> {
        let lab = self.lab()?;
        let namespaces = self.namespaces()?;
        let ports: Vec<u32> = self.lock().ports.iter().map(|port| port.port).collect();
        let mut batch = Batch::new();
        for &port in &ports {
            batch.add(SetLink::index(port).down());
        }
        lab.fabric
            .execute(format!("cut host {} off", self.name()), batch)?;
        audit::kill_all_in(&self.inodes()?, namespaces.place())?;
        let mut batch = Batch::new();
        for &port in &ports {
            batch.add(delete_link(port));
        }
        lab.fabric
            .execute(format!("unplug host {}", self.name()), batch)?;
        drop(namespaces);
        self.forget();
        Ok(())
    }

    /// Starts a crashed host again: fresh namespaces, the same interfaces with the same addresses, no processes.
    ///
    /// # Errors
    ///
    /// [`LabError::Up`] if it has not crashed, or what the kernel refuses.
    pub fn restart(&self) -> Result<(), LabError> {
        let lab = self.lab()?;
        if self.is_up() {
            return Err(LabError::Up {
                host: self.name().to_owned(),
            });
        }
        let namespaces = Arc::new(build(self.name(), &lab.keep)?);
        lab.watch(&namespaces)?;
        let mut ports = self.lock().ports.clone();
        for port in &mut ports {
            port.port = lab.fabric.index();
            port.carrier = true;
        }
        self.plug(&lab, &namespaces, &ports)?;
        {
            let mut state = self.lock();
            state.namespaces = Some(namespaces);
            state.ports = ports;
        }
        lab.apply_cuts()
    }

    /// Makes the devices of these interfaces, and brings them up.
    fn plug(&self, lab: &LabInner, namespaces: &Namespaces, ports: &[Port]) -> Result<(), LabError> {
        let pairs: Vec<Pair<'_>> = ports
            .iter()
            .map(|port| port.pair(self.name(), namespaces))
            .collect();
        lab.fabric.connect(&pairs)?;
        self.bring_up(namespaces, ports)
    }

    pub(crate) fn bring_up(&self, namespaces: &Namespaces, ports: &[Port]) -> Result<(), LabError> {
        let mut batch = Batch::new();
        for port in ports {
            port.bring_up(&mut batch);
        }
        let what = format!("bring up the interfaces of host {}", self.name());
        namespaces
            .route_socket()?
            .execute(batch)
            .map_err(|source| LabError::Batch { what, source })
    }

    /// By which namespaces processes on the host and in its sandboxes are known; none if it is down.
    pub(crate) fn inodes(&self) -> Result<audit::Inodes, LabError> {
        let mut inodes = audit::Inodes::new();
        let sandboxes = self
            .sandboxes()
            .into_iter()
            .filter_map(|sandbox| sandbox.namespaces().ok());
        for inside in self.namespaces().ok().into_iter().chain(sandboxes) {
            inodes.extend(
                inside
                    .inodes()
                    .map_err(LabError::os(format!("look at {}", inside.place())))?,
            );
        }
        Ok(inodes)
    }

    /// Lets go of all namespaces, which end when nothing else holds them.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        let namespaces = state.namespaces.take();
        let sandboxes = std::mem::take(&mut state.sandboxes);
        drop(state);
        if let Some(namespaces) = namespaces {
            namespaces.let_go();
        }
        sandboxes.values().for_each(Sandbox::forget);
    }

    pub(crate) fn forget_sandbox(&self, name: &str) {
        self.lock().sandboxes.remove(name);
    }

    pub(crate) fn lab(&self) -> Result<Arc<LabInner>, LabError> {
        self.inner.lab.upgrade().ok_or_else(|| LabError::Closed {
            lab: format!("of host {}", self.name()),
        })
    }

    pub(crate) fn port(&self, name: &str) -> Result<Port, LabError> {
        let state = self.lock();
        let port = state.ports.iter().find(|port| port.name == name).cloned();
        port.ok_or_else(|| LabError::NoInterface {
            place: format!("host {}", self.name()),
            interface: name.to_owned(),
        })
    }

    pub(crate) fn ports(&self) -> Vec<Port> {
        self.lock().ports.clone()
    }

    pub(crate) fn add_port(&self, port: Port) {
        self.lock().ports.push(port);
    }

    pub(crate) fn change_port(&self, name: &str, change: impl FnOnce(&mut Port)) {
        if let Some(port) = self.lock().ports.iter_mut().find(|port| port.name == name) {
            change(port);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HostState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside for Host {
    fn namespaces(&self) -> Result<Arc<Namespaces>, LabError> {
        let namespaces = self.lock().namespaces.clone();
        namespaces.ok_or_else(|| LabError::Down {
            host: self.name().to_owned(),
        })
    }
}

impl Port {
    pub(crate) fn pair<'a>(&'a self, host: &str, namespaces: &'a Namespaces) -> Pair<'a> {
        Pair {
            port: self.port,
            bridge: self.bridge,
            up: self.carrier,
            alias: format!("{} of host {host} in switch {}", self.name, self.switch),
            host: namespaces,
            link: self.link,
            name: &self.name,
            mac: self.mac,
            mtu: self.mtu,
        }
    }
}

/// Makes the namespaces of a host.
pub(crate) fn build(name: &str, keep: &[PathBuf]) -> Result<Namespaces, LabError> {
    Namespaces::create(format!("host {name}"), || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS)
            .map_err(|errno| LabError::no_privilege(format!("make the namespaces of host {name}"), errno))?;
        furnish(name, keep).map_err(LabError::os(format!("prepare the files of host {name}")))
    })
}

fn furnish(name: &str, keep: &[PathBuf]) -> std::io::Result<()> {
    // First cut off from the machine, then share with the sandboxes to come.
    mounts::set_propagation(MsFlags::MS_PRIVATE)?;
    mounts::fresh_run(keep)?;
    std::fs::create_dir("/run/netns")?;
    mounts::own_files(Path::new(mounts::PRIVATE), name)?;
    mounts::set_propagation(MsFlags::MS_SHARED)?;
    sys::set_hostname(name)?;
    sys::loopback_up()
}
