//! Runs health probes on this host, each inside its endpoint's network namespace.

use std::{
    io::pipe,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    pin::pin,
    sync::Arc,
};

use http_body_util::Empty;
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpSocket, TcpStream, unix::pipe::Receiver},
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use weft_netlink::{
    broker::{Ended, SocketKind, Started},
    netns::{Netns, NetnsId},
};

use super::host::sentence;
use crate::control::{HealthProbe, HealthResult, Try, records::SandboxSpec};

/// Probes at the same time; the others wait for their turn, and their time runs only from then on.
const AT_ONCE: usize = 64;
/// What of a command's error output is kept, in bytes. The rest is read and forgotten.
const KEPT: usize = 4096;

/// Probes that are on their way end with this.
pub(super) struct Prober {
    turns: Arc<Semaphore>,
    running: JoinSet<HealthResult>,
    commands: bool,
}

impl Prober {
    /// `commands` says whether commands are run at all.
    pub(super) fn new(commands: bool) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            running: JoinSet::new(),
            commands,
        }
    }

    pub(super) fn start(&mut self, probe: HealthProbe) {
        let (turns, commands) = (Arc::clone(&self.turns), self.commands);
        self.running.spawn(async move {
            let _turn = turns.acquire_owned().await;
            let outcome = match timeout(probe.timeout, run(&probe, commands)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!(
                    "no answer within {}",
                    humantime::format_duration(probe.timeout)
                )),
            };
            HealthResult {
                endpoint: probe.endpoint,
                asked_by: probe.asked_by,
                outcome,
            }
        });
    }

    /// The next result. Cancel-safe.
    pub(super) async fn result(&mut self) -> HealthResult {
        loop {
            match self.running.join_next().await {
                Some(Ok(result)) => return result,
                Some(Err(error)) => tracing::error!(%error, "a health probe broke off"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn run(probe: &HealthProbe, commands: bool) -> Result<(), String> {
    match &probe.try_ {
        Try::Connect(address, port) => connect(&probe.sandbox, *address, *port).await.map(drop),
        Try::Get(address, port, path) => {
            let stream = connect(&probe.sandbox, *address, *port).await?;
            get(stream, SocketAddr::new(*address, *port), path).await
        }
        Try::Run(command) if commands => run_command(&probe.sandbox, command).await,
        Try::Run(_) => {
            Err("its host runs no commands: its agent was started without --health-commands".to_owned())
        }
    }
}

/// Does something with the namespace of a sandbox, and waits for it elsewhere.
async fn with<T: Send + 'static>(
    sandbox: &SandboxSpec,
    work: impl FnOnce(&Netns) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (path, id) = (
        sandbox.path.clone(),
        NetnsId {
            dev: sandbox.device,
            ino: sandbox.inode,
        },
    );
    let done = spawn_blocking(move || {
        let netns = Netns::open(&path).map_err(|error| error.to_string())?;
        if netns.id() != id {
            return Err("its network namespace is gone".to_owned());
        }
        work(&netns)
    });
    done.await
        .unwrap_or_else(|error| Err(format!("its network namespace cannot be entered: {error}")))
}

async fn connect(sandbox: &SandboxSpec, address: IpAddr, port: u16) -> Result<TcpStream, String> {
    let ipv4 = address.is_ipv4();
    let socket = with(sandbox, move |netns| {
        let socket = netns.socket(SocketKind::Tcp { ipv4 });
        let socket = socket.and_then(|socket| {
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true)?;
            Ok(TcpSocket::from_std_stream(socket))
        });
        socket.map_err(|error| sentence(&error))
    });
    let to = SocketAddr::new(address, port);
    let connected = socket.await?.connect(to).await;
    connected.map_err(|error| format!("connecting to port {port}: {}", without_number(&error)))
}

/// Asks whoever is at the other end of `stream`, and is content with a status from 200 to 399.
async fn get(stream: TcpStream, to: SocketAddr, path: &str) -> Result<(), String> {
    let port = to.port();
    let failed = |error: hyper::Error| format!("GET {path} on port {port}: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = Request::get(path)
        .header(HOST, to.to_string())
        .header(USER_AGENT, concat!("weft-health/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let mut answer = pin!(sender.send_request(request));
    // Polled beside the request rather than as a task, so that both end with the probe.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // A server may answer and close at once: the answer is there then, or the reason why not.
        _ = connection => answer.await,
    };
    let status = answer.map_err(failed)?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("GET {path} on port {port} was answered with {status}"))
    }
}

async fn run_command(sandbox: &SandboxSpec, command: &str) -> Result<(), String> {
    let command = command.to_owned();
    let (errors, into) = pipe().map_err(|error| error.to_string())?;
    // It is killed with all it started if this is given up before its end.
    let started = with(sandbox, move |netns| {
        let started = netns.start_command(&command, into.as_fd());
        started.map_err(|error| sentence(&error))
    })
    .await?;
    let waited = async {
        let errors = Receiver::from_owned_fd(errors.into())?;
        wait(&started, errors).await
    };
    let (ended, said) = waited.await.map_err(|error| error.to_string())?;
    let how = match (ended.code, ended.signal) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
    };
    match String::from_utf8_lossy(&said)
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
    {
        Some(line) => Err(format!("{how}: {}", line.trim())),
        None => Err(how),
    }
}

/// Until it has ended, whoever else holds its error output.
async fn wait(started: &Started, errors: Receiver) -> std::io::Result<(Ended, Vec<u8>)> {
    let mut output = Some(errors);
    let mut said = Vec::new();
    let mut ended = pin!(started.wait());
    let ended = loop {
        tokio::select! {
            // What it said before it ended is there when it has ended.
            biased;
            more = read_more(&mut output, &mut said) => if !more { output = None },
            ended = &mut ended => break ended?,
        }
    };
    Ok((ended, said))
}

/// False at the end. Cancel-safe.
async fn read_more(output: &mut Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) -> bool {
    let Some(from) = output else {
        return std::future::pending().await;
    };
    let mut chunk = [0; 1024];
    match from.read(&mut chunk).await {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            // The end of it says why it failed.
            said.extend_from_slice(&chunk[..length]);
            let surplus = said.len().saturating_sub(KEPT);
            said.drain(..surplus);
            true
        }
    }
}

/// "Connection refused (os error 111)" says nothing more than without the number.
fn without_number(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((sentence, _)) => sentence.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// Asks a server that reads one request, writes this and hangs up.
    async fn ask(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /ready?a=b HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let client = async { get(TcpStream::connect(to).await.unwrap(), to, "/ready?a=b").await };
        let both = async { tokio::join!(client, server).0 };
        let result = timeout(Duration::from_secs(10), both).await.unwrap();
        result.map_err(|error| error.replace(&to.port().to_string(), "PORT"))
    }

    #[tokio::test]
    async fn a_server_that_answers_and_closes_at_once_has_answered() {
        for _ in 0..200 {
            assert_eq!(ask("HTTP/1.0 200 OK\r\n\r\nserved\n").await, Ok(()));
        }
    }

    #[tokio::test]
    async fn what_is_no_good_answer_is_told() {
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            (
                "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
                Ok(()),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
                Err("GET /ready?a=b on port PORT was answered with 503 Service Unavailable"),
            ),
            (
                "HTTP/1.1 404 Not Found\r\n\r\n",
                Err("GET /ready?a=b on port PORT was answered with 404 Not Found"),
            ),
            (
                "",
                Err("GET /ready?a=b on port PORT: connection closed before message completed"),
            ),
            (
                "SSH-2.0-OpenSSH_9.2\r\n",
                Err("GET /ready?a=b on port PORT: invalid HTTP version parsed"),
            ),
        ] {
            assert_eq!(ask(answer).await, expected.map_err(str::to_owned), "{answer}");
        }
    }
}
