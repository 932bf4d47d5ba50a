//! How calls spread over replicas.

use std::{collections::BTreeMap, time::Instant};

use crate::bed::{Lab, User, answers, each, shop_with, start, url};

#[test]
fn twelve_calls_are_spread_evenly_by_name_and_by_both_addresses() {
    let me = User::me();
    let shop = me.shop();
    let mut urls = vec![
        "http://web/".to_owned(),
        "http://web.front.weft.internal/".to_owned(),
    ];
    urls.extend(shop.inspect().vips("web", "front").into_iter().map(url));
    assert_eq!(urls.len(), 4);
    for url in urls {
        // Clients on two hosts: each counts by itself.
        for client in ["client-1", "api-3"] {
            assert_eq!(
                shop.calls(client, &url, 12),
                each(&["web-1", "web-2", "web-3"], 4),
                "{client} {url}"
            );
        }
    }
    shop.down();
}

/// Clients that each call one after the other: who is slow holds connections open. Returns how often each replica answered,
/// and how long it took in seconds.
fn rush(shop: &Lab<'_>) -> (BTreeMap<String, u32>, f64) {
    const CLIENTS: usize = 6;
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let fetch = ["weft", "lab", "fetch", "--times", "10", "http://api/"];
            start(&mut shop.exec_command("client-1", &fetch))
        })
        .collect();
    let mut total = BTreeMap::new();
    for client in clients {
        for (replica, count) in answers(&client.end().good()) {
            *total.entry(replica).or_default() += count;
        }
    }
    (total, begun.elapsed().as_secs_f64())
}

#[test]
fn least_connection_spares_a_slow_replica_and_round_robin_does_not() {
    let me = User::me();
    // `api` has a slow replica, and its scheduler is `lc`.
    let text = shop_with("delay_ms: [0, 0, 300]", "delay_ms: [0, 0, 1000]");
    let shop = me.up(&me.file("shop.yaml", &text));
    let (lc, lc_seconds) = rush(&shop);
    let update = [
        "weft",
        "service",
        "update",
        "--network",
        "front",
        "api",
        "--lb",
        "rr",
    ];
    shop.exec("h1", &update).good();
    let (rr, rr_seconds) = rush(&shop);
    println!("least connection: {lc:?} in {lc_seconds:.2} s; round robin: {rr:?} in {rr_seconds:.2} s");

    let slow = |answers: &BTreeMap<String, u32>| answers.get("api-3").copied().unwrap_or(0);
    // The first few calls may still have met the old scheduler: it changes while traffic flows.
    assert!(
        rr.len() == 3 && rr.values().all(|count| (15..=25).contains(count)),
        "{rr:?}"
    );
    assert_eq!(lc.values().sum::<u32>(), 60);
    // Were a third of six clients' calls open with it, the others would have two each, and that is one client too many. Two
    // that choose at one moment see the same counts, though, and make it three. A call lasts a second, so this holds on a
    // machine of any speed, and six at once, as round robin may have, would be too many.
    let at_once = 3.0;
    assert!(
        f64::from(slow(&lc)) <= at_once * (lc_seconds.floor() + 1.0) && slow(&lc) < slow(&rr),
        "{lc:?} is not clearly fewer than {rr:?}"
    );

    // And back again, told to another host.
    let update = [
        "weft",
        "service",
        "update",
        "--network",
        "front",
        "api",
        "--lb",
        "lc",
    ];
    shop.exec("h2", &update).good();
    netns_harness::eventually(
        "the news on h1",
        std::time::Duration::from_secs(10),
        crate::bed::LOOK,
        || {
            let inspect = [
                "weft",
                "service",
                "inspect",
                "--network",
                "front",
                "api",
                "--format",
                "json",
            ];
            let text = shop.exec("h1", &inspect).good();
            let service: serde_json::Value = serde_json::from_str(&text).unwrap();
            if service["scheduler"] == "lc" {
                Ok(())
            } else {
                Err(text)
            }
        },
    )
    .unwrap();
    shop.down();
}
