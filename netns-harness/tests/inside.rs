//! Processes, sandboxes, captures, isolation and the audit. Each test runs as root or as an ordinary user.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use netns_harness::{
    CaptureOptions, Host, Inside, Isolate, IsolateError, Isolation, IsolationSwitch, Lab, LabError, Output,
    Plug, Signal, Snapshot, SwitchOptions, UserNamespace, isolated, isolated_with, spawn_isolated,
};

const SOON: Duration = Duration::from_secs(5);

fn pair(lab: &Lab) -> (Host, Host) {
    let subnet: IpNet = "10.1.0.0/24".parse().unwrap();
    let lan = lab.switch("lan", SwitchOptions::new().subnet(subnet)).unwrap();
    let hosts = lab.hosts(&["h1", "h2"]).unwrap();
    lab.plug(&lan, &hosts).unwrap();
    (hosts[0].clone(), hosts[1].clone())
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn output(place: &impl Inside, script: &str) -> String {
    place
        .exec(&mut sh(script), SOON)
        .unwrap()
        .success()
        .unwrap()
        .stdout
}

#[test]
fn isolation_is_an_own_machine_as_far_as_programs_can_tell() {
    isolated_with(&Isolate::new().hostname("island"), || {
        assert_eq!(nix::unistd::geteuid().as_raw(), 0);
        assert_eq!(
            fs::read_to_string("/proc/sys/kernel/hostname").unwrap(),
            "island\n"
        );
        assert_eq!(std::process::id(), 2, "the init is 1");
        let snapshot = Snapshot::take().unwrap();
        assert_eq!(snapshot.links.iter().collect::<Vec<_>>(), ["lo"]);
        assert_eq!(snapshot.processes.len(), 2, "{:?}", snapshot.processes);
        let run: Vec<_> = fs::read_dir("/run")
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(run, ["netns-harness"]);
        let isolation = Isolation::current().unwrap();
        assert!(isolation.outside_pid > 2);
        // The loopback interface works.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        socket.recv(&mut [0]).unwrap();
    });
}

#[test]
fn the_init_reaps_orphans() {
    isolated(|| {
        let lab = Lab::new("orphans").unwrap();
        let host = lab.host("h1").unwrap();
        let pid: i32 = output(&host, "sh -c 'sleep 0.05 & echo $!'")
            .trim()
            .parse()
            .unwrap();
        netns_harness::eventually(
            "the reaping of the orphan",
            SOON,
            Duration::from_millis(5),
            || {
                if Path::new(&format!("/proc/{pid}")).exists() {
                    Err("it is there")
                } else {
                    Ok(())
                }
            },
        )
        .unwrap();
        lab.close().unwrap();
    });
}

#[test]
fn what_is_kept_under_run_stays_reachable_on_hosts_too() {
    // Outside the isolation only root can make such a directory, so isolate twice.
    isolated(|| {
        fs::create_dir_all("/run/kept/deep").unwrap();
        fs::write("/run/kept/deep/file", "here").unwrap();
        fs::write("/run/lost", "").unwrap();
        let mut command =
            sh("cat /run/kept/deep/file && ! test -e /run/lost && echo ' yes' > /run/kept/answer");
        let options = Isolate::new().keep("/run/kept").keep("/run/absent");
        assert!(
            spawn_isolated(&mut command, &options)
                .unwrap()
                .wait()
                .unwrap()
                .success()
        );
        assert_eq!(fs::read_to_string("/run/kept/answer").unwrap(), " yes\n");
    });
}

#[test]
fn a_process_is_started_watched_signalled_and_killed() {
    isolated(|| {
        let lab = Lab::new("processes").unwrap();
        let host = lab.host("h1").unwrap();
        let mut script =
            sh("trap 'echo caught; exit 3' USR1; echo ready; echo oops >&2; while :; do sleep 0.01; done");
        let process = host.spawn(&mut script, Output::Keep).unwrap();
        process.wait_for_line(SOON, |line| line == "ready").unwrap();
        assert!(matches!(
            process.wait(Duration::from_millis(20)),
            Err(LabError::StillRunning { .. })
        ));
        process.signal(Signal::SIGUSR1).unwrap();
        assert_eq!(process.wait(SOON).unwrap().code(), Some(3));
        assert_eq!(
            process.wait_for_line(SOON, |line| line == "caught").unwrap(),
            "caught"
        );
        let missing = process
            .wait_for_line(SOON, |line| line == "never")
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("the awaited line from sh in host h1 did not happen"),
            "{missing}"
        );
        assert_eq!(process.stderr(), "oops\n");
        process.signal(Signal::SIGTERM).unwrap();

        let mut script = sh("trap '' TERM; echo deaf; while :; do sleep 1; done");
        let stubborn = host.spawn(&mut script, Output::Keep).unwrap();
        stubborn.wait_for_line(SOON, |line| line == "deaf").unwrap();
        stubborn.signal(Signal::SIGTERM).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(stubborn.kill().unwrap().signal(), Some(9));

        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let process = host
            .spawn(&mut sh("echo one; echo two >&2"), Output::File(log.clone()))
            .unwrap();
        process.wait(SOON).unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "one\ntwo\n");

        let error = host
            .exec(&mut sh("echo bad news >&2; exit 7"), SOON)
            .unwrap()
            .success()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "sh in host h1 ended with exit status: 7, saying: bad news"
        );
        let error = host
            .exec(&mut Command::new("/no/such/program"), SOON)
            .unwrap_err();
        assert_eq!(error.to_string(), "could not start /no/such/program in host h1");
        let error = host
            .exec(&mut sh("sleep 100"), Duration::from_millis(30))
            .unwrap_err();
        assert!(
            error.to_string().ends_with("in host h1 did not end within 30ms"),
            "{error}"
        );
        lab.close().unwrap();
    });
}

#[test]
fn hosts_and_sandboxes_have_names_files_and_namespaces_of_their_own() {
    isolated(|| {
        let lab = Lab::new("files").unwrap();
        let (h1, h2) = pair(&lab);
        let machine = fs::read_to_string("/etc/resolv.conf").unwrap();
        let sandbox = h1.sandbox("web-1").unwrap();
        h1.set_resolv_conf("nameserver 192.0.2.1\n").unwrap();
        sandbox.set_resolv_conf("nameserver 169.254.53.53\n").unwrap();
        sandbox.set_hosts_file("127.0.0.1 localhost\n").unwrap();
        assert_eq!(
            output(&h1, "cat /etc/resolv.conf; hostname 2>/dev/null || uname -n"),
            "nameserver 192.0.2.1\nh1\n"
        );
        assert_eq!(
            output(&sandbox, "cat /etc/resolv.conf; uname -n"),
            "nameserver 169.254.53.53\nweb-1\n"
        );
        assert_eq!(output(&sandbox, "cat /etc/hosts"), "127.0.0.1 localhost\n");
        assert!(output(&h2, "cat /etc/hosts").contains("127.0.1.1 h2"));
        assert_eq!(
            fs::read_to_string("/etc/resolv.conf").unwrap(),
            machine,
            "the machine's file is untouched"
        );

        // By name on its own host only, and the name is the namespace.
        assert_eq!(sandbox.path(), Path::new("/run/netns/web-1"));
        let named = h1
            .run(|| weft_netlink::netns::Netns::open("/run/netns/web-1").unwrap().id())
            .unwrap();
        assert_eq!(
            named,
            sandbox
                .run(|| weft_netlink::netns::Netns::current().unwrap().id())
                .unwrap()
        );
        assert_eq!(output(&h2, "ls /run/netns"), "");

        // What the host mounts later and unmounts again is not held by the sandbox.
        let other = h1.sandbox("web-2").unwrap();
        assert_eq!(output(&sandbox, "ls /run/netns"), "web-1\nweb-2\n");
        other.remove().unwrap();
        assert_eq!(
            output(
                &sandbox,
                "ls /run/netns; grep -c web-2 /proc/self/mountinfo || true"
            ),
            "web-1\n0\n"
        );
        assert_eq!(h1.sandboxes().len(), 1);
        assert_eq!(
            other.run(|| ()).unwrap_err().to_string(),
            "sandbox web-2 on host h1 is gone: it was removed, or its host has crashed"
        );
        let taken = h1.sandbox("web-1").unwrap_err();
        assert_eq!(
            taken.to_string(),
            "there is a sandbox named web-1 on host h1 already"
        );
        lab.close().unwrap();
    });
}

#[test]
fn a_namespace_that_a_program_named_on_its_host_goes_with_the_host() {
    isolated(|| {
        let lab = Lab::new("named").unwrap();
        let host = lab.host("h1").unwrap();
        let before = host.sandbox("before").unwrap();
        host.run(|| weft_netlink::netns::Netns::create_at("/run/weft/netns/x").map(drop))
            .unwrap()
            .unwrap();
        host.run(|| weft_netlink::netns::Netns::create_at("/tmp/netns-harness-test").map(drop))
            .unwrap()
            .unwrap();
        let after = host.sandbox("after").unwrap();
        host.run(|| weft_netlink::netns::Netns::remove_at("/tmp/netns-harness-test"))
            .unwrap()
            .unwrap();
        for sandbox in [before, after] {
            assert_eq!(
                output(
                    &sandbox,
                    "grep -c netns-harness-test /proc/self/mountinfo || true"
                ),
                "0\n"
            );
        }
        lab.close().unwrap();
    });
}

#[test]
fn a_capture_sees_the_canary_and_writes_it_down() {
    isolated(|| {
        let lab = Lab::new("canary").unwrap();
        let (h1, h2) = pair(&lab);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("canary.pcap");
        let canary = CaptureOptions::new().containing(b"tweet").file(&file);
        let seeing = h2.capture("eth0", canary).unwrap();
        let other = h2
            .capture("eth0", CaptureOptions::new().containing(b"roar"))
            .unwrap();
        let socket = h1.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        // Without it an ICMP error would carry the canary home again.
        let receiver = h2.run(|| UdpSocket::bind("0.0.0.0:9").unwrap()).unwrap();
        for text in ["one tweet", "nothing", "two tweet"] {
            socket
                .send_to(text.as_bytes(), (IpAddr::from([10, 1, 0, 2]), 9))
                .unwrap();
        }
        let seen = seeing.wait_for(2, SOON).unwrap();
        assert_eq!((seen.matched, seen.missed), (2, 0));
        let error = other
            .wait_for(1, Duration::from_millis(10))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("a capture of 1 matching frames on eth0 of host h2 did not happen"),
            "{error}"
        );
        seeing.stop().unwrap();
        let pcap = fs::read(&file).unwrap();
        // Header; then twice a record header, Ethernet, IPv4, UDP and nine bytes.
        assert_eq!(pcap.len(), 24 + 2 * (16 + 14 + 20 + 8 + 9));
        assert_eq!(pcap[..4], 0xa1b2_3c4d_u32.to_ne_bytes());
        assert!(pcap.ends_with(b"two tweet"));
        drop((socket, receiver));
        // The other capture still runs, and ends with the lab.
        lab.close().unwrap();
        drop(other);
    });
}

#[test]
fn a_held_namespace_is_reported_with_its_holder() {
    isolated(|| {
        let lab = Lab::new("leaky").unwrap();
        let (h1, _h2) = pair(&lab);
        let held = h1
            .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        let error = lab.close().unwrap_err().to_string();
        let pid = std::process::id();
        assert!(
            error.starts_with(&format!(
                "the lab leaky left things behind: the network namespace of host h1 still exists, held by an open \
                 descriptor of process {pid} ("
            )),
            "{error}"
        );
        drop(held);
    });
}

#[test]
fn a_snapshot_names_what_is_new() {
    isolated(|| {
        let before = Snapshot::take().unwrap();
        nix::mount::mount(
            Some("tmpfs"),
            "/run/netns-harness",
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let changes = Snapshot::take().unwrap().changes_since(&before);
        child.kill().unwrap();
        child.wait().unwrap();
        let pid = child.id();
        assert!(
            changes[0].starts_with("the mount /run/netns-harness (tmpfs tmpfs"),
            "{changes:?}"
        );
        assert_eq!(
            changes[1..],
            [format!("process {pid} (sleep) was not there before")]
        );
    });
}

#[test]
fn a_switched_off_user_namespace_is_explained() {
    // In a user namespace of our own, the limit is ours to set and nobody else's.
    isolated_with(&Isolate::new().user_namespace(UserNamespace::Always), || {
        assert!(Isolation::current().unwrap().user_namespace);
        fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
        let options = Isolate::new().user_namespace(UserNamespace::Always);
        let error = spawn_isolated(&mut Command::new("true"), &options).unwrap_err();
        assert!(matches!(
            error,
            IsolateError::SwitchedOff {
                switch: IsolationSwitch::MaxUserNamespaces
            }
        ));
        assert_eq!(
            error.to_string(),
            "ordinary users may not make user namespaces on this machine: user.max_user_namespaces is 0; run this \
             with sudo, or allow user namespaces with `sudo sysctl -w user.max_user_namespaces=15000`"
        );
        // Without one more user namespace it still works: we are root here.
        let status = spawn_isolated(&mut sh("exit 5"), &Isolate::new())
            .unwrap()
            .wait()
            .unwrap();
        assert_eq!(status.code(), Some(5));
        let error = spawn_isolated(&mut Command::new("/no/such"), &Isolate::new()).unwrap_err();
        assert_eq!(error.to_string(), "cannot execute /no/such in its namespaces");
        let error = netns_harness::isolate(&Isolate::new()).unwrap_err();
        assert!(matches!(error, IsolateError::ManyThreads { .. }), "{error}");
    });
}

#[test]
#[ignore = "takes ten seconds; the growth itself is tested with smaller bridges in src/switch.rs"]
fn a_switch_grows_past_the_ports_that_the_kernel_gives_a_bridge() {
    isolated(|| {
        let lab = Lab::new("big").unwrap();
        let lan = lab.switch("lan", SwitchOptions::new()).unwrap();
        let hosts = lab.hosts(&["h1", "h2", "filler"]).unwrap();
        let address = |n: u8| Plug::new().address(IpNet::new(IpAddr::from([10, 1, 0, n]), 24).unwrap());
        lab.plug_with(&lan, &hosts[0], address(1)).unwrap();
        // One host with many interfaces fills a bridge as well as many hosts would.
        let many: Vec<Host> = std::iter::repeat_n(hosts[2].clone(), 1020).collect();
        for interface in lab.plug(&lan, &many).unwrap() {
            // A broadcast to more than a thousand ports overruns the kernel's queue (netdev_max_backlog).
            interface.set_carrier(false).unwrap();
        }
        assert_eq!(lan.bridges(), 1);
        lab.plug_with(&lan, &hosts[1], address(2)).unwrap();
        assert_eq!(lan.bridges(), 2);
        hosts[1].ping(IpAddr::from([10, 1, 0, 1]), SOON).unwrap();
        lab.partition(&[&[&hosts[0]], &[&hosts[1]]]).unwrap();
        hosts[1]
            .ping(IpAddr::from([10, 1, 0, 1]), Duration::from_millis(200))
            .unwrap_err();
        lab.close().unwrap();
    });
}
