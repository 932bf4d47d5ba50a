//! Whether a key is still good for anything.

use std::{
    fs::File,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::FileExt,
    time::Duration,
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use netns_harness::Inside;

/// Whether somebody answers whoever begins a handshake of WireGuard with the private half of one key, with the holder of
/// another.
///
/// # Panics
///
/// If nothing can be sent.
pub fn is_answered(from: &impl Inside, to: SocketAddr, own: &[u8; 32], theirs: &[u8; 32]) -> bool {
    let (own, theirs) = (StaticSecret::from(*own), PublicKey::from(*theirs));
    let mut tunn = Tunn::new(own, theirs, None, None, 7, None);
    let mut out = [0; 256];
    let TunnResult::WriteToNetwork(initiation) = tunn.format_handshake_initiation(&mut out, false) else {
        panic!("no initiation");
    };
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send_to(initiation, to).unwrap();
    socket.recv(&mut [0; 256]).is_ok()
}

/// How often some bytes are in what a process can write to.
///
/// # Panics
///
/// If there is no such process.
pub fn copies(pid: u32, bytes: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut content = vec![0; (to - from) as usize];
        // Some of what the kernel maps cannot be read.
        if memory.read_exact_at(&mut content, from).is_ok() {
            found += content
                .windows(bytes.len())
                .filter(|window| *window == bytes)
                .count();
        }
    }
    found
}
