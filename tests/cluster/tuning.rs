//! How a service treats connections: idle ones, and those to new backends.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
    time::{Duration, Instant},
};

use netns_harness::Inside as _;
use weft_netlink::conntrack::Conntrack;

use super::{
    bed::{Bed, Endpoint, alone, has_ebpf, items, soon},
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
        assert!(asked.elapsed() < *PATIENCE / 2, "{:?}", asked.elapsed());
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

/// So many connections at once, and how many of them the newer backend has.
fn opened(client: &Endpoint, vip: IpAddr, count: usize) -> (Vec<Call>, usize) {
    let calls: Vec<_> = (0..count)
        .map(|_| call_at(&client.sandbox, vip, 80).unwrap())
        .collect();
    let new = calls.iter().filter(|call| call.answer.name == "web-2").count();
    (calls, new)
}

fn a_new_backend_is_not_flooded(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2"]);
    let h1 = &bed["h1"];
    h1.weft("network create app");
    h1.weft("service create --network app --port 80:8000 --lb lc --slow-start 4s web");
    let first = bed["h2"].replica("web-1", "app", "--service web");
    let client = h1.connected("c", "app", "");
    let vip = h1.vip("web");
    soon("a backend", || call_at(&client.sandbox, vip, 80));
    let reason = |name: &str| {
        let detail = h1.json("service inspect web");
        let mut backends = items(&detail["backends"]);
        let found = backends.find(|backend| backend["endpoint_name"] == name)?;
        found["reason"].as_str().map(str::to_owned)
    };
    let grown = |name: &str| {
        soon(format!("{name} has grown"), || reason(name).map_or(Ok(()), Err));
    };
    grown("web-1");
    let (held, _) = opened(&client, vip, 20);
    let second = bed["h2"].replica("web-2", "app", "--service web");
    soon("the second is seen as new", || match reason("web-2") {
        Some(reason) if reason.contains("/10 of its share so far") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (few, new) = opened(&client, vip, 12);
    assert!(new <= 8, "{new} of 12 went to the new one");
    grown("web-2");
    let (more, new) = opened(&client, vip, 8);
    assert!(new >= 7, "{new} of 8 went to the one with fewest connections");
    drop((held, few, more, first, second, client));
    bed.close();
}

#[test]
fn a_new_backend_is_not_flooded_with_rules() {
    alone(|| a_new_backend_is_not_flooded("nft"));
}

#[test]
fn a_new_backend_is_not_flooded_with_programs() {
    alone(|| {
        if has_ebpf() {
            a_new_backend_is_not_flooded("ebpf");
        }
    });
}
