use std::{future::poll_fn, io, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use hickory_server::net::xfer::Protocol;
use tokio::{
    io::Interest,
    net::UdpSocket,
    task::{JoinSet, coop},
};
use weft_netlink::datagrams::{BATCH, Inbox, Outbox};

use super::{
    answerer::{Answerer, Outcome},
    limits::Turn,
    plain,
    reply::Reply,
    request::{MAX_REQUEST, read},
};

/// Questions of a server that wait for somebody else. The forwarder has its own limits; these are for the
/// tasks they are in.
const MAX_WAITING: usize = 2_048;

/// Answers datagrams as many at a time as have come: an answer takes microseconds, less than the kernel
/// takes to hand over a single datagram, and only forwarding waits.
pub(crate) async fn serve(socket: UdpSocket, answerer: Arc<Answerer>) {
    let socket = Arc::new(socket);
    let (mut inbox, mut outbox) = (Inbox::new(MAX_REQUEST), Outbox::default());
    let mut turn = Turn::default();
    let mut waiting = JoinSet::new();
    loop {
        let count = match receive(&socket, &mut inbox).await {
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, "no datagram could be received");
                // Whatever it is, it must not become a busy loop.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        for (message, client) in inbox.iter() {
            if !turn.admits(client.ip()) {
                answerer.counters.dropped.increment();
                continue;
            }
            if let Some(reply) = answer(&answerer, message, client, &mut outbox).await {
                while waiting.try_join_next().is_some() {}
                if waiting.len() < MAX_WAITING {
                    waiting.spawn(send_later(reply, Arc::clone(&socket), client));
                }
            }
        }
        turn.took(count);
        send(&socket, &mut outbox).await;
        // Many full batches must not keep other tasks of this thread waiting.
        coop::consume_budget().await;
    }
}

/// Posts the reply to a message, unless there is none to be, or it has to be waited for.
async fn answer(
    answerer: &Arc<Answerer>,
    message: &[u8],
    client: SocketAddr,
    outbox: &mut Outbox,
) -> Option<impl Future<Output = Vec<u8>> + Send + use<>> {
    let request = match read(message, client, Protocol::Udp) {
        Ok(request) => request,
        Err(malformed) => {
            answerer.counters.malformed.increment();
            if let Some(reply) = malformed.reply(message) {
                outbox.draft().extend_from_slice(&reply);
                outbox.post(client);
            }
            return None;
        }
    };
    let outcome = answerer.answer(&request);
    if let Outcome::Reply(sections) = &outcome
        && plain::write(&request, sections, outbox.draft()).is_some()
    {
        outbox.post(client);
        return None;
    }
    let answerer = Arc::clone(answerer);
    let mut finishing = Box::pin(async move {
        let reply = Reply::new(&request);
        answerer.finish(&request, outcome, reply.clone()).await;
        reply.take()
    });
    // What need not wait is done by the first poll.
    match poll_fn(|context| Poll::Ready(finishing.as_mut().poll(context))).await {
        Poll::Ready(reply) => {
            if !reply.is_empty() {
                outbox.draft().extend_from_slice(&reply);
                outbox.post(client);
            }
            None
        }
        Poll::Pending => Some(finishing),
    }
}

/// Waits until there is something, and takes it.
async fn receive(socket: &UdpSocket, inbox: &mut Inbox) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        let mut taken = 0;
        let received = socket.try_io(Interest::READABLE, || {
            taken = inbox.receive(socket)?;
            // Fewer than there was room for are all there are: asking again would only tell us so.
            match taken {
                BATCH => Ok(()),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match received {
            Ok(()) => return Ok(taken),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if taken > 0 => return Ok(taken),
            Err(_) => {}
        }
    }
}

async fn send(socket: &UdpSocket, outbox: &mut Outbox) {
    loop {
        match socket.try_io(Interest::WRITABLE, || outbox.send(socket)) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket.writable().await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "a reply could not be sent"),
        }
    }
}

async fn send_later(reply: impl Future<Output = Vec<u8>>, socket: Arc<UdpSocket>, client: SocketAddr) {
    let reply = reply.await;
    if reply.is_empty() {
        return;
    }
    if let Err(error) = socket.send_to(&reply, client).await {
        tracing::debug!(%client, %error, "a reply could not be sent");
    }
}
