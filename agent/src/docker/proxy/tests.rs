//! Between a client and a Docker that say and hear bytes.

use std::{path::PathBuf, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{accept, forward::Forward};
use crate::{api::client::Client, serve::Bounds};

const SOON: Duration = Duration::from_secs(10);

struct Between {
    docker: UnixListener,
    dir: TempDir,
}

impl Between {
    fn new() -> Self {
        Self::with(Bounds {
            places: 8,
            silence: SOON,
        })
    }

    fn with(bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let docker = UnixListener::bind(dir.path().join("docker.sock")).unwrap();
        let listener = UnixListener::bind(dir.path().join("weft.sock")).unwrap();
        let forward = Forward {
            docker: dir.path().join("docker.sock"),
            driver: "weft".to_owned(),
            agent: Client::new(dir.path().join("agent.sock")),
            grace: Duration::from_secs(2),
            bounds,
        };
        tokio::spawn(accept(listener, forward));
        Self { docker, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("weft.sock")
    }

    async fn client(&self, says: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.socket()).await.unwrap();
        client.write_all(says.as_bytes()).await.unwrap();
        client
    }

    /// The next connection that Docker gets.
    async fn accepted(&self) -> UnixStream {
        timeout(SOON, self.docker.accept()).await.unwrap().unwrap().0
    }
}

/// Reads until what was read ends so.
async fn read_to(stream: &mut UnixStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = timeout(SOON, stream.read_u8()).await;
        let byte = byte.unwrap_or_else(|_| panic!("no more than {:?}", String::from_utf8_lossy(&read)));
        read.push(byte.unwrap_or_else(|_| panic!("ended after {:?}", String::from_utf8_lossy(&read))));
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn bodies_pass_as_they_come() {
    let between = Between::new();
    let mut client = between
        .client("POST /v1.41/build?t=a HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    let mut docker = between.accepted().await;
    let head = read_to(&mut docker, "3\r\none\r\n").await;
    assert!(head.starts_with("POST /v1.41/build?t=a HTTP/1.1\r\n"), "{head}");
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    read_to(&mut docker, "3\r\ntwo\r\n0\r\n\r\n").await;
    docker
        .write_all(
            b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        )
        .await
        .unwrap();
    let head = read_to(&mut client, "5\r\nfirst\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("api-version: 1.41\r\n"),
        "{head}"
    );
    docker.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
    read_to(&mut client, "4\r\nlast\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_stream_that_is_half_closed_still_brings_the_other_half() {
    let between = Between::new();
    let mut client = between
        .client(
            "POST /exec/a/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
             Content-Length: 2\r\n\r\n{}",
        )
        .await;
    let mut docker = between.accepted().await;
    let head = read_to(&mut docker, "{}").await;
    assert!(head.contains("upgrade: tcp\r\n"), "{head}");
    docker
        .write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nat once")
        .await
        .unwrap();
    let head = read_to(&mut client, "at once").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    client.write_all(b"input").await.unwrap();
    client.shutdown().await.unwrap();
    let mut input = String::new();
    timeout(SOON, docker.read_to_string(&mut input))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(input, "input");
    docker.write_all(b"output").await.unwrap();
    drop(docker);
    let mut output = String::new();
    timeout(SOON, client.read_to_string(&mut output))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output, "output");
}

#[tokio::test]
async fn who_goes_away_while_events_are_followed_is_let_go() {
    let between = Between::new();
    let mut client = between
        .client("GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await;
    let mut docker = between.accepted().await;
    read_to(&mut docker, "\r\n\r\n").await;
    docker
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        .await
        .unwrap();
    read_to(&mut client, "2\r\n{}\r\n").await;
    drop(client);
    let mut rest = Vec::new();
    timeout(SOON, docker.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn who_asks_nothing_keeps_nobody_out_and_who_follows_stays() {
    let silence = Duration::from_millis(200);
    let between = Between::with(Bounds { places: 2, silence });
    let follow = "GET /events HTTP/1.1\r\nHost: docker\r\n\r\n";
    let mut follower = between.client(follow).await;
    let mut events = between.accepted().await;
    read_to(&mut events, "\r\n\r\n").await;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    events.write_all(head.as_bytes()).await.unwrap();
    read_to(&mut follower, "\r\n\r\n").await;
    for idle in [
        "",
        "GET /images/js",
        "POST /networks/create HTTP/1.1\r\nHost: docker\r\nContent-Length: 10\r\n\r\n{",
    ] {
        let _idle = between.client(idle).await;
        let _guest = between
            .client("GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
            .await;
        let mut docker = between.accepted().await;
        let head = read_to(&mut docker, "\r\n\r\n").await;
        assert!(head.starts_with("GET /_ping "), "{head}");
    }
    events.write_all(b"2\r\n{}\r\n").await.unwrap();
    read_to(&mut follower, "2\r\n{}\r\n").await;
}

#[tokio::test]
async fn a_network_is_changed_on_its_way() {
    let between = Between::new();
    let body = r#"{"Name":"app","Driver":"overlay"}"#;
    let request = "POST /networks/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = between
        .client(&format!("{request}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()))
        .await;
    let mut docker = between.accepted().await;
    let changed = r#"{"Driver":"weft","IPAM":{"Driver":"weft"},"Name":"app"}"#;
    let head = read_to(&mut docker, changed).await;
    assert!(
        head.contains(&format!("content-length: {}\r\n", changed.len())),
        "{head}"
    );
    assert!(!head.contains("transfer-encoding"), "{head}");
    docker
        .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    read_to(&mut client, "\r\n\r\n").await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said_as_docker_would() {
    let between = Between::new();
    let length = super::forward::MAX_BODY + 1;
    let mut client = between
        .client(&format!(
            "POST /networks/create HTTP/1.1\r\nHost: docker\r\nContent-Length: {length}\r\n\r\n"
        ))
        .await;
    let head = read_to(&mut client, "}").await;
    assert!(
        head.starts_with("HTTP/1.1 413") && head.contains(r#"{"message":"#),
        "{head}"
    );

    std::fs::remove_file(between.dir.path().join("docker.sock")).unwrap();
    let mut client = between
        .client("GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await;
    let head = read_to(&mut client, "}").await;
    assert!(
        head.starts_with("HTTP/1.1 502") && head.contains("Docker cannot be reached at"),
        "{head}"
    );
}

/// One request of whoever serves at a socket, and an answer to it.
async fn serve(listener: &UnixListener, status: &str, body: &str) -> String {
    let mut stream = timeout(SOON, listener.accept()).await.unwrap().unwrap().0;
    let mut head = read_to(&mut stream, "\r\n\r\n").await;
    let length = head
        .to_lowercase()
        .split_once("content-length: ")
        .map_or(0, |(_, rest)| {
            rest.split_once("\r\n").unwrap().0.parse::<usize>().unwrap()
        });
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.unwrap();
    head.push_str(&String::from_utf8(rest).unwrap());
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    head
}

/// A container of one network, as Docker shows it to who looks before it is stopped.
async fn show_container(docker: &UnixListener, endpoint: &str) {
    serve(
        docker,
        "200 OK",
        r#"{"ApiVersion": "1.41", "MinAPIVersion": "1.12"}"#,
    )
    .await;
    let container = json!({
        "Id": "c", "Name": "/web", "State": {"Running": true}, "Config": {},
        "NetworkSettings": {"Networks": {"app": {"EndpointID": endpoint}}},
    });
    let asked = serve(docker, "200 OK", &container.to_string()).await;
    assert!(asked.contains("/containers/web/json"), "{asked}");
}

#[tokio::test]
async fn a_container_is_drained_before_it_is_stopped_and_serves_on_if_it_is_not() {
    let endpoint = "e".repeat(64);
    let backend = &endpoint[..32];
    for (status, serves_on) in [("204 No Content", false), ("500 Internal Server Error", true)] {
        let between = Between::new();
        let agent = UnixListener::bind(between.dir.path().join("agent.sock")).unwrap();
        let mut client = between
            .client(
                "POST /v1.41/containers/web/stop?t=3 HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n",
            )
            .await;
        show_container(&between.docker, &endpoint).await;
        let drained = json!({
            "endpoint_id": backend, "endpoint_name": "web", "network_id": "d".repeat(32), "network_name": "app",
            "node_id": "a".repeat(64), "node_name": "h1", "left": 0, "unconfirmed": [], "uncounted": [],
        });
        let asked = serve(&agent, "200 OK", &drained.to_string()).await;
        assert!(asked.contains(&format!("/endpoints/{backend}/drain")), "{asked}");
        assert!(asked.contains(r#""grace_ms":2000,"reset":false"#), "{asked}");
        let asked = serve(&between.docker, status, "").await;
        assert!(
            asked.starts_with("POST /v1.41/containers/web/stop?t=3 "),
            "{asked}"
        );
        let head = read_to(&mut client, "\r\n\r\n").await;
        assert!(head.contains(status), "{head}");
        let next = timeout(Duration::from_millis(200), agent.accept()).await;
        assert_eq!(next.is_ok(), serves_on, "{status}");
    }
}

#[tokio::test]
async fn one_whose_client_goes_away_meanwhile_serves_on() {
    let endpoint = "e".repeat(64);
    let between = Between::new();
    let agent = UnixListener::bind(between.dir.path().join("agent.sock")).unwrap();
    let client = between
        .client("POST /containers/web/restart HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n")
        .await;
    show_container(&between.docker, &endpoint).await;
    let draining = timeout(SOON, agent.accept()).await.unwrap().unwrap().0;
    drop(client);
    let asked = serve(&agent, "404 Not Found", "{}").await;
    assert!(
        asked.contains(&format!("/endpoints/{}/activate", &endpoint[..32])),
        "{asked}"
    );
    drop(draining);
}

#[tokio::test]
async fn it_is_stopped_without_an_agent_too() {
    let between = Between::new();
    let mut client = between
        .client("POST /containers/web/stop HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n")
        .await;
    show_container(&between.docker, &"e".repeat(64)).await;
    serve(&between.docker, "204 No Content", "").await;
    read_to(&mut client, "\r\n\r\n").await;
}
