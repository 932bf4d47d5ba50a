//! Hosts change their keys for encrypted networks: no packet is lost, nothing is seen, and the old keys are gone.

use std::{net::SocketAddr, path::Path, time::Instant};

use weft_tests::{
    flow::Flow,
    keys::{copies, is_answered},
};
use weft_wireguard::Secret32;

use super::{
    bed::{Bed, Node, alone, report, soon},
    secret::{HOSTS, end, ends, flow, has_tap, make_secret, overflows, process_of, unseen, uses},
    traffic::Stream,
};

/// The first key of a host, as it is in its file: after the version and the number.
fn first_key(node: &Node) -> [u8; 32] {
    let bytes = std::fs::read(node.data_dir().join("wireguard.keys")).unwrap();
    assert_eq!(bytes[1], 1, "it is the first");
    bytes[2..34].try_into().unwrap()
}

/// The files below a directory that have some bytes in them.
pub fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let has = |path: &std::path::PathBuf| {
        let content = std::fs::read(path).unwrap_or_default();
        content.windows(bytes.len()).any(|window| window == bytes)
    };
    entries
        .filter(has)
        .map(|path| path.display().to_string())
        .collect()
}

#[test]
fn keys_change_under_load_and_no_packet_is_lost_or_seen() {
    if !has_tap() {
        return;
    }
    alone(|| {
        let bed = Bed::cluster(&HOSTS);
        make_secret(&bed);
        let ends = ends(&bed, "");
        let [one, two, three] = &ends[..] else {
            panic!("three hosts");
        };
        let old = first_key(&bed["h1"]);
        let old_public = Secret32::new(old).public_key();
        let other_public = Secret32::new(first_key(&bed["h2"])).public_key();
        let flows = [flow(one, two), flow(two, one), flow(one, three), flow(three, two)];
        let streams = [
            Stream::open("h2", &one.sandbox, two.address()),
            Stream::open("h1", &three.sandbox, one.address()),
        ];
        let overflown = overflows(&bed, &ends);
        let all_go_on = |more: u64| flows.iter().for_each(|flow| flow.goes_on(more));
        all_go_on(100);
        let processes = HOSTS.map(|name| process_of(&bed[name]).unwrap());

        let begun = Instant::now();
        unseen(&bed, "a host changes its key", || {
            let said = bed["h1"].weft("node rotate-key");
            assert!(said.contains("(number 2) follows SHA256:"), "{said}");
            let refused = bed["h1"].try_weft("node rotate-key");
            assert_eq!(refused.code, 4, "{refused:?}");
            assert!(refused.stderr.contains("is being changed already"), "{refused:?}");
            let refused = bed["h2"].try_weft("node rotate-key h1");
            assert_eq!(refused.code, 2, "{refused:?}");
            let status = bed["h1"].weft("status");
            assert!(status.contains("key change:"), "{status}");
            uses(&bed, "h1", 2);
            all_go_on(300);
        });
        report("a key changed on three hosts under load", begun);
        assert_eq!(files_with(bed["h1"].data_dir(), &old), [""; 0]);
        let process = process_of(&bed["h1"]).unwrap();
        soon("the old key to be gone from memory", || {
            match copies(process.as_raw().unsigned_abs(), &old[4..28]) {
                0 => Ok(()),
                count => Err(count),
            }
        });
        let at = |node: &Node| SocketAddr::new(node.address(), 51820);
        assert!(!is_answered(&bed["h3"].host, at(&bed["h2"]), &old, &other_public));
        assert!(!is_answered(
            &bed["h3"].host,
            at(&bed["h1"]),
            &[7; 32],
            &old_public
        ));

        // Two hosts at once, and the agent of one is killed in the middle of it.
        let begun = Instant::now();
        unseen(&bed, "two change their keys, and an agent is killed", || {
            bed["h1"].weft("node rotate-key");
            bed["h2"].weft("node rotate-key");
            bed["h1"].kill_agent();
            soon("the agent of h1 to be missed", || {
                match bed["h2"].json("node inspect h1") {
                    node if node["state"] == "away" => Ok(()),
                    node => Err(node["state"].to_string()),
                }
            });
            // Longer than a change takes: h1's tunnels go on by the key of h2 that they know.
            all_go_on(1500);
            bed["h1"].restart_agent();
            uses(&bed, "h1", 3);
            uses(&bed, "h2", 2);
            all_go_on(300);
        });
        report("two keys changed, with a crash", begun);
        assert_eq!(HOSTS.map(|name| process_of(&bed[name]).unwrap()), processes);

        // A machine that gives the process that encrypts no processor for half a second loses packets by any key.
        let flows = flows.map(Flow::stop);
        let overflown = overflows(&bed, &ends) - overflown;
        let mut all_lost = 0;
        for (sent, lost) in flows {
            println!("{sent} datagrams, {} lost: {lost:?}", lost.len());
            all_lost += lost.len() as u64;
        }
        println!("{overflown} packets found a queue full");
        assert!(all_lost <= overflown, "{all_lost} lost");
        for stream in streams {
            let name = stream.name.clone();
            let streamed = stream.close();
            println!("a stream to {name}: {streamed:?}");
        }
        let detail = bed["h3"].weft("node inspect h1");
        assert!(
            detail.contains("by its key number 3 and this host's number 1"),
            "{detail}"
        );
        drop(ends);
        end(bed);
    });
}
