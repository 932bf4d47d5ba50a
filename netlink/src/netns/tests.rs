use std::net::UdpSocket;

use super::*;
use crate::testing;

#[test]
fn a_socket_opened_inside_belongs_to_the_namespace() {
    if testing::netns().is_none() {
        return;
    }
    let here = Netns::current().unwrap();
    let there = Netns::create().unwrap();
    assert_ne!(here.id(), there.id());
    // Loopback is down in a new namespace, so its address cannot be sent to.
    let socket = there.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let error = socket.send_to(b"x", "127.0.0.1:9").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    assert_eq!(there.run(|| Netns::current().unwrap().id()).unwrap(), there.id());
    assert_eq!(
        Netns::current().unwrap().id(),
        here.id(),
        "the caller's own thread stays where it was"
    );
}

#[test]
fn a_named_namespace_lives_until_it_is_removed() {
    if testing::netns().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/netns/one");
    let Some(made) = testing::made(Netns::create_at(&path)) else {
        return;
    };
    assert_eq!(Netns::open(&path).unwrap().id(), made.id());
    assert!(matches!(Netns::create_at(&path), Err(NetnsError::Exists { .. })));
    drop(made);
    let second = path.with_file_name("two");
    Netns::create_at(&second).unwrap();
    Netns::remove_at(&path).unwrap();
    Netns::remove_at(&path).unwrap();
    assert!(matches!(Netns::open(&path), Err(NetnsError::NotFound { .. })));
    Netns::remove_at(&second).unwrap();
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !left.contains(dir.path().to_str().unwrap()),
        "no mount is left behind:\n{left}"
    );
}

#[test]
fn what_is_not_a_network_namespace_is_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Netns::open(file.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is not a network namespace", file.path().display())
    );
    let error = Netns::open("/proc/self/ns/mnt").unwrap_err();
    assert_eq!(error.to_string(), "/proc/self/ns/mnt is not a network namespace");
    let error = Netns::open("/run/netns/no-such-name").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the network namespace /run/netns/no-such-name does not exist"
    );
    assert!(matches!(error, NetnsError::NotFound { .. }));
}

#[test]
fn settings_are_those_of_the_namespace() {
    if testing::netns().is_none() {
        return;
    }
    let netns = Netns::create().unwrap();
    let forward = ["net/ipv4/ip_forward"];
    netns.set_sysctls(&[(forward[0], "1")]).unwrap();
    assert_eq!(netns.sysctls(&forward).unwrap(), ["1"]);
    assert_eq!(Netns::create().unwrap().sysctls(&forward).unwrap(), ["0"]);
    let error = netns
        .set_sysctls(&[("net/ipv4/no_such_setting", "1")])
        .unwrap_err();
    assert!(
        error.to_string().contains("/proc/sys/net/ipv4/no_such_setting"),
        "{error}"
    );
}
