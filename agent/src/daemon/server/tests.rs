use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use super::*;
use crate::{
    api::{
        Timestamp,
        types::{DatapathStatus, NamesStatus},
    },
    daemon::access::Access,
};

/// Answers that it made a token, whoever asks.
async fn serve(dir: &std::path::Path) -> PathBuf {
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
    let context = Context {
        requests: sender,
        events: EventLog::default(),
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
    let listener = Few::new(UnixListener::bind(&path).unwrap(), 8);
    let service = Access::All.guard(router().with_state(context));
    tokio::spawn(async move { axum::serve(listener, service).await });
    path
}

#[tokio::test]
async fn a_body_is_read_up_to_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let socket = serve(dir.path()).await;
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
