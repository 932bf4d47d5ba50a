//! Questions asked by the real `dig`.

mod support;

use std::{collections::BTreeSet, fmt::Write as _};

use support::{BACK, FRONT, nobody, start};
use weft_dns::{Endpoint, Service};
use weft_types::EndpointId;

#[tokio::test]
async fn dig_shows_what_the_golden_file_says() {
    let running = start(nobody());
    let mut shown = String::new();
    for args in [
        "one",
        "one.front.weft.internal +noedns",
        "web A",
        "web AAAA",
        "web ANY",
        "_http._tcp.web SRV",
        "_http._tcp.web.front.weft.internal SRV +noedns",
        "-x 10.32.0.2",
        "wEb.FrOnT",
        "-x 10.32.0.11",
        "-x 10.32.9.9",
        "nosuch",
        "nosuch.weft.internal",
        "weft.internal SOA",
        "one +tcp",
        "one +dnssec +cd",
        "one +edns=1 +noednsneg",
        "one +opcode=notify",
        "one +opcode=notify +tcp",
        "one CH TXT",
        "one AXFR",
        "-b 127.0.0.2 one",
        "-b 127.0.0.2 db",
        "-b 127.0.0.2 example.com",
        "-b 127.0.0.3 one",
        "-b 127.0.0.4 one",
        "example.com",
    ] {
        writeln!(shown, "$ dig {args}\n{}\n", running.dig(args).await).unwrap();
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn a_hundred_backends_are_truncated_in_a_datagram_and_whole_over_tcp() {
    let running = start(nobody());
    let count = |text: &str| {
        text.lines()
            .filter(|line| line.contains("\tIN\tA\t"))
            .collect::<BTreeSet<_>>()
            .len()
    };
    for (args, expected) in [
        // 12 header, 21 question, 11 OPT, 16 each; and by the measure of hickory's encoder, 15 more for the
        // first owner and 1 for the last, which needs room to be in full.
        ("+noedns +ignore", (512 - 12 - 21 - 15 - 1) / 16),
        ("+bufsize=512 +ignore", (512 - 12 - 21 - 11 - 15 - 1) / 16),
        ("+bufsize=100 +ignore", (512 - 12 - 21 - 11 - 15 - 1) / 16),
        ("+bufsize=4096 +ignore", (1232 - 12 - 21 - 11 - 15 - 1) / 16),
    ] {
        let shown = running.dig(&format!("tasks.web.front {args}")).await;
        assert!(shown.contains(" tc "), "{args}: {shown}");
        assert_eq!(
            shown.contains("EDNS: version: 0"),
            !args.contains("noedns"),
            "{shown}"
        );
        assert_eq!(count(&shown), expected, "{args}");
    }
    // Without `+ignore`, dig does what a resolver does: it asks again over TCP.
    let shown = running.dig("tasks.web.front").await;
    assert!(
        shown.contains("retrying in TCP mode") && !shown.contains(" tc "),
        "{shown}"
    );
    assert_eq!(count(&shown), 100);
}

#[tokio::test]
async fn an_answer_is_never_older_than_the_last_published_change() {
    let running = start(nobody());
    let mut zone = running.zone.load().as_ref().clone();
    for address in 1..20 {
        zone.network_mut(&FRONT).unwrap().set_endpoint(
            EndpointId([0xa1; 16]),
            Endpoint {
                names: vec!["one".into()],
                addresses: vec![[10, 32, 2, address].into()],
            },
        );
        running.zone.store(std::sync::Arc::new(zone.clone()));
        assert_eq!(running.dig("one +short").await, format!("10.32.2.{address}"));
    }
    zone.network_mut(&FRONT).unwrap().remove_service("web");
    zone.remove_network(&BACK);
    running.zone.store(std::sync::Arc::new(zone));
    assert!(running.dig("web").await.contains("NXDOMAIN"));
    assert!(running.dig("-b 127.0.0.2 db").await.contains("REFUSED"));
}

#[tokio::test]
async fn of_a_service_too_large_for_a_message_as_many_as_fit_are_told() {
    let running = start(nobody());
    let name = ["x".repeat(63).as_str(), &"y".repeat(60)].join(".");
    let mut zone = running.zone.load().as_ref().clone();
    let backends = (0..2_500u16)
        .map(|n| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into())
        .collect::<Vec<_>>();
    let service = Service {
        mode: weft_dns::EndpointMode::DnsRr,
        vips: vec![],
        backends,
        ports: vec![],
    };
    zone.network_mut(&FRONT).unwrap().set_service(&name, service);
    running.zone.store(std::sync::Arc::new(zone));
    let shown = running
        .dig(&format!("tasks.{name}.front.weft.internal AAAA +tcp"))
        .await;
    // 12 header, 156 question, 11 OPT; the owner has 152 bytes at first and after 119 that are compressed.
    let fitting = 1 + 119 + (65_535 - 12 - 156 - 11 - 178 - 119 * 28) / 178;
    assert!(
        shown.contains(&format!("ANSWER: {fitting},")),
        "{}",
        &shown[..200.min(shown.len())]
    );
    assert!(!shown.contains(" tc "));
}

#[tokio::test]
async fn names_are_completed_with_the_search_list() {
    let running = start(nobody());
    // The list that the agent writes, and how resolvers go through it.
    let search = "+search +domain=front.weft.internal +ndots=1 +noall +answer +comments";
    let shown = running.dig(&format!("{search} one")).await;
    assert!(
        shown.contains("one.front.weft.internal.") && shown.contains("10.32.0.11"),
        "{shown}"
    );
    let shown = running.dig(&format!("{search} nosuch")).await;
    assert!(shown.contains("NXDOMAIN"), "{shown}");
}
