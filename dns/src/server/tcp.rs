use std::{io, sync::Arc, time::Duration};

use hickory_proto::op::ResponseCode;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{
    Context, Outcome,
    forward::Transport,
    limits::PerAddress,
    wire::{Request, write_code},
};

/// Connections a server has open at once.
pub(crate) const MAX_CLIENTS: usize = 128;
/// Connections one address has open at once.
pub(crate) const MAX_CLIENTS_PER_ADDRESS: usize = 8;
/// How long a connection may take for one whole question, or for taking one whole reply.
pub(crate) const IDLE: Duration = Duration::from_secs(5);
/// No question is as long as this.
const MAX_REQUEST: usize = 4_096;

/// Accepts connections and closes at once those that are too many.
pub(crate) async fn serve(listener: TcpListener, context: Arc<Context>) {
    let per_address = PerAddress::new(MAX_CLIENTS_PER_ADDRESS);
    let mut clients = JoinSet::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "no connection could be accepted");
                // Without file descriptors the connection stays in the queue: this must not become a
                // busy loop.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while clients.try_join_next().is_some() {}
        let permit = per_address
            .acquire(client.ip())
            .filter(|_| clients.len() < MAX_CLIENTS);
        let Some(permit) = permit else {
            context.counters.connections_refused.increment();
            continue;
        };
        let context = Arc::clone(&context);
        clients.spawn(async move {
            let _open = permit;
            if let Err(error) = converse(stream, &context).await {
                tracing::debug!(%client, %error, "a connection was closed");
            }
        });
    }
}

/// Answers one question after the other (RFC 7766) until the client closes, is silent for too long, or
/// sends what is no question.
async fn converse(mut stream: TcpStream, context: &Context) -> io::Result<()> {
    let client = stream.peer_addr()?.ip();
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    let mut reply = Vec::new();
    loop {
        let Some(message) = timeout(IDLE, read(&mut stream)).await?? else {
            return Ok(());
        };
        // Two bytes for the length, which is known at the end.
        reply.clear();
        reply.extend_from_slice(&[0; 2]);
        match context.handle(&message, client, Transport::Tcp, &mut rng, &mut reply) {
            Outcome::Reply => {}
            Outcome::Nothing => return Ok(()),
            Outcome::Forward => {
                let Ok(request) = Request::parse(&message) else {
                    return Ok(());
                };
                match context.forward(&request, Transport::Tcp, client).await {
                    Some(forwarded) => reply.extend_from_slice(&forwarded),
                    None => write_code(&mut reply, &request, ResponseCode::ServFail),
                }
            }
        }
        let length = (reply.len() - 2) as u16;
        reply[..2].copy_from_slice(&length.to_be_bytes());
        timeout(IDLE, stream.write_all(&reply)).await??;
    }
}

/// `None` at the end of the stream.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(12..=MAX_REQUEST).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is not a DNS message",
        ));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}
