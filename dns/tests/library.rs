//! Why the loops in front of our handler are not those of hickory-server's `Server`. Each test shows a
//! fault of the version in use and that we do not have it; one that fails says that a new version is
//! better, and that ours may go.

mod support;

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_proto::op::{Message, Metadata, Query, ResponseCode};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use support::{Behaviour, Resolver, nobody, start, upstreams};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Instant, sleep, timeout},
};

/// Counts the questions that wait; a name with `wait` in it does for ever.
#[derive(Clone, Default)]
struct Handler(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut out: R,
    ) -> ResponseInfo {
        if request.queries.queries()[0].name().to_string().contains("wait") {
            self.0.fetch_add(1, Relaxed);
            std::future::pending::<()>().await;
        }
        let metadata = Metadata::response_from_request(&request.metadata);
        let response = MessageResponseBuilder::from_message_request(request);
        out.send_response(response.error_msg(&metadata, ResponseCode::Refused))
            .await
            .unwrap()
    }
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(name.parse().unwrap(), "A".parse().unwrap()));
    message.to_vec().unwrap()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn questions_that_wait_are_bounded() {
    const QUESTIONS: usize = 3_000;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let send = async |to: SocketAddr, seen: &dyn Fn() -> usize| {
        for n in 0..QUESTIONS {
            socket
                .send_to(&question(&format!("wait{n}.example.")), to)
                .await
                .unwrap();
            // Not faster than they are taken from the socket, which would drop them.
            if n % 100 == 99 {
                until("questions are read", || seen() > n).await;
            }
        }
    };
    let handler = Handler::default();
    let theirs = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = theirs.local_addr().unwrap();
    let mut server = Server::new(handler.clone());
    server.register_socket(theirs);
    send(address, &|| handler.0.load(Relaxed)).await;
    assert_eq!(
        handler.0.load(Relaxed),
        QUESTIONS,
        "all of them wait in their server"
    );

    let silent = Resolver::start(Behaviour::Silent);
    let running = start(weft_dns::ForwarderConfig {
        max_in_flight: 64,
        ..upstreams(&[silent.address])
    });
    send(running.address, &|| running.server.counts().forwarded as usize).await;
    let counts = running.server.counts();
    assert!(counts.forward_failed as usize >= QUESTIONS - 64 * 8, "{counts:?}");
}

#[tokio::test]
async fn connections_are_bounded() {
    const CONNECTIONS: usize = 300;
    let theirs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = theirs.local_addr().unwrap();
    let mut server = Server::new(Handler::default());
    server.register_listener(theirs, Duration::from_secs(5), 32);
    let running = start(nobody());
    for (address, expected) in [(address, CONNECTIONS), (running.address, 8)] {
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            open.push(TcpStream::connect(address).await.unwrap());
        }
        let mut answered = 0;
        let message = question("one.");
        for stream in &mut open {
            let whole = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
            if stream.write_all(&whole).await.is_ok() && stream.read_u16().await.is_ok() {
                answered += 1;
            }
        }
        assert_eq!(answered, expected);
    }
}

/// The only test that takes all descriptors; it has a process of its own.
#[test]
fn without_descriptors_nothing_spins() {
    const MARK: &str = "WEFT_DNS_TEST_DESCRIPTORS";
    if std::env::var_os(MARK).is_none() {
        let this = std::env::current_exe().unwrap();
        let name = "without_descriptors_nothing_spins";
        let output = Command::new("prlimit")
            .arg("--nofile=128:128")
            .arg(this)
            .args([name, "--exact", "--nocapture"])
            .env(MARK, "1")
            .output()
            .expect("`prlimit` runs (package util-linux)");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let cpu = File::open("/proc/thread-self/stat").unwrap();
        let theirs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = theirs.local_addr().unwrap();
        let running = start(nobody());
        // The kernel connects them; nobody has been accepted yet.
        let ours = std::net::TcpStream::connect(running.address).unwrap();
        let _theirs = std::net::TcpStream::connect(address).unwrap();
        let mut all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        assert!(all.len() < 128);
        let busy = async || {
            let before = ticks(&cpu);
            let _ = timeout(Duration::from_millis(600), std::future::pending::<()>()).await;
            ticks(&cpu) - before
        };
        let of_ours = busy().await;
        let mut server = Server::new(Handler::default());
        server.register_listener(theirs, Duration::from_secs(5), 32);
        let of_theirs = busy().await;
        assert!(
            of_ours <= 3 && of_theirs >= 5,
            "{of_ours} and {of_theirs} ticks of 60"
        );
        // With room again, who waited is served.
        drop(server);
        all.clear();
        ours.set_nonblocking(true).unwrap();
        let mut ours = TcpStream::from_std(ours).unwrap();
        let message = question("one.");
        let whole = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
        ours.write_all(&whole).await.unwrap();
        assert!(ours.read_u16().await.unwrap() > 12);
    });
}

/// Processor time of this thread, in hundredths of a second.
fn ticks(stat: &File) -> u64 {
    let mut text = [0; 1024];
    let length = stat.read_at(&mut text, 0).unwrap();
    let text = std::str::from_utf8(&text[..length]).unwrap();
    // After the name, which may have blanks in it: state and ten fields, then user and system time.
    let fields: Vec<_> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
