//! Sockets for a [`Gossip`](crate::Gossip): UDP for packets, TCP for frames too large for one.
//!
//! Nothing is decided here. What arrives comes out of [`Transport::recv`] as an [`Input`]; what is to be
//! sent goes in as it came out of [`Gossip::poll_output`](crate::Gossip::poll_output). A packet that cannot be sent is
//! lost, as packets are.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::wire::MAX_FRAME;

/// The most streams open at once, either way; more are refused, and tried again later by their sender.
const MAX_STREAMS: usize = 32;
/// How long a whole exchange over a stream may take.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Inputs waiting to be handled. When it is full the kernel's socket buffer fills, and then packets are lost.
const MAX_INPUTS: usize = 1024;

/// Why the sockets could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({protocol}){}", hint(.source))]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// UDP or TCP.
    pub protocol: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ": another process uses that port",
        io::ErrorKind::AddrNotAvailable => ": this host does not have that address",
        _ => "",
    }
}

/// What arrived.
#[derive(Debug)]
pub enum Input {
    /// For [`handle_packet`](crate::Gossip::handle_packet).
    Packet {
        /// The sender's address.
        from: SocketAddr,
        /// The datagram.
        bytes: Bytes,
    },
    /// For [`handle_stream_request`](crate::Gossip::handle_stream_request), whose answer goes to the responder.
    StreamRequest {
        /// The frame.
        frame: Bytes,
        /// Takes the answer.
        responder: Responder,
    },
    /// For [`handle_stream_response`](crate::Gossip::handle_stream_response).
    StreamResponse {
        /// The frame.
        frame: Bytes,
    },
}

/// Sends the answer to a stream request. Dropped without an answer, it closes the stream.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Vec<u8>>);

impl Responder {
    /// Sends `frame`, or closes the stream.
    pub fn respond(self, frame: Option<Vec<u8>>) {
        if let Some(frame) = frame {
            // The other end may have gone; it will ask again.
            let _ = self.0.send(frame);
        }
    }
}

/// A UDP socket and a TCP listener on one address. Dropping it closes both.
#[derive(Debug)]
pub struct Transport {
    address: SocketAddr,
    udp: Arc<UdpSocket>,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    streams: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Transport {
    /// Opens both sockets on `address`; port 0 takes one that is free for both.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let udp_error = |source| BindError {
            address,
            protocol: "UDP",
            source,
        };
        let tcp_error = |source| BindError {
            address,
            protocol: "TCP",
            source,
        };
        let mut attempts = 0;
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind(address).await.map_err(tcp_error)?;
            let bound = tcp.local_addr().map_err(tcp_error)?;
            match UdpSocket::bind(bound).await {
                Ok(udp) => break (udp, tcp),
                // The port TCP was given may be taken for UDP.
                Err(_) if address.port() == 0 && attempts < 16 => attempts += 1,
                Err(source) => return Err(udp_error(source)),
            }
        };
        let udp = Arc::new(udp);
        let (sender, inputs) = mpsc::channel(MAX_INPUTS);
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let address = udp.local_addr().map_err(udp_error)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(read_packets(Arc::clone(&udp), sender.clone()));
        tasks.spawn(accept_streams(tcp, Arc::clone(&streams), sender.clone()));
        Ok(Self {
            address,
            udp,
            inputs,
            sender,
            streams,
            tasks,
        })
    }

    /// The address both sockets are bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next thing that arrives. Cancel-safe: what was not returned is returned next time.
    pub async fn recv(&mut self) -> Input {
        self.inputs
            .recv()
            .await
            .expect("the transport itself holds a sender")
    }

    /// Sends a datagram now, or loses it if the socket is full.
    pub fn send_packet(&self, to: SocketAddr, bytes: &[u8]) {
        if let Err(error) = self.udp.try_send_to(bytes, to) {
            tracing::debug!(%to, %error, "packet not sent");
        }
    }

    /// Opens a stream to `to` in the background; the answer, if there is one, comes out of [`recv`](Self::recv).
    pub fn open_stream(&mut self, to: SocketAddr, request: Bytes) -> Option<AbortHandle> {
        while self.tasks.try_join_next().is_some() {}
        let permit = Arc::clone(&self.streams).try_acquire_owned().ok()?;
        let sender = self.sender.clone();
        Some(self.tasks.spawn(async move {
            match timeout(STREAM_TIMEOUT, exchange(to, &request)).await {
                Ok(Ok(frame)) => {
                    let _ = sender.send(Input::StreamResponse { frame }).await;
                }
                Ok(Err(error)) => tracing::debug!(%to, %error, "stream failed"),
                Err(_) => tracing::debug!(%to, "stream timed out"),
            }
            drop(permit);
        }))
    }
}

async fn read_packets(udp: Arc<UdpSocket>, sender: mpsc::Sender<Input>) {
    // One more than allowed, so that a longer datagram is seen to be too long rather than cut.
    let mut buffer = vec![0; crate::MAX_PACKET + 1];
    loop {
        match udp.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let input = Input::Packet {
                    from,
                    bytes: Bytes::copy_from_slice(&buffer[..length]),
                };
                if sender.send(input).await.is_err() {
                    return;
                }
            }
            // On Linux an ICMP error from an earlier send can come out here; it concerns that packet alone.
            Err(error) => {
                tracing::debug!(%error, "packet not received");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn accept_streams(tcp: TcpListener, streams: Arc<Semaphore>, sender: mpsc::Sender<Input>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let stream = match tcp.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "stream not accepted");
                // Out of descriptors, most likely: wait for some to be closed.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&streams).try_acquire_owned() else {
            continue;
        };
        let sender = sender.clone();
        tasks.spawn(async move {
            match timeout(STREAM_TIMEOUT, serve(stream, sender)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "stream not served"),
                Err(_) => tracing::debug!("stream not served in time"),
            }
            drop(permit);
        });
    }
}

/// Opens a stream, sends one frame and waits for one frame: what a node does that is not a member yet. The
/// caller bounds the time.
pub async fn exchange(to: SocketAddr, request: &[u8]) -> io::Result<Bytes> {
    let mut stream = TcpStream::connect(to).await?;
    write_frame(&mut stream, request).await?;
    read_frame(&mut stream).await
}

async fn serve(mut stream: TcpStream, sender: mpsc::Sender<Input>) -> io::Result<()> {
    let frame = read_frame(&mut stream).await?;
    let (responder, response) = oneshot::channel();
    let input = Input::StreamRequest {
        frame,
        responder: Responder(responder),
    };
    if sender.send(input).await.is_err() {
        return Ok(());
    }
    match response.await {
        Ok(frame) => write_frame(&mut stream, &frame).await,
        Err(_) => Ok(()),
    }
}

async fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 + frame.len());
    bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes).await
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<Bytes> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes, more than {MAX_FRAME}"),
        ));
    }
    // Memory grows with what arrives, not with what was announced.
    let mut frame = BytesMut::with_capacity(length.min(64 * 1024));
    while frame.len() < length {
        let left = (length - frame.len()) as u64;
        if (&mut *stream).take(left).read_buf(&mut frame).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(frame.freeze())
}
