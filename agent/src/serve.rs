//! HTTP on a listener, for so many clients at a time, none of whom keeps a place by doing nothing.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    serve::Listener,
};
use futures_util::{StreamExt as _, stream::try_unfold};
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_io_timeout::TimeoutWriter;

/// How long a connection to the API or to metrics may do nothing: less than `weft` waits for an answer, so that it gets one when
/// all places were taken by those.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);
/// The same of Docker's connections, whose ends keep them for their next requests and lose one that is sent when they are closed.
pub(crate) const DOCKERS_SILENCE: Duration = Duration::from_secs(300);

/// What bounds the connections to a listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How many there are at one time. Who comes beyond that waits in the kernel's queue, and takes no descriptor.
    pub(crate) places: usize,
    /// For how long one may owe a whole request, or not take anything of an answer. Nobody is hurried while an answer is made, or
    /// followed.
    pub(crate) silence: Duration,
}

/// Serves until it is dropped. `about` is what requests have as an extension, of the connection they came by.
pub(crate) async fn serve<L: Listener, T: Clone + Send + Sync + 'static>(
    mut listener: L,
    bounds: Bounds,
    router: Router,
    about: impl Fn(&L::Io) -> T,
) -> Infallible {
    let places = Arc::new(Semaphore::new(bounds.places));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.expect("it is never closed");
        let (stream, _) = listener.accept().await;
        let (about, router) = (about(&stream), TowerToHyperService::new(router.clone()));
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(bounds.silence));
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(|body| in_time(body, bounds.silence));
            request.extensions_mut().insert(about.clone());
            router.call(request)
        });
        // The time for a head runs from when one could come, so it is also what a connection may wait for its next request.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.silence)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection was ended");
            }
            drop(place);
        });
    }
}

/// A body as it comes, all of it within `silence`.
fn in_time(body: Incoming, silence: Duration) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    let until = Instant::now() + silence;
    let pieces = try_unfold(body.into_data_stream(), move |mut body| async move {
        match timeout_at(until, body.next()).await {
            Ok(piece) => {
                let piece = piece.transpose().map_err(io::Error::other)?;
                Ok(piece.map(|piece: Bytes| (piece, body)))
            }
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the rest of it did not come within {silence:?}"),
            )),
        }
    });
    Body::from_stream(pieces)
}

#[cfg(test)]
mod tests;
