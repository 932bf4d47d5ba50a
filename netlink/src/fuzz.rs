//! What the decoders of this crate are given by a fuzzer, see `fuzz/`.

use std::path::{Component, Path};

use crate::{
    arp,
    broker::{Checked, MAX_SOCKETS, check},
};

/// A request that came to the broker from an agent in somebody else's hands.
pub fn request(data: &[u8]) {
    let dir = Path::new("/run/weft/netns");
    match check(data, dir) {
        Some(Checked::Place(path)) => {
            let parts: Vec<_> = path
                .strip_prefix(dir)
                .expect("it is in the folder")
                .components()
                .collect();
            assert!(
                matches!(parts[..], [Component::Normal(name)] if !name.is_empty()),
                "{path:?}"
            );
        }
        Some(Checked::Settings(names)) => {
            for name in names {
                let path = Path::new("/proc/sys").join(&name);
                let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
                assert!(
                    path.starts_with("/proc/sys/net") && path.components().all(is_plain),
                    "{name}"
                );
            }
        }
        Some(Checked::Sockets(each)) => assert!((1..=MAX_SOCKETS).contains(&each)),
        None => {}
    }
}

/// A frame that came over the link of an endpoint.
pub fn neighbour(data: &[u8]) {
    // Otherwise the compiler sees that nothing follows, and leaves all of it out.
    if let Some((address, _)) = std::hint::black_box(arp::holder(data)) {
        assert!(data.len() >= if address.is_ipv4() { 14 + 18 } else { 14 + 40 + 24 });
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::broker::{Request, SocketKind};

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..200), name in "[a-z./]{0,12}", flip in any::<(usize, u8)>()) {
            request(&bytes);
            neighbour(&bytes);
            let setting = format!("net/ipv4/conf/{name}/rp_filter");
            for asked in [
                Request::CreateAt(Path::new("/run/weft/netns").join(name.trim_start_matches('/'))),
                Request::WriteSettings(vec![(setting, "1".to_owned())]),
                Request::Sockets(vec![SocketKind::Route, SocketKind::Neighbours { link: 1, ipv4: true }]),
            ] {
                let mut asked = postcard::to_stdvec(&asked).unwrap();
                request(&asked);
                let place = flip.0 % asked.len();
                asked[place] ^= flip.1;
                request(&asked);
            }
        }
    }
}
