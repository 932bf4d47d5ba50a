//! What reads bytes of others, fed with what makes it take new ways: libFuzzer on a stable compiler. `fuzz/run` builds and
//! starts it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

/// Each is described where it is.
const TARGETS: [(&str, Target); 12] = [
    ("gossip", weft_gossip::fuzz::packet),
    ("dns", weft_dns::fuzz::message),
    ("frame", weft_wireguard::fuzz::frame),
    ("packets", weft_wireguard::fuzz::packets),
    ("control", weft_wireguard::fuzz::control),
    ("broker", weft_netlink::fuzz::request),
    ("neighbour", weft_netlink::fuzz::neighbour),
    ("records", weft::fuzz::records),
    ("plugin", weft::fuzz::plugin),
    ("api", weft::fuzz::api),
    ("words", weft::fuzz::words),
    ("lab", weft::fuzz::lab_file),
];

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("WEFT_FUZZ").unwrap_or_default();
        let found = TARGETS.iter().find(|(target, _)| *target == name);
        let Some((_, target)) = found else {
            let names: Vec<_> = TARGETS.iter().map(|(target, _)| *target).collect();
            eprintln!("error: WEFT_FUZZ is to be one of {}", names.join(", "));
            std::process::exit(2);
        };
        TARGET.get_or_init(|| *target);
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            target(data);
        }
    }
);
