//! A listener that lets in so many at a time. Who comes beyond that waits in the kernel's queue, and takes no descriptor.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream, unix::UCred},
    sync::{OwnedSemaphorePermit, Semaphore},
};

pub(super) struct Few {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl Few {
    pub(super) fn new(listener: UnixListener, places: usize) -> Self {
        let places = Arc::new(Semaphore::new(places));
        Self { listener, places }
    }
}

impl Listener for Few {
    type Io = Guest;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Guest, Self::Addr) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("it is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (
            Guest {
                stream,
                _place: place,
            },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection, which has a place as long as it is open.
pub(super) struct Guest {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Guest {
    pub(super) fn peer(&self) -> io::Result<UCred> {
        self.stream.peer_cred()
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt as _, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_when_a_connection_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut few = Few::new(UnixListener::bind(&path).unwrap(), 2);
        let connect = || UnixStream::connect(&path);
        let (first, _second, mut third) = (
            connect().await.unwrap(),
            connect().await.unwrap(),
            connect().await.unwrap(),
        );
        let (guest, _) = few.accept().await;
        let (_other, _) = few.accept().await;
        let moment = Duration::from_millis(100);
        assert!(
            timeout(moment, few.accept()).await.is_err(),
            "there were two places"
        );
        drop((first, guest));
        let (late, _) = few.accept().await;
        drop(late);
        let mut rest = Vec::new();
        assert_eq!(third.read_to_end(&mut rest).await.unwrap(), 0);
    }
}
