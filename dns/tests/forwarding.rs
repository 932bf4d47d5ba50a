//! Questions for others, through resolvers that behave well and badly.

mod support;

use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::op::ResponseCode;
use support::{Behaviour, Resolver, start, upstreams};

const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 54);
const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 55);

#[tokio::test]
async fn a_foreign_name_is_asked_over_the_transport_it_came_on() {
    let resolver = Resolver::start(Behaviour::Answer(ANSWER));
    let running = start(upstreams(&[resolver.address]));
    let shown = running.dig("example.com +noedns").await;
    assert!(
        shown.contains("192.0.2.53") && shown.contains("NOERROR") && !shown.contains(" aa "),
        "{shown}"
    );
    assert_eq!(running.dig("example.org +short +tcp").await, ANSWER.to_string());
    assert_eq!(resolver.asked(), 2);
    assert_eq!(running.server.counts().forwarded, 2);
}

#[tokio::test]
async fn our_names_and_internal_networks_never_reach_a_resolver() {
    let resolver = Resolver::start(Behaviour::Answer(ANSWER));
    let running = start(upstreams(&[resolver.address]));
    for args in [
        "nosuch",
        "nosuch.weft.internal",
        "-x 10.32.9.9",
        "-x 10.33.0.11",
        "-b 127.0.0.2 example.com",
        "-b 127.0.0.2 -x 8.8.8.8",
        "-b 127.0.0.4 example.com",
    ] {
        assert!(!running.dig(args).await.contains("192.0.2.53"), "{args}");
    }
    assert_eq!(resolver.asked(), 0);
}

#[tokio::test]
async fn a_silent_resolver_is_passed_over_and_then_asked_last() {
    let [silent, good] = [Behaviour::Silent, Behaviour::Answer(ANSWER)].map(Resolver::start);
    let running = start(upstreams(&[silent.address, good.address]));
    for name in ["a.example", "b.example", "c.example"] {
        assert_eq!(running.dig(&format!("{name} +short")).await, ANSWER.to_string());
    }
    assert_eq!((silent.asked(), good.asked()), (1, 3));
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_passed_over_at_once() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let good = Resolver::start(Behaviour::Answer(ANSWER));
    let running = start(upstreams(&[closed, good.address]));
    assert_eq!(running.dig("example.com +short").await, ANSWER.to_string());
    assert_eq!(running.dig("example.org +short +tcp").await, ANSWER.to_string());
}

#[tokio::test]
async fn a_resolver_that_fails_is_passed_over_and_nxdomain_is_final() {
    let refusing = Resolver::start(Behaviour::Code(ResponseCode::Refused));
    let failing = Resolver::start(Behaviour::Code(ResponseCode::ServFail));
    let unknowing = Resolver::start(Behaviour::Code(ResponseCode::NXDomain));
    let good = Resolver::start(Behaviour::Answer(ANSWER));
    let ask = async |list: &[SocketAddr]| start(upstreams(list)).dig("example.com").await;
    assert!(
        ask(&[refusing.address, failing.address, good.address])
            .await
            .contains("192.0.2.53")
    );
    assert!(ask(&[unknowing.address, good.address]).await.contains("NXDOMAIN"));
    assert!(
        ask(&[refusing.address, failing.address])
            .await
            .contains("REFUSED")
    );
    assert_eq!((refusing.asked(), failing.asked()), (2, 2));
}

#[tokio::test]
async fn without_an_answer_there_is_servfail_in_bounded_time() {
    let silent = Resolver::start(Behaviour::Silent);
    for list in [&[][..], &[silent.address]] {
        let running = start(upstreams(list));
        let before = std::time::Instant::now();
        for args in ["example.com", "example.com +tcp"] {
            assert!(running.dig(args).await.contains("SERVFAIL"), "{args} {list:?}");
        }
        assert!(before.elapsed().as_millis() < 2_500);
        assert_eq!(running.server.counts().forward_failed, 2);
    }
}

fn split(domain: &str, server: SocketAddr) -> weft_dns::SplitDomain {
    format!("{domain}={server}").parse().unwrap()
}

#[tokio::test]
async fn names_of_a_split_domain_are_asked_of_its_servers() {
    let [host, corp, lab] = [ANSWER, OTHER, THIRD].map(|address| Resolver::start(Behaviour::Answer(address)));
    let running = start(weft_dns::ForwarderConfig {
        split: vec![
            split("corp.example", corp.address),
            split("lab.corp.example", lab.address),
            split("192.0.2.0/24", corp.address),
            // Holds our own subnets, whose addresses it is not asked about.
            split("10.0.0.0/8", corp.address),
        ],
        ..upstreams(&[host.address])
    });
    for (args, answer) in [
        ("www.corp.example", OTHER),
        ("WWW.Corp.Example +tcp", OTHER),
        ("corp.example", OTHER),
        ("a.lab.corp.example", THIRD),
        ("corp.example.org", ANSWER),
        ("xcorp.example", ANSWER),
    ] {
        assert_eq!(
            running.dig(&format!("{args} +short")).await,
            answer.to_string(),
            "{args}"
        );
    }
    let (corp_before, host_before) = (corp.asked(), host.asked());
    for args in ["-x 192.0.2.9", "-x 10.9.9.9", "-x 198.51.100.9", "-x 10.32.9.9"] {
        running.dig(args).await;
    }
    assert_eq!((corp.asked() - corp_before, host.asked() - host_before), (2, 1));
    // An internal network has no names of others, whoever knows them.
    let shown = running.dig("-b 127.0.0.2 www.corp.example").await;
    assert!(shown.contains("NXDOMAIN"), "{shown}");
}

#[tokio::test]
async fn names_of_a_split_domain_are_told_to_nobody_else() {
    let host = Resolver::start(Behaviour::Answer(ANSWER));
    let silent = Resolver::start(Behaviour::Silent);
    let refusing = Resolver::start(Behaviour::Code(ResponseCode::Refused));
    let running = start(weft_dns::ForwarderConfig {
        split: vec![
            split("silent.example", silent.address),
            split("refused.example", refusing.address),
            // One of our own addresses, which is nobody.
            split("loop.example", ([169, 254, 53, 53], 53).into()),
        ],
        exclude: vec![[169, 254, 53, 53].into()],
        ..upstreams(&[host.address])
    });
    for (args, says) in [
        ("www.silent.example", "SERVFAIL"),
        ("www.silent.example +tcp", "SERVFAIL"),
        ("silent.example NS", "SERVFAIL"),
        ("www.refused.example", "REFUSED"),
        ("www.loop.example", "SERVFAIL"),
    ] {
        let shown = running.dig(args).await;
        assert!(shown.contains(says), "{args}: {shown}");
    }
    assert_eq!(host.asked(), 0);
    assert!(silent.asked() > 0 && refusing.asked() > 0);
}

#[tokio::test]
async fn a_reply_to_another_question_is_ignored() {
    let forging = Resolver::start(Behaviour::ForgedFirst(OTHER));
    let running = start(upstreams(&[forging.address]));
    assert_eq!(running.dig("example.com +short").await, OTHER.to_string());
}

#[tokio::test]
async fn a_reply_too_large_for_the_client_is_fetched_again_over_tcp() {
    let resolver = Resolver::start(Behaviour::Many(200));
    let running = start(upstreams(&[resolver.address]));
    let shown = running.dig("example.com +ignore").await;
    assert!(shown.contains(" tc ") && shown.contains("ANSWER: 0,"), "{shown}");
    assert!(running.dig("example.com").await.contains("ANSWER: 200,"));
}

#[tokio::test]
async fn a_waiting_question_holds_up_nobody_and_too_many_are_refused_at_once() {
    let silent = Resolver::start(Behaviour::Silent);
    let running = start(weft_dns::ForwarderConfig {
        max_in_flight: 2,
        ..upstreams(&[silent.address])
    });
    let waiting = [
        running.dig("a.example"),
        running.dig("b.example"),
        running.dig("c.example"),
    ];
    let all = futures_util::future::join_all(waiting);
    let (shown, own) = tokio::join!(all, running.dig("one +short"));
    assert_eq!(own, "10.32.0.11");
    assert!(shown.iter().all(|shown| shown.contains("SERVFAIL")), "{shown:?}");
    assert_eq!(running.server.counts().forward_failed, 3);
    assert!(silent.asked() <= 4);
}

#[tokio::test]
async fn an_answer_is_kept_for_as_long_as_it_says_and_for_every_spelling() {
    let resolver = Resolver::start(Behaviour::Answer(ANSWER));
    let running = start(upstreams(&[resolver.address]));
    assert_eq!(running.dig("example.com +short").await, ANSWER.to_string());
    let shown = running.dig("eXample.COM").await;
    assert!(
        shown.contains(";eXample.COM.") && shown.contains("\neXample.COM."),
        "{shown}"
    );
    assert_eq!(running.dig("example.com +tcp +short").await, ANSWER.to_string());
    assert_eq!(resolver.asked(), 1);
    // Other questions, and who asks for signatures, for what is not validated or for no recursion.
    for args in ["AAAA", "+dnssec", "+cd", "+norec", "+norec"] {
        running.dig(&format!("example.com {args}")).await;
    }
    assert_eq!(resolver.asked(), 6);
}

#[tokio::test]
async fn what_does_not_exist_is_remembered_if_its_zone_says_for_how_long() {
    for (is_kept, asked) in [(true, 1), (false, 2)] {
        let resolver = Resolver::start(Behaviour::Unknown { is_kept });
        let running = start(upstreams(&[resolver.address]));
        for _ in 0..2 {
            let shown = running.dig("nosuch.example").await;
            assert!(shown.contains("status: NXDOMAIN"), "{shown}");
            assert_eq!(
                shown.contains("\nexample.") && shown.contains("SOA"),
                is_kept,
                "{shown}"
            );
        }
        assert_eq!(resolver.asked(), asked);
    }
}

#[tokio::test]
async fn a_foreign_answer_never_points_into_an_overlay_network() {
    for address in [[10, 32, 0, 11], [10, 33, 9, 9]] {
        let resolver = Resolver::start(Behaviour::Answer(address.into()));
        let running = start(upstreams(&[resolver.address]));
        // From the resolver, and then from the cache.
        for args in ["", "+tcp"] {
            let shown = running.dig(&format!("rebind.example {args}")).await;
            assert!(
                shown.contains("NOERROR") && shown.contains("ANSWER: 0,"),
                "{shown}"
            );
        }
        assert_eq!((running.server.counts().rebinding, resolver.asked()), (2, 1));
    }
}

#[tokio::test]
async fn ports_and_spelling_of_questions_are_random() {
    let resolver = Resolver::start(Behaviour::Answer(ANSWER));
    let running = start(upstreams(&[resolver.address]));
    for n in 0..8 {
        assert_eq!(
            running.dig(&format!("a-long-name-{n}.example +short")).await,
            ANSWER.to_string()
        );
    }
    let seen = resolver.seen();
    let ports: std::collections::BTreeSet<_> = seen.iter().map(|(from, _)| from.port()).collect();
    assert!(ports.len() > 6, "{ports:?}");
    assert!(
        seen.iter().all(|(_, name)| *name != name.to_lowercase()),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_resolver_that_does_not_keep_the_spelling_is_asked_over_tcp() {
    let resolver = Resolver::start(Behaviour::Lower(ANSWER));
    let running = start(upstreams(&[resolver.address]));
    assert_eq!(
        running.dig("a-long-name.example +short").await,
        ANSWER.to_string()
    );
    assert_eq!(resolver.asked(), 2);
}
