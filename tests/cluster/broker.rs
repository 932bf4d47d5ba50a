//! What an agent that root starts keeps, and the broker that keeps the rest, whatever is killed.

use std::{fs, process::Command, thread, time::Instant};

use netns_harness::{Inside as _, Output};

use super::{
    bed::{Bed, COMMAND, Node, alone, has_root, soon},
    privileges::{agents, bits, capabilities_of, limits_of},
};

/// One host, with an agent that root started.
fn one_host(test: impl Fn(&Bed, &Node) + Sync) {
    if has_root() {
        alone(|| {
            let bed = Bed::cluster_with("nft", &["h1"]);
            test(&bed, &bed["h1"]);
            bed.close();
        });
    }
}

#[test]
fn an_agent_that_root_starts_keeps_no_more_and_gives_its_children_no_more() {
    one_host(|_, h1| {
        let agent = h1.agent_pid();
        assert_eq!(limits_of(agent), (agents("nft"), false));
        let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        let bound = format!("CapBnd:\t{:016x}\n", agents("nft"));
        assert!(status.contains(&bound), "{status}");
    });
}

/// Those at work and standing by, in this order.
fn brokers() -> Vec<u32> {
    let mut found: Vec<(u32, bool)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        // As agents and brokers start them; a run of these tests may have such a word of its own.
        if words.starts_with(&[&b"/proc/self/exe"[..], b"broker"]) {
            found.push((pid, words.contains(&&b"--stand-by"[..])));
        }
    }
    // One that has taken over was standing by once, and is older than the one that does.
    found.sort_by_key(|(pid, stands_by)| (*stands_by, *pid));
    found.into_iter().map(|(pid, _)| pid).collect()
}

fn both_brokers() -> [u32; 2] {
    soon("two brokers", || match brokers()[..] {
        [at_work, stands_by] => Ok([at_work, stands_by]),
        ref others => Err(format!("{others:?}")),
    })
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_broker_that_is_killed_is_replaced_and_an_agent_without_any_ends_and_starts_again() {
    one_host(|bed, h1| {
        let agent = h1.agent_pid();
        let [at_work, stands_by] = both_brokers();
        let of_agent = ["bpf", "perfmon", "chown", "setpcap"];
        let all = capabilities_of("weft.service");
        let expected: Vec<_> = all
            .into_iter()
            .filter(|name| !of_agent.contains(&name.as_str()))
            .collect();
        for broker in [at_work, stands_by] {
            assert_eq!(limits_of(broker), (bits(&expected), false));
        }
        let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        assert!(status.contains("Seccomp:\t2\n"), "{status}");

        h1.weft("network create app");
        let sandbox = h1.host.sandbox("one").unwrap();
        let mut sleep = Command::new("sleep");
        let process = sandbox.spawn(sleep.arg("1000"), Output::Discard).unwrap();
        let pid = process.pid();
        let attach = || {
            h1.weft(&format!("network connect app pid:{pid} --name one"));
            h1.weft(&format!("network disconnect app pid:{pid}"));
        };
        attach();
        // What is opened once stays, and what lingers goes: in the end ten more change nothing.
        let mut before = [0, 0];
        soon("descriptors that were closed", || {
            (0..10).for_each(|_| attach());
            let now = [agent, at_work].map(open_files);
            let was = std::mem::replace(&mut before, now);
            (was == now)
                .then_some(())
                .ok_or(format!("{now:?}, before {was:?}"))
        });

        // What stood by does the work, and another one stands by; then that one is killed.
        kill(at_work);
        attach();
        let [now, next] = both_brokers();
        assert!(now == stands_by && next != at_work, "{now} {next}");
        kill(next);
        soon("another one that stands by", || match brokers()[..] {
            [first, second] if first == now && second != next => Ok(()),
            ref others => Err(format!("{others:?}")),
        });
        attach();
        assert_eq!(h1.agent_pid(), agent);

        // Both at once, of which neither can start the other.
        let both = both_brokers();
        let stop = |pid: u32| {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        };
        both.into_iter().for_each(stop);
        both.into_iter().for_each(kill);
        soon("the end of the agent", || {
            let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap_or_default();
            if status.is_empty() || status.contains("State:\tZ") {
                Ok(())
            } else {
                Err(status)
            }
        });
        h1.start_agent();
        h1.await_agent();
        attach();
        // They end with the agent, also when it is killed.
        let both = both_brokers();
        kill(h1.agent_pid());
        soon("the end of the brokers", || match brokers() {
            left if left.iter().any(|pid| both.contains(pid)) => Err(format!("{left:?}")),
            _ => Ok(()),
        });
        h1.start_agent();
        h1.await_agent();
        bed.all_well();
    });
}

/// Waits until a broker has begun to make the namespace of a network, which takes it some milliseconds, and kills it.
fn kill_halfway(h1: &Node, broker: u32) {
    let watch = || {
        let begun = Instant::now();
        while fs::read_dir("/run/weft/netns").map_or(0, Iterator::count) == 0 {
            assert!(begun.elapsed() < COMMAND, "no namespace was made");
        }
        kill(broker);
    };
    h1.host.run(watch).unwrap();
}

#[test]
fn a_broker_that_is_killed_while_it_makes_a_namespace_keeps_nobody_from_a_network() {
    one_host(|bed, h1| {
        h1.weft("network create app");
        let _sandbox = h1.host.sandbox("one").unwrap();
        let mut brokers = both_brokers();
        for _ in 0..6 {
            let at_work = brokers[0];
            thread::scope(|scope| {
                scope.spawn(|| kill_halfway(h1, at_work));
                h1.weft("network connect app one --name one");
            });
            h1.weft("network disconnect app one");
            brokers = both_brokers();
            assert!(!brokers.contains(&at_work));
        }
        bed.all_well();
        assert_eq!(
            h1.host
                .run(|| fs::read_dir("/run/weft/netns").map_or(0, Iterator::count))
                .unwrap(),
            0
        );
    });
}

#[test]
fn with_the_capabilities_of_an_agent_nothing_leads_out_of_it() {
    one_host(|_, h1| {
        let sandbox = h1.host.sandbox("other").unwrap();
        let mut sleep = Command::new("sleep");
        let process = sandbox.spawn(sleep.arg("1000"), Output::Discard).unwrap();
        let tries = [
            "readlink /proc/$0/ns/net",
            "nsenter --net=/run/netns/other true",
            "unshare --net true",
            "mount -t tmpfs none /mnt && umount /mnt",
        ];
        for line in tries {
            let run = |mut command: Command| {
                command.args(["sh", "-c", line, &process.pid().to_string()]);
                h1.host.exec(&mut command, COMMAND)
            };
            assert!(run(Command::new("env")).unwrap().status.success(), "{line}");
            let mut limited = Command::new("setpriv");
            let set = "-all,+net_admin,+net_bind_service";
            limited.args([
                &format!("--bounding-set={set}"),
                "--inh-caps=-all",
                "--no-new-privs",
            ]);
            let refused = run(limited);
            assert!(
                refused.is_err() || refused.is_ok_and(|done| !done.status.success()),
                "{line}"
            );
        }
    });
}
