use std::{fs, os::fd::AsFd as _, path::PathBuf};

use super::*;
use crate::{netns::netns_cookie, testing};

#[test]
fn one_namespace_that_is_gone_is_missing_alone() {
    if testing::netns().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join("netns").join(name);
    let Some(first) = testing::made(Netns::create_at(path("first"))) else {
        return;
    };
    let second = Netns::create_at(path("second")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let cookie = |socket: &OwnedFd| netns_cookie(socket.as_fd()).unwrap();
    let cookies = [&first, &second].map(|netns| cookie(&netns.socket(SocketKind::Route).unwrap()));

    // More than are open at one time, and two that are none in the middle of them.
    let (gone, file) = (40, 41);
    let paths: Vec<PathBuf> = (0..3 * AT_ONCE)
        .map(|n| match n {
            n if n == gone => path("gone"),
            n if n == file => dir.path().join("file"),
            n if n % 2 == 0 => path("first"),
            _ => path("second"),
        })
        .collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let kinds = [SocketKind::Route, SocketKind::Netfilter];
    let seen = into_each(&paths, &kinds, |netns, sockets| {
        let [route, netfilter] = <[_; 2]>::try_from(sockets).unwrap();
        (netns.id(), cookie(&route), cookie(&netfilter))
    });
    assert_eq!(seen.len(), paths.len());
    for (n, seen) in seen.into_iter().enumerate() {
        match seen {
            Err(NetnsError::NotFound { path: said }) if n == gone => assert_eq!(said, path("gone")),
            Err(NetnsError::NotANetns { .. }) if n == file => {}
            Ok(seen) if n != gone && n != file => {
                let netns = [&first, &second][n % 2];
                assert_eq!(seen, (netns.id(), cookies[n % 2], cookies[n % 2]));
            }
            other => panic!("{n}: {other:?}"),
        }
    }
    for name in ["first", "second"] {
        Netns::remove_at(path(name)).unwrap();
    }
}

#[test]
fn nothing_is_looked_into_where_there_is_nothing() {
    assert!(into_each(&[], &[SocketKind::Route], |_, _| ()).is_empty());
}
