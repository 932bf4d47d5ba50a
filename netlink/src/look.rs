//! Looking into many namespaces.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    broker::SocketKind,
    netns::{Netns, NetnsError},
    route::{LocalRoute, RouteSocket},
};

/// A namespace that somebody looks into, for somebody else who wants to know something of it too.
#[derive(Debug)]
pub struct Inside<'a> {
    /// Which one.
    pub netns: &'a Netns,
    /// A socket of it.
    pub route: &'a RouteSocket,
    /// Its local routes that bear our mark.
    pub local: &'a [LocalRoute],
    /// What was asked for beside the first, in order.
    pub sockets: Vec<OwnedFd>,
}

/// Somebody who looks along where somebody else looks into many namespaces: what takes the time is to have their sockets.
pub trait Along: Sync {
    /// The sockets that it needs beside one for routes.
    fn sockets(&self) -> &[SocketKind];

    /// Looks into one, on any thread.
    fn look(&self, inside: Inside<'_>);
}

/// Namespaces that are open at one time on a thread, with their sockets: a process may have so many descriptors.
const AT_ONCE: usize = 32;
/// No more threads than this, whatever the host has.
const MAX_THREADS: usize = 4;

/// Opens the namespaces that these paths lead to, with a socket of each of these kinds, and has each looked into; what came of it, in order.
///
/// Sockets are asked for many namespaces at once, and on a host with several processors several are looked into at a time.
pub fn into_each<T: Send>(
    paths: &[&Path],
    kinds: &[SocketKind],
    look: impl Fn(&Netns, Vec<OwnedFd>) -> T + Sync,
) -> Vec<Result<T, NetnsError>> {
    let chunks: Vec<_> = paths.chunks(AT_ONCE).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(chunk) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            chunks.get(place).map(|chunk| (place, *chunk))
        } {
            let (place, paths) = chunk;
            let seen = into_chunk(paths, kinds, &look);
            found
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((place, seen));
        }
    };
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = processors.min(MAX_THREADS).min(chunks.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without it the others have more to do.
            let _ = thread::Builder::new()
                .name("look".to_owned())
                .spawn_scoped(scope, work);
        }
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().flat_map(|(_, seen)| seen).collect()
}

fn into_chunk<T>(
    paths: &[&Path],
    kinds: &[SocketKind],
    look: &impl Fn(&Netns, Vec<OwnedFd>) -> T,
) -> Vec<Result<T, NetnsError>> {
    let opened: Vec<_> = paths.iter().map(Netns::open).collect();
    let there: Vec<&Netns> = opened.iter().flatten().collect();
    let mut sockets = Netns::sockets(&there, kinds).into_iter();
    let seen = opened.into_iter().zip(paths).map(|(netns, path)| {
        let netns = netns?;
        let sockets = sockets
            .next()
            .unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
        let sockets = sockets.map_err(|error| NetnsError::new("open sockets in", path, error))?;
        Ok(look(&netns, sockets))
    });
    seen.collect()
}

#[cfg(test)]
mod tests;
