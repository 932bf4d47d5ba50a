use std::time::Instant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{answer::Whoami, *};

const DEADLINE: Duration = Duration::from_secs(5);

fn serve(listen: &str, change: impl FnOnce(&mut WhoamiArgs)) -> Server {
    let mut args = WhoamiArgs {
        listen: vec![listen.parse().unwrap()],
        name: Some("web-1".to_owned()),
        delay: 0,
        hold: false,
    };
    change(&mut args);
    start(&args).unwrap()
}

/// Sends one request and gives the body of the answer and this end of the connection.
async fn get(server: SocketAddr, path: &str, header: &str) -> (String, SocketAddr) {
    let work = async {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let client = stream.local_addr().unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer.split_once("\r\n\r\n").unwrap().1.to_owned(), client)
    };
    timeout(DEADLINE, work).await.unwrap()
}

fn json(body: &str) -> Whoami {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[tokio::test]
async fn says_who_answers_and_whom() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let server = serve(listen, |_| {});
        let here = server.addresses[0];
        let (body, client) = get(here, "/", "").await;
        let hostname = answer::hostname();
        assert_eq!(
            body,
            format!("name: web-1\nhostname: {hostname}\nlocal: {here}\nclient: {client}\n")
        );
    }
}

#[tokio::test]
async fn answers_in_json_when_asked_either_way() {
    let server = serve("127.0.0.1:0", |_| {});
    let here = server.addresses[0];
    for (served, (path, header)) in [("/a?format=json", ""), ("/a", "Accept: application/json\r\n")]
        .into_iter()
        .enumerate()
    {
        let (body, client) = get(here, path, header).await;
        let expected = Whoami {
            name: "web-1".to_owned(),
            hostname: answer::hostname(),
            local: here,
            client,
            path: Some("/a".to_owned()),
            served: served as u64 + 1,
        };
        assert_eq!(json(&body), expected);
    }
    let (body, _) = get(here, "/?format=text", "Accept: application/json\r\n").await;
    assert!(body.starts_with("name: web-1\n"), "{body}");
    let (body, _) = get(here, "/?format=xml", "").await;
    assert!(body.contains("there is no format `xml`"), "{body}");
}

#[tokio::test]
async fn answers_late_when_told_to() {
    let slow = Duration::from_millis(80);
    let server = serve("127.0.0.1:0", |args| args.delay = slow.as_millis() as u64);
    let started = Instant::now();
    get(server.addresses[0], "/", "").await;
    assert!(started.elapsed() >= slow);

    let server = serve("127.0.0.1:0", |_| {});
    let started = Instant::now();
    let (body, _) = get(server.addresses[0], "/slow?ms=80&format=json", "").await;
    assert!(started.elapsed() >= slow);
    assert_eq!(json(&body).path.as_deref(), Some("/slow"));
}

#[tokio::test]
async fn says_that_it_is_not_well_when_told_to() {
    let server = serve("127.0.0.1:0", |_| {});
    let here = server.addresses[0];
    let ask = async |method: &str, path: &str, body: &str| {
        let work = async {
            let mut stream = TcpStream::connect(here).await.unwrap();
            let length = body.len();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer["HTTP/1.1 ".len()..][..3].to_owned()
        };
        timeout(DEADLINE, work).await.unwrap()
    };
    assert_eq!(ask("GET", "/health", "").await, "200");
    assert_eq!(ask("PUT", "/health", "503").await, "204");
    assert_eq!(ask("GET", "/health", "").await, "503");
    assert_eq!(ask("GET", "/", "").await, "200");
    assert_eq!(ask("PUT", "/health", "well").await, "400");
    assert_eq!(ask("PUT", "/health", "200").await, "204");
    assert_eq!(ask("GET", "/health", "").await, "200");
}

#[tokio::test]
async fn a_backend_that_hangs_takes_the_request_and_keeps_the_connection() {
    let server = serve("127.0.0.1:0", |args| args.hold = true);
    let mut stream = TcpStream::connect(server.addresses[0]).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = timeout(Duration::from_millis(100), stream.read_u8()).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn datagrams_come_back_and_one_asks_who_answers() {
    let server = serve("127.0.0.1:0", |_| {});
    let here = server.addresses[0];
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 2048];
    for (sent, expected) in [(&b"ping"[..], &b"ping"[..]), (b"", b"")] {
        socket.send_to(sent, here).await.unwrap();
        let (length, from) = timeout(DEADLINE, socket.recv_from(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&buffer[..length], from), (expected, here));
    }
    socket.send_to(b"whoami\n", here).await.unwrap();
    let length = timeout(DEADLINE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let me: Whoami = serde_json::from_slice(&buffer[..length]).unwrap();
    assert_eq!(
        (me.name.as_str(), me.client),
        ("web-1", socket.local_addr().unwrap())
    );
}

#[tokio::test]
async fn everywhere_is_both_families_on_one_port_and_a_client_keeps_its_address() {
    let server = serve(":0", |_| {});
    let port = server.addresses[0].port();
    for address in &server.addresses {
        assert_eq!(address.port(), port);
    }
    let (body, client) = get(([127, 0, 0, 1], port).into(), "/?format=json", "").await;
    assert_eq!(json(&body).client, client);
}

#[tokio::test]
async fn a_port_in_use_is_a_conflict_that_says_how_to_find_its_user() {
    let server = serve("127.0.0.1:0", |_| {});
    let taken = server.addresses[0];
    let args = WhoamiArgs {
        listen: vec![Listen::At(taken)],
        name: None,
        delay: 0,
        hold: false,
    };
    let Err(failure) = start(&args) else {
        panic!("two servers on {taken}")
    };
    let text = failure.render();
    assert!(
        text.starts_with(&format!("error: whoami cannot listen on {taken}: ")),
        "{text}"
    );
    assert!(
        text.contains(&format!("`ss -lntup sport = :{}`", taken.port())),
        "{text}"
    );
}

#[test]
fn a_place_to_listen_is_read_as_written() {
    assert_eq!(":80".parse(), Ok(Listen::Everywhere { port: 80 }));
    assert_eq!(
        "127.0.0.1:80".parse(),
        Ok(Listen::At(([127, 0, 0, 1], 80).into()))
    );
    assert_eq!("[::1]:80".parse(), Ok(Listen::At("[::1]:80".parse().unwrap())));
    for bad in ["", "80", "localhost:80", ":65536", ":", "::1:80"] {
        assert!(bad.parse::<Listen>().is_err(), "{bad}");
    }
}
