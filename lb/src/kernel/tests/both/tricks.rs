//! Programs that are not where one would look for them, and what the network says to them.

use std::{fs, os::fd::AsFd, path::PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

use weft_netlink::route::{Batch, NewLink, RouteSocket, VethPeer};

use super::*;
use crate::kernel::ebpf::root_cgroup;

scenarios! {
    whatever_control_group_and_namespaces_a_program_has_its_sandbox_counts
    every_way_to_open_a_connection_is_translated
    who_is_asked_for_the_other_end_names_the_virtual_address
    a_port_that_nobody_listens_on_is_refused_by_the_backends_own_word
    what_is_too_long_for_the_way_learns_how_long_it_may_be
}

/// A control group of version 2, for as long as it is used.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Option<Self> {
        let root = root_cgroup()?;
        let path = root.join(format!("weft-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The program in it has ended, and the kernel may need a moment to notice.
        let _ = (0..1_000).find(|_| fs::remove_dir(&self.0).is_ok());
    }
}

/// The backend's answer to a shell that runs in the client's network namespace and was started by `before`.
fn asked_by_shell(bed: &Bed, before: &str) -> Result<String, String> {
    let ask = format!("exec 3<>/dev/tcp/{VIP}/{PORT} && read -r line <&3 && echo \"$line\"");
    let line = before.replace("ASK", &format!("bash -c '{ask}'"));
    let output = bed
        .client
        .run(|| Command::new("bash").args(["-c", &line]).output())
        .unwrap()
        .unwrap();
    match String::from_utf8_lossy(&output.stdout).trim() {
        "" => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        answer => Ok(answer.to_owned()),
    }
}

fn whatever_control_group_and_namespaces_a_program_has_its_sandbox_counts(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    datapath
        .sync("c", &bed.client, &only(&service(Scheduler::RoundRobin)))
        .unwrap();
    let mut ways = vec![
        "ASK".to_owned(),
        // A control group namespace, as a container with `cgroupns=private` has.
        "unshare --cgroup ASK".to_owned(),
        // A user namespace of its own, which does not own the network namespace.
        "unshare --user --map-root-user ASK".to_owned(),
        "unshare --user --map-root-user --cgroup --mount --pid --fork ASK".to_owned(),
    ];
    let groups: Vec<_> = ["outer", "elsewhere"]
        .into_iter()
        .filter_map(Cgroup::new)
        .collect();
    if let [outer, elsewhere] = &groups[..] {
        let (outer, elsewhere) = (outer.0.display(), elsewhere.0.display());
        ways.push(format!("echo $$ > {outer}/cgroup.procs; ASK"));
        // Moved while it runs; and with the group that it is in as the root of all it sees.
        ways.push(format!(
            "echo $$ > {outer}/cgroup.procs; unshare --cgroup true; echo $$ > {elsewhere}/cgroup.procs; ASK"
        ));
        ways.push(format!("echo $$ > {outer}/cgroup.procs; unshare --cgroup ASK"));
    }
    for way in &ways {
        let answer = asked_by_shell(bed, way).unwrap_or_else(|error| panic!("{way}: {error}"));
        assert!(answer.starts_with("10.9.0.1"), "{way}: {answer}");
    }
    // A network namespace within the sandbox is another one, where nothing leads anywhere.
    assert!(asked_by_shell(bed, "unshare --net ASK").is_err());
    // A socket that was made here and is used by a program elsewhere is the sandbox's still.
    let made = bed.client.run(|| stream(VIP, None).unwrap()).unwrap();
    let elsewhere = Netns::create().unwrap();
    let to = SocketAddr::new(ip(VIP), PORT).into();
    elsewhere.run(|| made.connect(&to)).unwrap().unwrap();
    assert!(greeting(made).starts_with("10.9.0.1"));
    // And one that was made elsewhere is not, whoever uses it.
    let made = elsewhere.run(|| stream(VIP, None).unwrap()).unwrap();
    assert!(bed.client.run(|| made.connect(&to)).unwrap().is_err());
}

fn stream(vip: &str, protocol: Option<Protocol>) -> std::io::Result<Socket> {
    let domain = if vip.contains(':') {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    Socket::new(domain, Type::STREAM, protocol)
}

/// What the backend says first.
fn greeting(socket: Socket) -> String {
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 256];
    let len = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

fn every_way_to_open_a_connection_is_translated(kit: &Kit, bed: &Bed) {
    /// `MSG_FASTOPEN`
    const FAST_OPEN: i32 = 0x2000_0000;
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, PORT)];
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    for vip in [VIP, VIP6] {
        let to = SocketAddr::new(ip(vip), 80).into();
        // The first words go with the connection.
        let socket = bed.client.run(|| stream(vip, None).unwrap()).unwrap();
        let sent = socket.send_to_with_flags(b"x", &to, FAST_OPEN);
        assert_eq!(sent.unwrap(), 1, "{vip}");
        assert!(!greeting(socket).is_empty());
        // One that is not waited for.
        let socket = bed.client.run(|| stream(vip, None).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        assert!(socket.connect(&to).is_err(), "in progress");
        socket.set_nonblocking(false).unwrap();
        eventually(true, || socket.peer_addr().is_ok());
        assert!(!greeting(socket).is_empty());
        // Over several ways at once, if the kernel can.
        if let Ok(socket) = bed.client.run(|| stream(vip, Some(Protocol::MPTCP))).unwrap() {
            socket
                .connect(&to)
                .unwrap_or_else(|error| panic!("MPTCP to {vip}: {error}"));
            assert!(!greeting(socket).is_empty());
        }
    }
}

fn who_is_asked_for_the_other_end_names_the_virtual_address(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, PORT), PortMap::udp(53, PORT)];
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    for vip in [VIP, VIP6] {
        let (stream, _) = bed.open(vip, 80).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), SocketAddr::new(ip(vip), 80));
        assert_eq!(
            stream.try_clone().unwrap().peer_addr().unwrap(),
            stream.peer_addr().unwrap()
        );
        let socket = loose(bed, if vip == VIP { "0.0.0.0" } else { "::" });
        socket.connect((ip(vip), 53)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), SocketAddr::new(ip(vip), 53));
        ask(&socket).unwrap();
        // A socket that is connected anew has another end.
        socket
            .connect((ip(if vip == VIP { "10.9.0.12" } else { "fd09::12" }), PORT))
            .unwrap();
        assert_eq!(socket.peer_addr().unwrap().port(), PORT);
        assert_ne!(socket.peer_addr().unwrap().ip(), ip(vip));
    }
}

fn a_port_that_nobody_listens_on_is_refused_by_the_backends_own_word(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::udp(53, PORT + 1), PortMap::tcp(53, PORT + 1)];
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    for vip in [VIP, VIP6] {
        let started = Instant::now();
        let error = bed.call(vip, 53).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let socket = loose(bed, if vip == VIP { "0.0.0.0" } else { "::" });
        socket.connect((ip(vip), 53)).unwrap();
        // Errors of this kind are limited to some a second.
        eventually(Some(ErrorKind::ConnectionRefused), || {
            socket.set_read_timeout(Some(PATIENCE / 20)).unwrap();
            let asked = socket.send(b"?").and_then(|_| socket.recv(&mut [0]));
            asked.err().map(|error| error.kind())
        });
        assert!(started.elapsed() < PATIENCE);
    }
}

/// A backend behind a way on which packets are shorter than either end has them.
fn narrow(bed: &Bed) -> Netns {
    let far = Netns::create().unwrap();
    let mut batch = Batch::new();
    batch.add(NewLink::veth("r0", VethPeer::new("f0").netns(far.as_fd())));
    RouteSocket::open(&bed.server).unwrap().execute(batch).unwrap();
    ip_batch(
        &far,
        "link set lo up\nlink set f0 up\naddr add 10.8.0.2/24 dev f0\naddr add fd08::2/64 dev f0 nodad\n\
         route add default via 10.8.0.1\nroute add default via fd08::1\n",
    );
    ip_batch(
        &bed.server,
        "link set r0 up\naddr add 10.8.0.1/24 dev r0\naddr add fd08::1/64 dev r0 nodad\n\
         route add 10.8.0.2/32 dev r0 mtu lock 1280\nroute add fd08::2/128 dev r0 mtu lock 1280\n",
    );
    let forwards = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ];
    bed.server.set_sysctls(&forwards).unwrap();
    ip_batch(
        &bed.client,
        "route add 10.8.0.0/24 via 10.9.0.11\nroute add fd08::/64 via fd09::2\n",
    );
    for addr in ["10.8.0.2", "fd08::2"] {
        serve(&far, ip(addr), PORT);
    }
    far
}

fn what_is_too_long_for_the_way_learns_how_long_it_may_be(kit: &Kit, bed: &Bed) {
    let _far = narrow(bed);
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.backends.truncate(1);
    web.backends[0].addrs = vec![ip("10.8.0.2"), ip("fd08::2")];
    web.ports = vec![PortMap::tcp(80, PORT), PortMap::udp(53, PORT)];
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    for vip in [VIP, VIP6] {
        let (mut stream, _) = bed.open(vip, 80).unwrap();
        let words = vec![b'x'; 100_000];
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&words));
        let mut back = vec![0; 100_000];
        stream
            .read_exact(&mut back)
            .unwrap_or_else(|error| panic!("TCP to {vip}: {error}"));
        writing.join().unwrap().unwrap();
        // Rules send datagrams of IPv6 on by a route that has learned nothing, and routers do not cut them up.
        if !kit.is_ebpf() && vip == VIP6 {
            continue;
        }
        let socket = loose(bed, if vip == VIP { "0.0.0.0" } else { "::" });
        socket.connect((ip(vip), 53)).unwrap();
        socket.set_read_timeout(Some(PATIENCE / 20)).unwrap();
        eventually(true, || {
            let sent = socket.send(&[b'x'; 1400]);
            sent.and_then(|_| socket.recv(&mut [0; 256])).is_ok()
        });
    }
}
