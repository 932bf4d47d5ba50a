//! Encrypted networks where the kernel's WireGuard encrypts on some hosts and `weft tunnels` on others. Only where the kernel
//! has it: `.ci/guest 6.12 cluster kernel_wireguard`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use netns_harness::Inside;
use weft_netlink::{
    netns::Netns,
    wireguard::{Device, WireguardSocket},
};

use super::{
    bed::{Bed, Endpoint, Node, alone, report, soon},
    secret::{
        HOSTS, delete_links, encryption, end, ends, flow, has_tap, make_secret, process_of, tunnels_within,
        unseen, uses,
    },
    traffic::{Caller, Stream, all_go_on, answering},
};

const TUNNELS: &str = "/run/weft/netns/wireguard";

fn has_kernel_wireguard() -> bool {
    match weft_wireguard::probe_kernel() {
        Ok(()) => true,
        Err(why) => {
            // A kernel of Debian's has it, and that is where this is run.
            println!("skipped: {why}");
            false
        }
    }
}

/// The WireGuard device of a host.
fn device(node: &Node) -> Option<Device> {
    let look = || {
        let netns = Netns::open(TUNNELS).ok()?;
        WireguardSocket::open(&netns).unwrap().device("wg0").unwrap()
    };
    node.host.run(look).unwrap()
}

fn received(node: &Node) -> u64 {
    let device = device(node).unwrap();
    device.peers.iter().map(|peer| peer.received_bytes).sum()
}

/// Deletes the device under everybody.
fn delete_device(node: &Node) {
    delete_links(node, &[TUNNELS.into()], |link| link.name == "wg0");
}

fn reaches(from: &Endpoint, to: &Endpoint) -> Result<(), String> {
    let pinged = from.sandbox.ping(to.address(), Duration::from_secs(1));
    pinged.map(drop).map_err(|error| error.to_string())
}

/// Restarts the agent of a host with something else that encrypts, and waits until it does.
fn encrypt_by(bed: &Bed, name: &str, wireguard: &'static str) {
    let node = &bed[name];
    node.kill_agent();
    node.encrypt_by(wireguard);
    node.restart_agent();
    soon(format!("{name} to encrypt by {wireguard}"), || {
        match encryption(node) {
            encryption if encryption["datapath"] == wireguard && encryption["running"] == true => Ok(()),
            encryption => Err(format!("{encryption} {:?}", node.problems())),
        }
    });
    // The kernel's handshakes bear times 27 s before those of the process, and no peer takes one from before the last.
    tunnels_within(Duration::from_secs(60), node, HOSTS.len() - 1);
}

#[test]
fn the_kernel_and_the_process_encrypt_in_one_cluster_and_nothing_is_seen_in_any_phase() {
    if !has_kernel_wireguard() || !has_tap() {
        return;
    }
    alone(|| {
        let bed = Bed::cluster(&HOSTS);
        make_secret(&bed);
        bed["h1"].weft("service create --network secret --lb rr web");
        let ends = ends(&bed, "--service web");
        let [one, two, three] = &ends[..] else {
            panic!("three hosts");
        };
        let client = bed["h1"].connected("client", "secret", "");
        let vip = bed["h1"].vip("web");
        let all_reach_all = || {
            for from in &ends {
                for to in &ends {
                    soon("everybody from everywhere", || reaches(from, to));
                }
            }
        };

        // From the process to the kernel, on one host and then on another: the third stays as it is.
        unseen(&bed, "h1 goes over to the kernel", || {
            encrypt_by(&bed, "h1", "kernel");
            all_reach_all();
            answering(&client.sandbox, vip, 3);
        });
        assert!(process_of(&bed["h1"]).is_none(), "the process has ended");
        unseen(&bed, "h3 goes over to the kernel", || {
            encrypt_by(&bed, "h3", "kernel");
            all_reach_all();
            answering(&client.sandbox, vip, 3);
        });
        let status = bed["h1"].weft("status");
        assert!(
            status.contains("encryption:  kernel (it was asked for), at 100."),
            "{status}"
        );
        let inspect = bed["h3"].weft("network inspect secret");
        assert!(inspect.contains("kernel (it was asked for)"), "{inspect}");
        let detail = bed["h1"].json("node inspect h2");
        assert!(detail["tunnel"]["received_bytes"].as_u64() > Some(0), "{detail}");
        assert!(detail["tunnel"]["handshake_ms_ago"].is_u64(), "{detail}");

        // Agents go and come: no stream notices, and the device is the one it was.
        let streams = [
            Stream::open("h2", &one.sandbox, two.address()),
            Stream::open("h3", &one.sandbox, three.address()),
            Stream::open("h1", &two.sandbox, one.address()),
        ];
        let callers = [Caller::start(&client.sandbox, vip)];
        let before = received(&bed["h1"]);
        unseen(&bed, "kill -9 of all agents", || {
            HOSTS.iter().for_each(|name| bed[name].kill_agent());
            all_go_on(&streams, &callers, 50);
        });
        unseen(&bed, "agents again", || {
            HOSTS.iter().for_each(|name| bed[name].start_agent());
            HOSTS.iter().for_each(|name| bed[name].await_agent());
            bed.all_well();
            all_go_on(&streams, &callers, 50);
        });
        assert!(received(&bed["h1"]) > before, "its sessions are counted on");
        let [caller] = callers;
        assert_eq!(caller.stop().1, Vec::<String>::new());

        // Keys change under load, of the kernel's and of the process.
        let flows = [flow(one, two), flow(two, one), flow(one, three), flow(three, one)];
        let begun = Instant::now();
        unseen(&bed, "three keys change", || {
            for name in HOSTS {
                bed[name].weft("node rotate-key");
                uses(&bed, name, 2);
            }
            flows.iter().for_each(|flow| flow.goes_on(100));
        });
        report("three keys changed", begun);
        for flow in flows {
            let (sent, lost) = flow.stop();
            println!("{sent} datagrams, {} lost", lost.len());
            assert!(lost.len() < 2000, "{} of {sent}", lost.len());
        }
        all_go_on(&streams, &[], 20);
        for stream in streams {
            let name = stream.name.clone();
            println!("a stream to {name}: {:?}", stream.close());
        }

        // Without the device nothing leaves, least of all in clear.
        unseen(&bed, "the device deleted, without an agent", || {
            bed["h1"].kill_agent();
            delete_device(&bed["h1"]);
            for to in [two, three] {
                assert!(reaches(one, to).is_err(), "reached without the device");
                assert!(reaches(to, one).is_err(), "heard without the device");
            }
        });
        unseen(&bed, "the device again", || {
            bed["h1"].restart_agent();
            all_reach_all();
        });
        unseen(&bed, "the device deleted, with an agent", || {
            delete_device(&bed["h3"]);
            all_reach_all();
        });
        unseen(&bed, "the namespace of the tunnels taken away", || {
            let remove = || Netns::remove_at(TUNNELS).unwrap();
            bed["h3"].host.run(remove).unwrap();
            all_reach_all();
        });
        unseen(&bed, "h1 goes back to the process", || {
            encrypt_by(&bed, "h1", "userspace");
            all_reach_all();
        });
        assert!(device(&bed["h1"]).is_none(), "the device is gone");

        // Nothing to encrypt, nothing left.
        bed["h3"].weft("network disconnect secret end-h3");
        let left = || bed["h3"].host.run(|| Path::new(TUNNELS).exists()).unwrap();
        soon("nothing on h3", || match left() {
            false => Ok(()),
            true => Err("the namespace of the tunnels"),
        });
        drop((ends, client));
        end(bed);
    });
}
