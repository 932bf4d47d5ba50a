use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    sync::mpsc,
    thread,
};

use weft_types::Vni;
use weft_wireguard::{Answer, Network, NetworkStatus, Request};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A process of the tunnels that notes what it is told and carries nothing.
struct Fake {
    told: mpsc::Receiver<Desired>,
    /// The stream that is being served, to break it.
    stream: mpsc::Receiver<UnixStream>,
}

impl Fake {
    /// Fails to attach as many times as it is told.
    fn serve(socket: &Path, mut failures: usize) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (tell, told) = mpsc::channel();
        let (give, stream) = mpsc::channel();
        thread::spawn(move || {
            let mut networks = Vec::new();
            for accepted in listener.incoming() {
                let mut accepted = accepted.unwrap();
                let _ = give.send(accepted.try_clone().unwrap());
                while let Some(request) = read(&mut accepted) {
                    let answer = match request {
                        Request::Apply(desired) => {
                            let generation = desired.generation;
                            let attached = failures == 0;
                            let failed = (!attached).then(|| "there is no vx0".to_owned());
                            failures = failures.saturating_sub(1);
                            networks = status_of(&desired.networks, attached);
                            tell.send(*desired).unwrap();
                            Answer::Applied {
                                generation,
                                failed: failed.into_iter().collect(),
                            }
                        }
                        Request::Status => Answer::Status(Status {
                            generation: 1,
                            networks: networks.clone(),
                            ..Status::default()
                        }),
                    };
                    let bytes = postcard::to_allocvec(&answer).unwrap();
                    let length = (bytes.len() as u32).to_le_bytes();
                    if accepted.write_all(&[&length, &bytes[..]].concat()).is_err() {
                        break;
                    }
                }
            }
        });
        Self { told, stream }
    }
}

fn status_of(networks: &[Network], attached: bool) -> Vec<NetworkStatus> {
    let status = |network: &Network| NetworkStatus {
        vni: network.vni,
        attached,
        sent_frames: 0,
        received_frames: 0,
        dropped_sending: 0,
        dropped_receiving: 0,
    };
    networks.iter().map(status).collect()
}

fn read(stream: &mut UnixStream) -> Option<Request> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut bytes).ok()?;
    Some(postcard::from_bytes(&bytes).unwrap())
}

fn desired(generation: u64) -> Box<Desired> {
    Box::new(Desired {
        generation,
        private_keys: vec![weft_wireguard::Secret32::new([1; 32])],
        port: 51820,
        vtep: Ipv4Addr::new(100, 64, 0, 1),
        peers: Vec::new(),
        networks: vec![Network {
            vni: Vni::try_from(77).unwrap(),
            netns: "/run/weft/netns/a".into(),
            tap: "vx0".to_owned(),
            members: Vec::new(),
            fdb: Vec::new(),
        }],
    })
}

fn keeper(dir: &Path) -> TunnelsThread {
    TunnelsThread::start(
        &AgentOptions {
            run_dir: dir.to_owned(),
            tunnels: TunnelsStart::Service,
            ..AgentOptions::default()
        },
        Encryption::Process,
    )
    .unwrap()
}

async fn until(thread: &mut TunnelsThread, is_so: impl Fn(&TunnelReport) -> bool) {
    let look = async { while !is_so(&thread.says().await) {} };
    tokio::time::timeout(SOON, look).await.unwrap();
}

#[tokio::test]
async fn what_is_wanted_is_told_once_and_again_to_who_comes_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut thread = keeper(dir.path());
    thread.apply(Some(desired(1)), 1420);
    until(
        &mut thread,
        |report| matches!(&report.status, Err(why) if why.contains("weft-tunnels.service")),
    )
    .await;
    let fake = Fake::serve(&dir.path().join("tunnels.sock"), 0);
    until(&mut thread, |report| report.status.is_ok()).await;
    assert_eq!(fake.told.recv_timeout(SOON).unwrap().generation, 1);
    until(&mut thread, |report| report.status.is_ok()).await;
    assert!(fake.told.try_recv().is_err(), "nothing has changed");
    thread.apply(Some(desired(2)), 1420);
    assert_eq!(fake.told.recv_timeout(SOON).unwrap().generation, 2);

    // It goes and comes again, and knows nothing.
    let stream = fake.stream.recv_timeout(SOON).unwrap();
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(fake.told.recv_timeout(SOON).unwrap().generation, 2);
    thread.apply(None, 1420);
    let nothing = fake.told.recv_timeout(SOON).unwrap();
    assert!(nothing.networks.is_empty() && nothing.peers.is_empty());
}

#[tokio::test]
async fn what_could_not_be_done_is_said_and_tried_again_when_the_kernel_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::serve(&dir.path().join("tunnels.sock"), 1);
    let mut thread = keeper(dir.path());
    thread.apply(Some(desired(1)), 1420);
    until(&mut thread, |report| report.failed == ["there is no vx0"]).await;
    assert_eq!(fake.told.recv_timeout(SOON).unwrap().generation, 1);
    thread.look_again();
    until(&mut thread, |report| {
        report.failed.is_empty() && report.status.is_ok()
    })
    .await;
    assert_eq!(fake.told.recv_timeout(SOON).unwrap().generation, 1);
    thread.look_again();
    until(&mut thread, |report| report.status.is_ok()).await;
    assert!(fake.told.try_recv().is_err());
}

#[test]
fn without_a_choice_the_kernel_encrypts_unless_the_process_is_at_work() {
    use WireguardChoice::{Auto, Kernel, Userspace};
    let decided = |choice, has_kernel: bool, is_at_work| {
        let probed = has_kernel.then_some(()).ok_or("none".to_owned());
        decide(choice, probed, is_at_work)
            .map(|encrypter| encrypter.kind)
            .ok()
    };
    for is_at_work in [false, true] {
        for has_kernel in [false, true] {
            assert_eq!(
                decided(Userspace, has_kernel, is_at_work),
                Some(Encryption::Process)
            );
            assert_eq!(
                decided(Kernel, has_kernel, is_at_work),
                has_kernel.then_some(Encryption::Kernel)
            );
        }
        assert_eq!(decided(Auto, false, is_at_work), Some(Encryption::Process));
    }
    assert_eq!(decided(Auto, true, false), Some(Encryption::Kernel));
    assert_eq!(decided(Auto, true, true), Some(Encryption::Process));
    let refused = decide(Kernel, Err("none".to_owned()), false)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("cannot be used: none; without `--wireguard kernel`"),
        "{refused}"
    );
}

#[test]
fn a_process_that_takes_its_time_is_waited_for_and_one_that_ended_is_started_again() {
    let after = |seconds, runs| is_due(Some(Duration::from_secs(seconds)), runs);
    assert!(is_due(None, false));
    // Longer than it usually takes: a second one would find the socket taken.
    assert!(!after(MOMENT.as_secs() + 1, true));
    assert!(after(60, true), "it hangs");
    assert!(after(1, false));
    assert!(!is_due(Some(Duration::from_millis(900)), false), "not in a loop");
}
