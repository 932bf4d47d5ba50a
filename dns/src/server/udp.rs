use std::{net::SocketAddr, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{net::UdpSocket, task::JoinSet};

use super::{
    Context, Outcome,
    forward::Transport,
    wire::{MAX_UDP, Request, write_code, write_truncated},
};
use hickory_proto::op::ResponseCode;

/// No question is as long as this.
const MAX_REQUEST: usize = 4_096;

/// Answers datagrams, one after the other: an answer takes microseconds, and only forwarding waits.
pub(crate) async fn serve(socket: UdpSocket, context: Arc<Context>) {
    let socket = Arc::new(socket);
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    let mut message = vec![0; MAX_REQUEST];
    let mut reply = Vec::with_capacity(MAX_UDP);
    // Bounded by the forwarder, which answers at once when there are too many.
    let mut forwards = JoinSet::new();
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
        reply.clear();
        match context.handle(message, client.ip(), Transport::Udp, &mut rng, &mut reply) {
            Outcome::Reply => send(&socket, &reply, client).await,
            Outcome::Nothing => {}
            Outcome::Forward => {
                while forwards.try_join_next().is_some() {}
                forwards.spawn(forward(
                    Arc::clone(&socket),
                    Arc::clone(&context),
                    message.to_vec(),
                    client,
                ));
            }
        }
    }
}

async fn forward(socket: Arc<UdpSocket>, context: Arc<Context>, message: Vec<u8>, client: SocketAddr) {
    let Ok(request) = Request::parse(&message) else {
        return;
    };
    let reply = match context.forward(&request, Transport::Udp, client.ip()).await {
        Some(reply) if reply.len() <= request.udp_limit() => reply,
        Some(_) => {
            let mut reply = Vec::new();
            write_truncated(&mut reply, &request);
            reply
        }
        None => {
            let mut reply = Vec::new();
            write_code(&mut reply, &request, ResponseCode::ServFail);
            reply
        }
    };
    send(&socket, &reply, client).await;
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "a reply could not be sent");
    }
}
