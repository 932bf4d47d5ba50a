use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use hickory_server::{
    net::{runtime::TokioTime, xfer::Protocol},
    server::RequestHandler,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::{
    answerer::Answerer,
    limits::PerAddress,
    reply::Reply,
    request::{HEADER, MAX_REQUEST, Malformed, read},
};

/// Connections a server has open at once.
pub(crate) const MAX_CLIENTS: usize = 128;
/// Connections one address has open at once.
pub(crate) const MAX_CLIENTS_PER_ADDRESS: usize = 8;
/// How long a connection may take for one whole question, or for taking one whole reply.
pub(crate) const IDLE: Duration = Duration::from_secs(5);

/// One connection.
struct Open {
    task: AbortHandle,
    /// Whether it waits for us rather than we for it.
    is_busy: Arc<AtomicBool>,
}

/// Accepts connections. One too many of an address is closed at once; one too many in all takes the
/// place of the oldest that has nothing to wait for (RFC 7766, section 6.2.3), so that slow and silent
/// clients keep nobody out.
pub(crate) async fn serve(listener: TcpListener, answerer: Arc<Answerer>) {
    let per_address = PerAddress::new(MAX_CLIENTS_PER_ADDRESS);
    let mut clients = JoinSet::new();
    let mut open: VecDeque<Open> = VecDeque::new();
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
        open.retain(|client| !client.task.is_finished());
        let permit = per_address
            .acquire(client.ip())
            .filter(|_| open.len() < MAX_CLIENTS || make_room(&mut open, &answerer));
        let Some(permit) = permit else {
            answerer.counters.connections_refused.increment();
            continue;
        };
        let answerer = Arc::clone(&answerer);
        let is_busy = Arc::new(AtomicBool::new(false));
        let busy = Arc::clone(&is_busy);
        let task = clients.spawn(async move {
            let _open = permit;
            if let Err(error) = converse(stream, &answerer, &busy).await {
                tracing::debug!(%client, %error, "a connection was closed");
            }
        });
        open.push_back(Open { task, is_busy });
    }
}

fn make_room(open: &mut VecDeque<Open>, answerer: &Answerer) -> bool {
    let idle = open.iter().position(|client| !client.is_busy.load(Relaxed));
    let Some(client) = idle.and_then(|place| open.remove(place)) else {
        return false;
    };
    client.task.abort();
    answerer.counters.connections_refused.increment();
    true
}

/// Answers one question after the other (RFC 7766) until the client closes, is silent for too long, or
/// sends what is no question.
async fn converse(mut stream: TcpStream, answerer: &Answerer, is_busy: &AtomicBool) -> io::Result<()> {
    let client = stream.peer_addr()?;
    loop {
        let Some(message) = timeout(IDLE, next(&mut stream)).await?? else {
            return Ok(());
        };
        is_busy.store(true, Relaxed);
        let bytes = match read(&message, client, Protocol::Tcp) {
            Ok(request) => {
                let reply = Reply::new(&request);
                answerer
                    .handle_request::<_, TokioTime>(&request, reply.clone())
                    .await;
                reply.take()
            }
            Err(malformed) => {
                answerer.counters.malformed.increment();
                // What follows garbage in a stream is garbage too.
                let reply = malformed.reply(&message);
                let is_garbage = malformed == Malformed::Reply(ResponseCode::FormErr);
                reply.filter(|_| !is_garbage).unwrap_or_default()
            }
        };
        if bytes.is_empty() {
            return Ok(());
        }
        // One segment, and one deadline for a client that does not read.
        let mut whole = (bytes.len() as u16).to_be_bytes().to_vec();
        whole.extend_from_slice(&bytes);
        timeout(IDLE, stream.write_all(&whole)).await??;
        is_busy.store(false, Relaxed);
    }
}

/// `None` at the end of the stream.
async fn next(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(HEADER..=MAX_REQUEST).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is not a DNS message",
        ));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}
