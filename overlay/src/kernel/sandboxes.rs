//! What is in sandboxes, which are many: all of them are looked into together, beside everything else.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{Builder, JoinHandle, Scope, ScopedJoinHandle},
};

use weft_netlink::{
    broker::SocketKind,
    look::{self, Along, Inside},
    netns::NetnsId,
    route::RouteSocket,
};

use super::observe::Dump;
use crate::plan::Network;

/// The sandboxes of endpoints of these networks.
pub(super) fn of<'a>(networks: impl Iterator<Item = &'a Network>) -> Vec<&'a Path> {
    let endpoints = networks.flat_map(|network| network.endpoints.values());
    let sandboxes = endpoints.filter_map(|endpoint| endpoint.place.sandbox());
    // One may be on several networks.
    let paths: BTreeSet<&Path> = sandboxes.map(|sandbox| sandbox.path.as_path()).collect();
    paths.into_iter().collect()
}

#[derive(Debug)]
pub(super) struct Seen {
    pub(super) id: NetnsId,
    pub(super) dump: Dump,
}

/// Sandboxes that are being looked into, each once.
pub(super) struct Sandboxes<'scope> {
    looks: Option<ScopedJoinHandle<'scope, HashMap<PathBuf, Seen>>>,
    seen: HashMap<PathBuf, Seen>,
}

impl<'scope> Sandboxes<'scope> {
    pub(super) fn look<'env>(
        scope: &'scope Scope<'scope, 'env>,
        paths: &'env [&'env Path],
        along: Option<&'env dyn Along>,
        ahead: Option<Ahead>,
    ) -> Self {
        let looks = Builder::new().name("look".to_owned());
        let looks = match (paths, ahead) {
            ([], _) => None,
            (_, None) => looks.spawn_scoped(scope, move || look_into(paths, along)).ok(),
            (_, Some(ahead)) => looks
                .spawn_scoped(scope, move || ahead.complete(paths, along))
                .ok(),
        };
        let seen = match looks {
            None => look_into(paths, along),
            Some(_) => HashMap::new(),
        };
        Self { looks, seen }
    }

    /// What is in a sandbox; `None` if it cannot be opened, which the operation on it will tell. The first who asks waits for all.
    pub(super) fn seen(&mut self, path: &Path) -> Option<&Seen> {
        if let Some(looks) = self.looks.take() {
            self.seen = looks
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.seen.get(path)
    }
}

/// Sandboxes that are looked into before it is known what is desired.
#[derive(Debug)]
pub(super) struct Ahead(JoinHandle<HashMap<PathBuf, Seen>>);

impl Ahead {
    pub(super) fn look(paths: Vec<PathBuf>, along: Arc<dyn Along + Send>) -> Option<Self> {
        let look = move || {
            let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            look_into(&paths, Some(&*along))
        };
        Builder::new().name("look".to_owned()).spawn(look).ok().map(Self)
    }

    /// What was seen, and what is in those of `paths` that were not looked into.
    fn complete(self, paths: &[&Path], along: Option<&dyn Along>) -> HashMap<PathBuf, Seen> {
        let mut seen = self
            .0
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let missing: Vec<&Path> = paths
            .iter()
            .copied()
            .filter(|path| !seen.contains_key(*path))
            .collect();
        seen.extend(look_into(&missing, along));
        seen
    }
}

fn look_into(paths: &[&Path], along: Option<&dyn Along>) -> HashMap<PathBuf, Seen> {
    let mut kinds = vec![SocketKind::Route];
    kinds.extend(along.into_iter().flat_map(Along::sockets));
    let seen = look::into_each(paths, &kinds, |netns, mut sockets| {
        let mut route = RouteSocket::of(netns, sockets.remove(0)).ok()?;
        let (dump, local) = Dump::of_sandbox(&mut route).ok()?;
        if let Some(along) = along {
            along.look(Inside {
                netns,
                route: &route,
                local: &local,
                sockets,
            });
        }
        Some(Seen { id: netns.id(), dump })
    });
    let seen = paths.iter().zip(seen);
    let seen = seen.filter_map(|(path, seen)| Some(((*path).to_owned(), seen.ok()??)));
    seen.collect()
}
