//! What a command has said is done is done on every host.

use std::time::{Duration, Instant};

use weft_tests::slower;

use super::{
    bed::{Bed, alone},
    traffic::{PORT, call_at},
};

#[test]
fn a_changed_service_is_as_it_should_be_on_every_host_when_the_command_returns() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2", "h3"]);
        bed["h1"].weft("network create app");
        bed["h1"].weft(&format!("service create --network app --port 80:{PORT} web"));
        let replica = bed["h2"].replica("web-1", "app", "--service web");
        let clients = ["h1", "h2", "h3"].map(|host| bed[host].connected(&format!("c-{host}"), "app", ""));
        let vip = bed["h1"].vip("web");
        let mut took = Vec::new();
        for round in 0..16_u16 {
            let (open, closed) = if round % 2 == 0 { (81, 80) } else { (80, 81) };
            let begin = Instant::now();
            let ended = bed["h1"].try_weft(&format!("service update --port {open}:{PORT} web"));
            took.push(begin.elapsed());
            assert_eq!((ended.code, ended.complaints().as_str()), (0, ""));
            for client in &clients {
                let reached = call_at(&client.sandbox, vip, open);
                assert!(reached.is_ok(), "round {round}: {:?}", reached.err());
                assert!(call_at(&client.sandbox, vip, closed).is_err(), "round {round}");
            }
        }
        took.sort();
        println!(
            "`service update` with three hosts: median {:?}, slowest {:?}",
            took[took.len() / 2],
            took[took.len() - 1]
        );
        assert!(took[took.len() / 2] < slower(Duration::from_secs(1)), "{took:?}");
        drop(replica);
        bed.close();
    });
}
