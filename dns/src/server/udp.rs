use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use hickory_server::net::xfer::Protocol;
use tokio::{net::UdpSocket, task::JoinSet};

use super::{
    answerer::{Answerer, Outcome},
    plain,
    reply::Reply,
    request::{MAX_REQUEST, MAX_UDP, read},
};

/// Questions of a server that wait for somebody else. The forwarder has its own limits; these are for
/// replies that the kernel does not take at once.
const MAX_WAITING: usize = 2_048;

/// Answers datagrams, one after the other: an answer takes microseconds, and only forwarding waits.
pub(crate) async fn serve(socket: UdpSocket, answerer: Arc<Answerer>) {
    let socket = Arc::new(socket);
    let mut message = vec![0; MAX_REQUEST];
    let mut plain = Vec::with_capacity(usize::from(MAX_UDP));
    let mut waiting = JoinSet::new();
    loop {
        let (length, client) = match socket.recv_from(&mut message).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "no datagram could be received");
                // Whatever it is, it must not become a busy loop.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let message = &message[..length];
        let request = match read(message, client, Protocol::Udp) {
            Ok(request) => request,
            Err(malformed) => {
                answerer.counters.malformed.increment();
                if let Some(reply) = malformed.reply(message) {
                    send(&socket, &reply, client).await;
                }
                continue;
            }
        };
        let outcome = answerer.answer(&request);
        if let Outcome::Reply(sections) = &outcome
            && plain::write(&request, sections, &mut plain).is_some()
        {
            send(&socket, &plain, client).await;
            continue;
        }
        let reply = Reply::datagram(&request, Arc::clone(&socket));
        let answerer = Arc::clone(&answerer);
        let mut finishing = Box::pin(async move {
            answerer.finish(&request, outcome, reply).await;
        });
        // What need not wait is sent by the first poll; what has to goes on in a task of its own.
        let first = poll_fn(|context| Poll::Ready(finishing.as_mut().poll(context))).await;
        if first.is_pending() {
            while waiting.try_join_next().is_some() {}
            if waiting.len() < MAX_WAITING {
                waiting.spawn(finishing);
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "a reply could not be sent");
    }
}
