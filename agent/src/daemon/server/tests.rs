use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    api::{
        Timestamp,
        types::{DatapathStatus, NamesStatus},
    },
    daemon::access::Access,
    serve::Bounds,
};

/// Answers that it made a token, whoever asks.
async fn token_maker(dir: &Path) -> PathBuf {
    let (sender, mut requests) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            let Request::Command(Command::TokenCreate(_, to)) = request else {
                panic!("nothing else was asked")
            };
            to.send(Ok(TokenCreateResponse {
                id: "id".to_owned(),
                token: "token".to_owned(),
                join_command: "join".to_owned(),
                expires: Timestamp::from_unix_millis(0),
                reusable: false,
            }));
        }
    });
    serve_at(dir, sender, EventLog::default(), Access::All.bounds())
}

fn serve_at(dir: &Path, requests: mpsc::Sender<Request>, events: EventLog, bounds: Bounds) -> PathBuf {
    let context = Context {
        requests,
        events,
        facts: HostFacts {
            datapath: DatapathStatus {
                name: "nft".to_owned(),
                reason: "it was asked for".to_owned(),
            },
            names: NamesStatus {
                host: None,
                host_networks: Vec::new(),
                forward: Vec::new(),
            },
        },
    };
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let router = Access::All.guard(router().with_state(context));
    tokio::spawn(serve(listener, bounds, router, Caller::of));
    path
}

#[tokio::test]
async fn a_body_is_read_up_to_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let socket = token_maker(dir.path()).await;
    for (length, said) in [
        (MAX_BODY, "HTTP/1.1 200 "),
        (MAX_BODY + 1, "HTTP/1.1 400 "),
        (10 * MAX_BODY, "HTTP/1.1 400 "),
    ] {
        let body = r#"{"ttl_secs": 60, "reusable": false}"#;
        let head = format!("POST /v1/tokens HTTP/1.1\r\nHost: weft\r\nContent-Length: {length}\r\n\r\n");
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let padding = " ".repeat(length - body.len());
        // Who sends too much may be refused before he has.
        let _ = stream
            .write_all(&[head.as_str(), body, &padding].concat().into_bytes())
            .await;
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with(said), "{length} bytes: {answer}");
        let names_it = answer.contains(&format!("at most {MAX_BODY} bytes"));
        assert_eq!(names_it, length > MAX_BODY, "{answer}");
    }
}

#[tokio::test]
async fn events_are_followed_however_long_nothing_happens_and_the_silent_lose_their_places() {
    const SILENCE: Duration = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let (events, (requests, mut owner)) = (EventLog::default(), mpsc::channel(1));
    // There is no cluster.
    tokio::spawn(async move { while owner.recv().await.is_some() {} });
    let bounds = Bounds {
        places: 2,
        silence: SILENCE,
    };
    let socket = serve_at(dir.path(), requests, events.clone(), bounds);
    let ask = async |path: &str| {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: weft\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let read_to = async |stream: &mut UnixStream, end: &str| {
        let mut read = String::new();
        while !read.ends_with(end) {
            let byte = timeout(Duration::from_secs(5), stream.read_u8()).await;
            read.push(
                byte.unwrap_or_else(|_| panic!("nothing after {read:?}"))
                    .unwrap()
                    .into(),
            );
        }
    };
    let mut follower = ask("/v1/events?follow=true").await;
    read_to(&mut follower, "\r\n\r\n").await;
    for _ in 0..3 {
        let _silent = UnixStream::connect(&socket).await.unwrap();
        let mut guest = ask("/v1/version").await;
        read_to(&mut guest, "}").await;
        sleep(SILENCE).await;
    }
    events.push(Event {
        time: Timestamp::from_unix_millis(0),
        kind: EventKind::NodeAlive,
        object: EventObject {
            id: "id".to_owned(),
            name: "name".to_owned(),
        },
        attributes: [].into(),
    });
    read_to(&mut follower, "}\n").await;
}
