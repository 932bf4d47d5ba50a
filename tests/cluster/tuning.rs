//! How a service treats connections: idle ones.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use netns_harness::Inside as _;
use weft_netlink::conntrack::Conntrack;

use super::{
    bed::{Bed, alone, has_ebpf, soon},
    traffic::{Call, PATIENCE, call_at},
};

fn speak(call: &mut Call) -> io::Result<()> {
    call.stream.write_all(b"x")?;
    call.stream.read_exact(&mut [0])
}

/// Waits for so long, while somebody speaks.
fn meanwhile(time: Duration, mut work: impl FnMut()) {
    let until = Instant::now() + time;
    soon("time passes", || {
        work();
        if Instant::now() > until {
            Ok(())
        } else {
            Err("not yet")
        }
    });
}

fn an_idle_connection_is_reset_and_not_swallowed(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2"]);
    let outside = bed.outsider("outside");
    let h1 = &bed["h1"];
    h1.weft("network create app");
    h1.weft("service create --network app --port 80:8000 --publish 8080:80 --idle-timeout 1s web");
    let web = bed["h2"].replica("web-1", "app", "--service web");
    let client = h1.connected("c", "app", "");
    let vip = h1.vip("web");
    let host = h1.address();
    soon("a backend", || call_at(&client.sandbox, vip, 80));
    soon("a backend from outside", || call_at(&outside, host, 8080));
    assert_eq!(h1.json("service inspect web")["tuning"]["idle_timeout_secs"], 1);
    let shown = h1.weft("service inspect web");
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.to_lowercase().contains("idle time-out: 1s"), "{shown}");

    let mut idle = [
        call_at(&client.sandbox, vip, 80).unwrap(),
        call_at(&outside, host, 8080).unwrap(),
    ];
    let mut busy = [
        call_at(&client.sandbox, vip, 80).unwrap(),
        call_at(&outside, host, 8080).unwrap(),
    ];
    meanwhile(Duration::from_secs(3), || {
        busy.iter_mut().for_each(|call| speak(call).unwrap());
    });
    for call in &mut idle {
        let asked = Instant::now();
        let error = speak(call).unwrap_err();
        let told = [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::BrokenPipe,
        ];
        assert!(told.contains(&error.kind()), "{error}");
        assert!(asked.elapsed() < PATIENCE / 2, "{:?}", asked.elapsed());
    }

    // A host that forgets who calls its ports finds the way for them again.
    let forgotten = h1.host.run(|| {
        let conntrack = Conntrack::open().unwrap();
        let flows = conntrack.flows().unwrap().into_iter();
        let calls = flows.filter(|flow| flow.original.dst_port == 8080);
        calls.filter(|flow| conntrack.delete(flow).unwrap()).count()
    });
    assert!(forgotten.unwrap() > 0);
    speak(&mut busy[1]).unwrap();

    h1.weft("service update --idle-timeout none web");
    assert!(h1.json("service inspect web")["tuning"]["idle_timeout_secs"].is_null());
    let mut quiet = [
        call_at(&client.sandbox, vip, 80).unwrap(),
        call_at(&outside, host, 8080).unwrap(),
    ];
    meanwhile(Duration::from_secs(2), || {});
    quiet.iter_mut().for_each(|call| speak(call).unwrap());
    let ended = h1.try_weft("service update --idle-timeout 60days web");
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("the longest is 24days"), "{}", ended.stderr);
    drop((idle, busy, quiet, web, client, outside));
    bed.close();
}

#[test]
fn an_idle_connection_is_reset_by_rules() {
    alone(|| an_idle_connection_is_reset_and_not_swallowed("nft"));
}

#[test]
fn an_idle_connection_is_reset_by_programs() {
    alone(|| {
        if has_ebpf() {
            an_idle_connection_is_reset_and_not_swallowed("ebpf");
        }
    });
}
