//! Docker's API on a second socket, on which the driver `overlay` is ours.
//!
//! Everything passes through as it is, in both directions and as it comes. Two requests are read as a whole, with a
//! bound, and changed by [`rewrite`]: the creation of a network and of a container. One is held back for a moment by
//! [`stop`]: that which stops a container.

mod forward;
mod rewrite;
mod stop;
#[cfg(test)]
mod tests;

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::thread::CapabilitySet;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};

use crate::{
    api::client::Client,
    privileges,
    serve::{Bounds, DOCKERS_SILENCE},
    socket::Bound,
};
use forward::Forward;

/// Connections at one time; more wait to be accepted. Each that follows logs, events or a terminal stays open, also while whoever
/// follows does not look: Docker keeps it open too.
pub(crate) const MAX_CONNECTIONS: usize = 1_024;

/// What `weft docker proxy` is told.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    pub listen: PathBuf,
    pub docker: PathBuf,
    /// The name by which Docker knows our driver.
    pub driver: String,
    /// Who drains what is stopped.
    pub agent: Client,
    /// What connections to a container may take to end before it is told to stop.
    pub grace: Duration,
}

/// Serves until it is told to stop by SIGTERM or SIGINT. Whoever is connected is cut off then.
pub async fn serve(options: ProxyOptions) -> anyhow::Result<()> {
    let ProxyOptions {
        listen,
        docker,
        driver,
        agent,
        grace,
    } = options;
    let failed = || format!("Docker's API cannot be served at {}", listen.display());
    let bound = Bound::new(&listen, None).with_context(failed)?;
    // Who may use Docker's socket may use this one.
    if let Err(error) = bound.open_as(&docker) {
        tracing::info!(%error, "only root can use the proxy: Docker's own socket does not say who may");
    }
    let listener = bound.listen().with_context(failed)?;
    // Both sockets are root's, as this is. The runtime has no other thread.
    privileges::keep_only(CapabilitySet::empty())?;
    let forward = Forward {
        docker,
        driver,
        agent,
        grace,
        bounds: Bounds {
            places: MAX_CONNECTIONS,
            silence: DOCKERS_SILENCE,
        },
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    eprintln!(
        "serving Docker's API at {}; use it with `docker -H unix://{}` or DOCKER_HOST",
        listen.display(),
        listen.display()
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = accept(listener, forward) => {
            return Err(error).context("no more connections can be accepted");
        }
    }
    // Gone already is as good.
    let _ = fs::remove_file(&listen);
    Ok(())
}

async fn accept(listener: UnixListener, forward: Forward) -> io::Error {
    let permits = Arc::new(Semaphore::new(forward.bounds.places));
    loop {
        let permit = permits.clone().acquire_owned().await;
        let permit = Arc::new(permit.expect("it is never closed"));
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Of one connection, or for want of descriptors, which those that end give back.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return error,
        };
        let forward = forward.clone();
        let silence = forward.bounds.silence;
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (forward, permit) = (forward.clone(), permit.clone());
                async move { forward.handle(request, permit).await }
            });
            // It is the time for the next request too.
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(silence)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a client of Docker's API is gone");
            }
        });
    }
}
