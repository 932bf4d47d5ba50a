use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::UnixStream, runtime::Runtime, sync::mpsc};

use crate::{
    control::docker::{DockerCommand, Plugged},
    docker::{Door, Owner, Plugin},
};

type Sender = http1::SendRequest<Full<Bytes>>;

/// The driver's socket, and the node behind it.
pub struct Rig {
    pub node: Plugged,
    /// How many commands the node was given.
    pub commanded: usize,
    /// The way to it that others than the driver take.
    pub owner: Owner,
    commands: mpsc::Receiver<DockerCommand>,
    sender: Option<Sender>,
    dir: TempDir,
    runtime: Runtime,
    // Last, so that what it serves with is still there when it stops.
    _plugin: Plugin,
}

/// What the driver answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// What it refused, in words.
    pub fn error(&self) -> Option<&str> {
        self.body.get("Err")?.as_str()
    }
}

impl Rig {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (sender, commands) = mpsc::channel(1);
        let inside = runtime.enter();
        let door = Door::open(dir.path().join("weft.sock")).unwrap();
        let owner = Owner::new(sender);
        let plugin = Plugin::serve(door, owner.clone());
        drop(inside);
        Self {
            node: Plugged::new(),
            commanded: 0,
            owner,
            commands,
            sender: None,
            dir,
            runtime,
            _plugin: plugin,
        }
    }

    /// Sends what dockerd sends: no content type, an empty host, a body without a word about it.
    ///
    /// Fails the test if the answer is not one that dockerd can read, or if the node is not whole afterwards.
    pub fn ask(&mut self, call: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::post(format!("/{call}"))
            .header(HOST, "")
            .header("Accept", "application/vnd.docker.plugins.v1.2+json")
            .body(Full::new(body.into()))
            .unwrap();
        let socket = self.dir.path().join("weft.sock");
        let mut sender = self.sender.take();
        let exchange = async {
            if sender.as_ref().is_none_or(Sender::is_closed) {
                let stream = UnixStream::connect(socket).await.unwrap();
                let (made, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                sender = Some(made);
            }
            let open = sender.as_mut().expect("made above");
            open.ready().await.unwrap();
            let response = open.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, body)
        };
        let (status, body) = self.during(exchange);
        self.sender = sender;
        let body: Value = serde_json::from_slice(&body)
            .unwrap_or_else(|error| panic!("{call}: {error} in {}", String::from_utf8_lossy(&body)));
        assert!(body.is_object(), "{call}: {body}");
        assert_eq!(body.get("Err"), body.get("Error"), "{call}: {body}");
        let refused = body.get("Err").is_some();
        if let Some(text) = body.get("Err") {
            assert!(
                text.as_str().is_some_and(|text| !text.is_empty()),
                "{call}: {body}"
            );
        }
        assert!(refused || status == 200, "{call}: {status} {body}");
        self.node.check();
        Answer { status, body }
    }

    /// Waits for something that needs the node's answers.
    pub fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let Self {
            node,
            commanded,
            commands,
            runtime,
            ..
        } = self;
        runtime.block_on(async {
            tokio::pin!(work);
            loop {
                tokio::select! {
                    Some(command) = commands.recv() => {
                        *commanded += 1;
                        node.handle(command);
                    }
                    done = &mut work => break done,
                }
            }
        })
    }

    pub fn ask_json(&mut self, call: &str, body: &Value) -> Answer {
        let bytes = match body {
            // A call without arguments has no body at all.
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        self.ask(call, bytes)
    }
}
