use std::{future::pending, path::PathBuf};

use axum::routing::{get, post};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::*;

const SILENCE: Duration = Duration::from_millis(300);
/// For what happens when somebody was silent for too long.
const SOON: Duration = Duration::from_secs(5);
/// More than the kernel takes for whoever does not read.
const LARGE: usize = 8 << 20;

struct Served {
    socket: PathBuf,
    _dir: TempDir,
}

fn router() -> Router {
    let drip = |length: usize, pause: Duration| {
        let pieces = futures_util::stream::unfold(0, move |sent| async move {
            sleep(pause).await;
            (sent < length).then(|| (Ok::<_, Infallible>(vec![b'x'; length / 4]), sent + length / 4))
        });
        Body::from_stream(pieces)
    };
    Router::new()
        .route("/short", get(async || "short\n"))
        .route("/large", get(async || vec![b'x'; LARGE]))
        .route("/take", post(async |body: String| body))
        .route("/think", get(async || sleep(3 * SILENCE).await))
        .route("/drip", get(async move || drip(16, SILENCE)))
        .route("/never", get(async || pending::<()>().await))
}

fn served(places: usize) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let bounds = Bounds {
        places,
        silence: SILENCE,
    };
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(serve(listener, bounds, router(), |_| ()));
    Served { socket, _dir: dir }
}

impl Served {
    async fn says(&self, text: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: weft\r\n\r\n")
}

fn last_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n")
}

/// All that is answered until the connection ends.
async fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .expect("an end")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn who_says_nothing_stops_halfway_or_does_not_read_keeps_nobody_out() {
    let head = "POST /take HTTP/1.1\r\nHost: weft\r\nContent-Length: 10\r\n\r\n";
    for idle in [
        String::new(),
        "GET /short HTT".to_owned(),
        "GET /short HTTP/1.1\r\nHost: weft\r\nX-And:".to_owned(),
        head.to_owned(),
        format!("{head}half"),
        request("/short"),
        request("/large"),
        [request("/large"), request("/large")].concat(),
    ] {
        let served = served(3);
        let begun = Instant::now();
        let mut crowd = Vec::new();
        for _ in 0..3 {
            crowd.push(served.says(&idle).await);
        }
        let mut guest = served.says(&last_request("/short")).await;
        let answer = timeout(SOON, rest(&mut guest)).await;
        let answer = answer.unwrap_or_else(|_| panic!("shut out by {idle:?}"));
        assert!(answer.ends_with("short\n"), "{answer}");
        assert!(begun.elapsed() >= SILENCE, "there was room beside {idle:?}");
    }
}

#[tokio::test]
async fn over_tcp_it_is_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bounds = Bounds {
        places: 1,
        silence: SILENCE,
    };
    tokio::spawn(serve(listener, bounds, router(), |_| ()));
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut guest = TcpStream::connect(address).await.unwrap();
    guest.write_all(last_request("/short").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, guest.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with("short\n"), "{answer}");
}

#[tokio::test]
async fn who_trickles_is_not_at_work() {
    let served = served(8);
    for begun in [
        "GET /short HTTP/1.1\r\nHost: weft\r\nX: ",
        "POST /take HTTP/1.1\r\nHost: weft\r\nContent-Length: 1000\r\n\r\n",
    ] {
        let mut stream = served.says(begun).await;
        let trickled = async {
            while stream.write_all(b"x").await.is_ok() {
                sleep(SILENCE / 10).await;
            }
        };
        timeout(SOON, trickled)
            .await
            .unwrap_or_else(|_| panic!("a byte now and then is enough after {begun:?}"));
    }
}

#[tokio::test]
async fn an_answer_may_take_its_time_and_so_may_who_follows_or_reads_it() {
    let served = served(8);
    let mut thinking = served.says(&last_request("/think")).await;
    let mut dripping = served.says(&last_request("/drip")).await;
    assert!(rest(&mut thinking).await.starts_with("HTTP/1.1 200"));
    let said = rest(&mut dripping).await;
    assert_eq!(said.matches('x').count(), 16, "{said}");
    let mut reading = served.says(&last_request("/large")).await;
    // By pieces, of which each is well within time and all together are not.
    let (mut read, mut buffer) = (0, vec![0; LARGE / 16]);
    let begun = Instant::now();
    loop {
        sleep(SILENCE / 8).await;
        match timeout(SOON, reading.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            length => read += length,
        }
    }
    assert!(read > LARGE, "only {read} bytes");
    assert!(begun.elapsed() > 2 * SILENCE);
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let served = served(1);
    let mut stream = served.says(&request("/short")).await;
    let body = "POST /take HTTP/1.1\r\nHost: weft\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n4\r\n of ";
    for (says, answered) in [
        (String::new(), "short\n"),
        (body.to_owned(), ""),
        ("\r\n2\r\nit\r\n0\r\n\r\n".to_owned(), "all of it"),
        (request("/short"), "short\n"),
    ] {
        stream.write_all(says.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(answered.as_bytes()) {
            answer.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
        }
        sleep(SILENCE / 3).await;
    }
}

#[tokio::test]
async fn who_goes_away_leaves_a_place_though_its_answer_is_not_there() {
    let served = served(1);
    let leaving = served.says(&request("/never")).await;
    let mut guest = served.says(&last_request("/short")).await;
    let moment = timeout(2 * SILENCE, guest.readable()).await;
    assert!(moment.is_err(), "there was one place");
    drop(leaving);
    assert!(rest(&mut guest).await.ends_with("short\n"));
}
