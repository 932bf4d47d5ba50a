//! The broker takes the agent to be in the hands of somebody else: what it may not ask for is refused, each by name.

use std::{
    env,
    io::Write as _,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use rustix::net::SendFlags;

use super::{client::Broker, *};
use crate::{
    netns::{Netns, NetnsError, netns_cookie},
    testing,
};

/// A broker in a thread of this process.
struct Bed {
    broker: Broker,
    agents: OwnedFd,
    serves: JoinHandle<io::Result<()>>,
    dir: tempfile::TempDir,
}

fn policy(dir: &Path) -> Policy {
    Policy {
        run_dir: dir.to_owned(),
        networks: dir.join("netns"),
        bpf: dir.join("bpf"),
        may_mount_bpf: false,
        commands: false,
        give_up: || Ok(()),
        resolver: |name, _| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not {name}"))),
        encrypter: None,
    }
}

impl Bed {
    fn new(change: impl FnOnce(&mut Policy)) -> Option<Self> {
        testing::netns()?;
        let dir = tempfile::tempdir().unwrap();
        let mut policy = policy(dir.path());
        change(&mut policy);
        let (agents, brokers) = pair().unwrap();
        Some(Self {
            broker: Broker::at(agents.try_clone().unwrap()),
            agents,
            serves: thread::spawn(move || serve(&brokers, policy)),
            dir,
        })
    }

    fn refusal(&self, request: &Request, along: &[BorrowedFd<'_>]) -> String {
        match self.broker.ask(request, along).unwrap().done() {
            Err(NetnsError::Refused { reason }) => reason,
            other => panic!("{request:?} gave {other:?}"),
        }
    }

    fn close(self) {
        drop((self.broker, self.agents));
        self.serves.join().unwrap().unwrap();
    }
}

#[test]
fn what_is_not_on_the_list_is_refused() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let netns = Netns::create().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let both = [netns.as_fd(), file.as_fd()];
    let (here, other) = (&both[..1], &both[1..]);
    let in_dir = |name: &str| bed.dir.path().join(name);
    let read = |name: &str| Request::ReadSettings(vec![name.to_owned()]);
    let write = |name: &str, value: &str| Request::WriteSettings(vec![(name.to_owned(), value.to_owned())]);
    let forwards = "net/ipv4/ip_forward";
    let deep = format!("netns/{}", "x".repeat(65));
    let cases: Vec<(Request, &[BorrowedFd<'_>], &str)> = vec![
        (Request::Open("etc/passwd".into()), &[], "begins with a slash"),
        (
            Request::CreateAt("/run/netns/x".into()),
            &[],
            "only, not at /run/netns/x",
        ),
        (Request::CreateAt(in_dir("x")), &[], "only, not at"),
        (Request::CreateAt(in_dir("netns/../x")), &[], "only, not at"),
        (Request::CreateAt(in_dir("netns/..")), &[], "only, not at"),
        (Request::CreateAt(in_dir("netns/.x")), &[], "only, not at"),
        (Request::CreateAt(in_dir("netns/x y")), &[], "only, not at"),
        (Request::CreateAt(in_dir(&deep)), &[], "only, not at"),
        (Request::RemoveAt("/proc".into()), &[], "only, not at /proc"),
        (Request::RemoveAt(in_dir("netns/../netns")), &[], "only, not at"),
        (Request::Socket(SocketKind::Route), &[], "is to come along"),
        (
            Request::Socket(SocketKind::Route),
            other,
            "is not a network namespace",
        ),
        (Request::TapFile, other, "is not a network namespace"),
        (read("kernel/core_pattern"), here, "not one that networks need"),
        (read("../../etc/shadow"), here, "not one that networks need"),
        (write("kernel/modprobe", "1"), here, "not one that networks need"),
        (write(forwards, "|/bin/sh"), here, "is not set to"),
        (write(forwards, "1"), &[], "is to come along"),
        (
            Request::ReadSettings(vec![forwards.into(); 33]),
            here,
            "not needed at one time",
        ),
        (Request::MountBpf, &[], "without eBPF"),
        (Request::Run("true".into()), &both, "without --health-commands"),
        (Request::Encrypt, &[], "by somebody else"),
        (Request::Resolver("x".into(), None), &[], "not x"),
    ];
    for (request, along, reason) in cases {
        let refusal = bed.refusal(&request, along);
        assert!(refusal.contains(reason), "{request:?}: {refusal}");
    }
    assert!(!in_dir("netns").exists());
    bed.close();
}

#[test]
fn sockets_of_many_namespaces_are_asked_for_at_once() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let two = [Netns::create().unwrap(), Netns::create().unwrap()];
    let ask = |namespaces: usize, each: usize| {
        let along: Vec<_> = (0..namespaces).map(|n| two[n % 2].as_fd()).collect();
        let request = Request::Sockets(vec![SocketKind::Route; each]);
        bed.broker.ask(&request, &along).unwrap().sockets(each)
    };
    let cookies = two.each_ref().map(|netns| {
        let socket = netns.socket(SocketKind::Route).unwrap();
        netns_cookie(socket.as_fd()).unwrap()
    });
    let most = MAX_SOCKETS;
    for (namespaces, each) in [(1, 1), (most, 1), (1, most), (most / 2, 2)] {
        let made = ask(namespaces, each).unwrap();
        assert_eq!(made.len(), namespaces);
        for (n, sockets) in made.into_iter().enumerate() {
            let sockets = sockets.unwrap();
            assert_eq!(sockets.len(), each);
            for socket in sockets {
                assert_eq!(netns_cookie(socket.as_fd()).unwrap(), cookies[n % 2]);
            }
        }
    }
    // One more than the most, and ten.
    for (namespaces, each, reason) in [
        ((most + 1) / 3, 3, "not needed at one time"),
        (1, most + 1, "not needed at one time"),
        ((most + 10) / 3, 3, "not needed at one time"),
        (1, most + 10, "not needed at one time"),
        (0, 1, "namespaces to come along"),
        (1, 0, "kinds of sockets"),
    ] {
        match ask(namespaces, each) {
            Err(NetnsError::Refused { reason: said }) => assert!(said.contains(reason), "{said}"),
            other => panic!("{namespaces} times {each} gave {other:?}"),
        }
    }
    bed.close();
}

#[test]
fn of_many_descriptors_one_that_is_no_namespace_fails_alone() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let netns = Netns::create().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let along = [netns.as_fd(), file.as_fd(), netns.as_fd()];
    let request = Request::Sockets(vec![SocketKind::Route, SocketKind::Netfilter]);
    let made = bed.broker.ask(&request, &along).unwrap().sockets(2).unwrap();
    let [first, none, last] = <[_; 3]>::try_from(made).unwrap();
    assert_eq!((first.unwrap().len(), last.unwrap().len()), (2, 2));
    match none {
        Err(NetnsError::Refused { reason }) => {
            assert!(reason.contains("not a network namespace"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    bed.close();
}

#[test]
fn a_socket_that_asks_a_link_hears_nothing_else() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let netns = Netns::create().unwrap();
    for ipv4 in [true, false] {
        let request = Request::Socket(SocketKind::Neighbours { link: 1, ipv4 });
        let socket = bed.broker.ask(&request, &[netns.as_fd()]).unwrap().descriptor();
        let socket = socket.unwrap();
        let taken_off = socket2::SockRef::from(&socket).detach_filter();
        assert_eq!(taken_off.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
    bed.close();
}

#[test]
fn nothing_is_opened_but_namespaces() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let fifo = bed.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [
        Path::new("/etc/shadow"),
        Path::new("/dev/null"),
        Path::new("/proc/self/ns/mnt"),
        &fifo,
    ] {
        let opened = bed.broker.ask(&Request::Open(path.to_owned()), &[]).unwrap();
        match opened.descriptor() {
            Err(NetnsError::NotANetns { path: said }) => assert_eq!(said, path),
            other => panic!("{} gave {other:?}", path.display()),
        }
    }
    let absent = bed
        .broker
        .ask(&Request::Open("/nonexistent".into()), &[])
        .unwrap();
    assert!(matches!(absent.done(), Err(NetnsError::NotFound { .. })));
    let own = bed
        .broker
        .ask(&Request::Open("/proc/self/ns/net".into()), &[])
        .unwrap();
    let own = Netns::try_from(own.descriptor().unwrap()).unwrap();
    assert_eq!(own.id(), Netns::current().unwrap().id());
    bed.close();
}

#[test]
fn namespaces_are_made_in_their_folder_and_no_link_leads_out_of_it() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let path = bed.dir.path().join("netns/a");
    let ask = |request: &Request| bed.broker.ask(request, &[]).unwrap();
    let (make, remove) = (Request::CreateAt(path.clone()), Request::RemoveAt(path.clone()));
    let made = Netns::try_from(ask(&make).descriptor().unwrap()).unwrap();
    assert_eq!(Netns::open(&path).unwrap().id(), made.id());
    assert!(matches!(ask(&make).done(), Err(NetnsError::Exists { .. })));
    // A socket of it is of no other.
    let socket = bed
        .broker
        .ask(&Request::Socket(SocketKind::Udp { ipv4: true }), &[made.as_fd()]);
    let socket = socket.unwrap().descriptor().unwrap();
    let cookie = |socket: &OwnedFd| rustix::net::sockopt::socket_cookie(socket).unwrap();
    assert!(cookie(&socket) > 0);
    let setting = Request::WriteSettings(vec![("net/ipv4/ip_forward".into(), "1".into())]);
    bed.broker.ask(&setting, &[made.as_fd()]).unwrap().done().unwrap();
    assert_eq!(made.sysctls(&["net/ipv4/ip_forward"]).unwrap(), ["1"]);
    ask(&remove).done().unwrap();
    ask(&remove).done().unwrap();
    assert!(!path.exists());
    // The folder is a link now, to where something is that must not be taken away.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("a"), "kept").unwrap();
    let folder = bed.dir.path().join("netns");
    std::fs::remove_dir(&folder).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &folder).unwrap();
    assert!(ask(&make).done().is_err());
    // To which there is nothing there.
    ask(&remove).done().unwrap();
    assert_eq!(
        std::fs::read_to_string(elsewhere.path().join("a")).unwrap(),
        "kept"
    );
    bed.close();
}

/// Takes the next request as a broker that is killed in the middle of it: it does what it is given to do, and never answers.
fn dies_over(brokers: &OwnedFd, over: &Request, done: impl FnOnce()) {
    let received = message::receive::<Request>(brokers, rustix::net::RecvFlags::empty());
    let received = received.unwrap().unwrap();
    assert_eq!(received.message.as_ref(), Ok(over));
    done();
}

#[test]
fn a_namespace_is_asked_for_again_whatever_a_broker_had_done_of_it_when_it_died() {
    if testing::netns().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("netns/a");
    let make = Request::CreateAt(path.clone());
    let file = || {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
    };
    // What is there then is what was asked for; of a file without a namespace and of nothing one is made.
    let made = || drop(Netns::create_at(&path).unwrap());
    let steps: [(&str, &(dyn Fn() + Sync)); 3] = [("nothing", &|| {}), ("the path", &file), ("all", &made)];
    for (what, done) in steps {
        let (agents, brokers) = pair().unwrap();
        let broker = Broker::at(agents);
        let (path, make) = (&path, &make);
        let netns = thread::scope(|scope| {
            let policy = policy(dir.path());
            let serves = scope.spawn(move || {
                dies_over(&brokers, make, done);
                serve(&brokers, policy)
            });
            let netns = broker.create_at(path);
            drop(broker);
            serves.join().unwrap().unwrap();
            netns
        });
        let netns = netns.unwrap_or_else(|error| panic!("after a broker that had done {what}: {error}"));
        let netns = Netns::try_from(netns).unwrap();
        assert_eq!(Netns::open(path).unwrap().id(), netns.id(), "{what}");
        Netns::remove_at(path).unwrap();
    }
}

#[test]
fn noise_is_refused_and_does_not_end_the_broker() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    // Nothing to answer at: nobody hears of it.
    rustix::net::send(&bed.agents, b"noise", SendFlags::NOSIGNAL).unwrap();
    for noise in [
        &[0xff; 64][..],
        &[3, 0xff, 0xff, 0xff, 0xff, 0x0f],
        &[1; 64 * 1024 + 1],
    ] {
        let (mine, theirs) = super::message_pair().unwrap();
        let rights = [theirs.as_fd(); 3];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut along = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(along.push(rustix::net::SendAncillaryMessage::ScmRights(&rights)));
        let bytes = [io::IoSlice::new(noise)];
        rustix::net::sendmsg(&bed.agents, &bytes, &mut along, SendFlags::NOSIGNAL).unwrap();
        drop(theirs);
        let answer = message::receive::<message::Reply>(&mine, rustix::net::RecvFlags::empty());
        let reply = answer.unwrap().unwrap().message.unwrap();
        let expected = message::Failure::Refused("it is no request that is known".into());
        assert_eq!(reply, message::Reply::Failed(expected));
    }
    bed.broker.ask(&Request::Create, &[]).unwrap().done().unwrap();
    bed.close();
}

const ASKS: &str = "WEFT_TEST_ASKS_A_BROKER";

/// Not a test by itself: another process, which has the agent's socket as its standard input.
#[test]
fn another_process_asks() {
    if env::var_os(ASKS).is_some() {
        let broker = Broker::at(io::stdin().as_fd().try_clone_to_owned().unwrap());
        let refused = broker.ask(&Request::Create, &[]).unwrap().done().unwrap_err();
        let _ = writeln!(io::stderr(), "it says: {refused}");
    }
}

#[test]
fn whoever_has_the_socket_of_the_agent_is_not_the_agent() {
    let Some(bed) = Bed::new(|_| {}) else { return };
    let mut other = Command::new(env::current_exe().unwrap());
    other.args(["--exact", "broker::tests::another_process_asks", "--nocapture"]);
    other.env(ASKS, "").stdin(bed.agents.try_clone().unwrap());
    let said = other.stdout(Stdio::null()).output().unwrap().stderr;
    // It holds the socket that was to be its input.
    drop(other);
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("it does not come from the agent"), "{said}");
    bed.close();
}

#[test]
fn a_command_ends_when_nobody_waits_for_it_any_more() {
    let Some(bed) = Bed::new(|policy| policy.commands = true) else {
        return;
    };
    let netns = Netns::create().unwrap();
    let errors = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let run = |line: &str| {
        let asked = bed
            .broker
            .ask(&Request::Run(line.into()), &[netns.as_fd(), errors.as_fd()]);
        asked.unwrap().started().unwrap()
    };
    let ended = |started: Started| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(started.wait()).unwrap()
    };
    let fine = ended(run("exit 3"));
    assert_eq!((fine.code, fine.signal), (Some(3), None));
    let inside = ended(run(&format!(
        "test $(readlink /proc/self/ns/net) = '{}'",
        netns.id()
    )));
    assert_eq!(inside.code, Some(0));
    let endless = run("sleep 1000 & wait");
    let pid = endless.pid();
    drop(endless);
    // Its end closes the last that the broker waits for, within its patience.
    bed.close();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}
