//! One question to one resolver and its reply, over hickory's client streams: they pick a random port
//! and id for each, spell the name at random over UDP, and ignore replies to anything else (RFC 5452).

use std::{io, net::SocketAddr, pin::Pin, time::Duration};

use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Message};
use hickory_resolver::net::{
    NetError,
    runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime},
    tcp::TcpClientStream,
    udp::UdpClientStream,
    xfer::{DnsHandle, DnsRequestSender, FirstAnswer, Protocol},
};
use tokio::net::UdpSocket;

pub(crate) async fn ask(
    question: &Message,
    protocol: Protocol,
    upstream: SocketAddr,
    wait: Duration,
) -> Result<DnsResponse, NetError> {
    match protocol {
        Protocol::Udp => match ask_udp(question, upstream, wait).await {
            // A forgery, a resolver that does not keep the spelling, or a datagram that is larger than it
            // may be: a stream tells them apart.
            Err(NetError::QueryCaseMismatch | NetError::Proto(_)) => ask_tcp(question, upstream, wait).await,
            other => other,
        },
        _ => ask_tcp(question, upstream, wait).await,
    }
}

async fn ask_udp(question: &Message, upstream: SocketAddr, wait: Duration) -> Result<DnsResponse, NetError> {
    let mut message = question.clone();
    let original = message.queries.first().cloned();
    message.metadata.id = rand::random();
    for query in &mut message.queries {
        query.name.randomize_label_case();
    }
    let mut options = DnsRequestOptions::default();
    options.case_randomization = true;
    let request = DnsRequest::new(message, options).with_original_query(original);
    UdpClientStream::builder(upstream, Connected::default())
        .with_timeout(Some(wait))
        .build()
        .send_message(request)
        .first_answer()
        .await
}

async fn ask_tcp(question: &Message, upstream: SocketAddr, wait: Duration) -> Result<DnsResponse, NetError> {
    // The connection is closed when this is dropped at the end, whichever way that comes.
    let runtime = Connected::default();
    let stream = TcpClientStream::exchange(upstream, None, wait, None, runtime.clone()).await?;
    let request = DnsRequest::new(question.clone(), DnsRequestOptions::default());
    let reply = stream.send(request).first_answer().await?;
    // Streams of hickory compare the id alone.
    if reply.queries != question.queries {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply to another question").into());
    }
    drop(runtime);
    Ok(reply)
}

/// Tokio, but datagram sockets are connected: the kernel then drops what others send, and says at once
/// when nobody listens.
#[derive(Clone, Default)]
struct Connected(TokioRuntimeProvider);

impl RuntimeProvider for Connected {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        wait: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, bind, wait)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(socket)
        })
    }
}
