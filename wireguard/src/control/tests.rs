use std::{io::Cursor, os::unix::net::UnixListener, path::Path, thread};

use proptest::{collection::vec, prelude::*};

use super::*;

fn desired() -> Desired {
    Desired {
        generation: 7,
        private_keys: vec![Secret32::new([1; 32])],
        port: 51820,
        vtep: Ipv4Addr::new(100, 64, 0, 1),
        peers: vec![Peer {
            pairs: vec![KeyPair {
                own: 0,
                public_key: [2; 32],
                preshared_key: Secret32::new([3; 32]),
            }],
            vtep: Ipv4Addr::new(100, 64, 0, 2),
            endpoint: "192.0.2.1:51820".parse().unwrap(),
        }],
        networks: vec![Network {
            vni: Vni::try_from(4097).unwrap(),
            netns: "/run/weft/netns/app".into(),
            tap: "vx0".to_owned(),
            members: vec![Ipv4Addr::new(100, 64, 0, 2)],
            fdb: vec![(Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(100, 64, 0, 2))],
        }],
    }
}

/// Answers each request of one connection.
fn serve(path: &Path, answer: impl Fn(Request) -> Answer + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while let Ok(request) = read_message(&mut stream) {
            write_message(&mut stream, &answer(request)).unwrap();
        }
    });
}

#[test]
fn one_connection_carries_request_after_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tunnels.sock");
    serve(&path, |request| match request {
        Request::Apply(state) if *state == desired() => Answer::Applied {
            generation: state.generation,
            failed: vec!["no such device".to_owned()],
        },
        Request::Apply(_) => Answer::Refused("two peers with one address".to_owned()),
        Request::Status => Answer::Status(Status {
            generation: 7,
            ..Status::default()
        }),
    });
    let mut client = Client::connect(&path).unwrap();
    let second = Duration::from_secs(10);
    assert_eq!(client.apply(desired(), second).unwrap(), ["no such device"]);
    assert_eq!(client.status(second).unwrap().generation, 7);
    let other = Desired { port: 1, ..desired() };
    let refused = client.apply(other, second).unwrap_err();
    assert!(refused.to_string().ends_with("two peers with one address"));
}

#[test]
fn nobody_at_the_socket_and_nobody_awake_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tunnels.sock");
    assert!(matches!(Client::connect(&path), Err(ClientError::Absent { .. })));
    let _listener = UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path).unwrap();
    let error = client.status(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, ClientError::Broken(_)), "{error}");
}

#[test]
fn a_message_that_promises_more_than_it_brings_takes_no_memory_for_the_rest() {
    let mut bytes = LONGEST.to_le_bytes().to_vec();
    bytes.push(1);
    let error = read_message::<Request>(&mut Cursor::new(&bytes)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let error = read_message::<Request>(&mut Cursor::new((LONGEST + 1).to_le_bytes())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn bytes_after_a_message_are_an_error_of_another_version() {
    let mut bytes = Vec::new();
    write_message(&mut bytes, &Request::Status).unwrap();
    bytes[0] += 1;
    bytes.push(0);
    let error = read_message::<Request>(&mut Cursor::new(&bytes)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_state_in_a_log_has_no_keys_in_it() {
    let text = format!("{:?}", Request::Apply(Box::new(desired())));
    assert!(
        text.contains("private_keys: […]") && !text.contains("1, 1, 1"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_message(bytes in vec(any::<u8>(), 0..200)) {
        let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
        framed.extend(bytes);
        let _ = read_message::<Request>(&mut Cursor::new(&framed));
        let _ = read_message::<Answer>(&mut Cursor::new(&framed));
    }
}
