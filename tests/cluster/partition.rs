//! Two halves of a cluster go on by themselves, and are one again when they meet.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use netns_harness::Inside as _;
use weft_tests::slower;

use super::{
    bed::{Bed, Endpoint, alone, items, report, soon, text},
    state::{agreed, everything, numbers},
    traffic::{answering, call, spread},
};

#[test]
fn both_sides_of_a_partition_go_on_and_agree_when_it_heals() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2", "h3"]);
        let hosts = ["h1", "h2", "h3"].map(|name| &bed[name]);
        let [h1, h2, h3] = hosts;
        h1.weft("network create app");
        h1.weft("network create untouched");
        h1.weft("network create contested");
        h1.weft("service create --network app --port 8000 web");
        bed.everywhere("the service", |node| {
            match items(&node.json("service ls")).count() {
                1 => Ok(()),
                count => Err(count),
            }
        });
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for (n, host) in (1..).zip(hosts) {
            endpoints.push(host.replica(&format!("web-{n}"), "app", "--service web"));
        }
        let web = h1.vip("web");
        let clients = hosts.map(|host| host.connected(&format!("c-{}", host.host.name()), "app", ""));
        for client in &clients {
            answering(&client.sandbox, web, 3);
        }
        // Whoever had an endpoint on a network keeps addresses of it.
        let passing = h3.connected("passing", "contested", "");
        h3.weft("network disconnect contested passing");
        let before = everything(h1);
        let split = Instant::now();
        bed.lab.partition(&[&[&h1.host, &h2.host], &[&h3.host]]).unwrap();
        for (name, count) in [("h1", 2), ("h2", 2), ("h3", 1)] {
            bed.sees_alive(name, count);
        }
        report("each side knows that it is alone", split);
        for (client, count) in clients.iter().zip([2, 2, 1]) {
            answering(&client.sandbox, web, count);
        }

        // Both sides use every kind of number.
        for (side, host) in [("left", h1), ("left2", h2), ("right", h3)] {
            for n in 0..4 {
                endpoints.push(host.connected(&format!("{side}-{n}"), "app", ""));
            }
            endpoints.push(host.replica(&format!("web-{side}"), "app", "--service web"));
            host.weft(&format!("service create --network app {side}"));
            host.weft(&format!("network create {side}"));
            endpoints.push(host.connected(&format!("in-{side}"), side, ""));
        }
        for host in [h1, h3] {
            host.weft("network create both");
            host.weft("service create --network app both");
            let name = format!("both-{}", host.host.name());
            endpoints.push(host.replica(&name, "app", "--service both"));
        }
        // Removed here while it is taken into use there: it is in use.
        h1.weft("network rm contested");
        endpoints.push(h3.connect(passing.sandbox, "contested", ""));
        let asked = Instant::now();
        let ended = h3.try_weft("network connect untouched c-h3");
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(
            ended.stderr.contains("owns no free number of subnet") && ended.stderr.contains("node `h1`"),
            "{}",
            ended.stderr
        );
        assert!(
            asked.elapsed() < slower(Duration::from_secs(10)),
            "{:?}",
            asked.elapsed()
        );
        report("a node without addresses says who has them", asked);

        let healed = Instant::now();
        bed.lab.heal().unwrap();
        for name in ["h1", "h2", "h3"] {
            bed.sees_alive(name, 3);
        }
        report("all alive again after the heal", healed);
        let agreed = agreed(&bed);
        report("the same records after the heal", healed);
        assert_ne!(agreed, before);
        let names: Vec<&str> = items(&agreed[0]).map(|network| text(&network["name"])).collect();
        assert_eq!(names.len(), 8, "{names:?}");
        let renamed: Vec<_> = names.iter().filter(|name| name.starts_with("both~")).collect();
        assert!(
            names.contains(&"both") && names.contains(&"contested") && renamed.len() == 1,
            "{names:?}"
        );
        assert_eq!(items(&agreed[1]).count(), 6, "{}", agreed[1]);

        let used = numbers(h1);
        assert_eq!(used, numbers(h3));
        let known: BTreeSet<_> = endpoints
            .iter()
            .chain(&clients)
            .flat_map(|e| &e.addresses)
            .collect();
        println!(
            "{} endpoints, {} numbers in use, none twice",
            known.len(),
            used.len()
        );
        bed.all_well();

        for client in &clients {
            answering(&client.sandbox, web, 6);
            for endpoint in endpoints
                .iter()
                .filter(|endpoint| text(&endpoint.said["network_name"]) == "app")
            {
                let address = endpoint.address();
                soon(format!("an echo of {address}"), || {
                    client.sandbox.ping(address, Duration::from_secs(1))
                });
            }
            // Made on both sides, it has the replicas of both behind either address.
            for service in items(&agreed[1]).filter(|service| service["name"] == "both") {
                let vip = text(&service["vips"][0]).parse().unwrap();
                assert_eq!(spread(&client.sandbox, vip, 4).len(), 2);
            }
        }
        report("traffic between both sides", healed);
        assert!(call(&clients[2].sandbox, web).is_ok());
        drop(endpoints);
        bed.close();
    });
}
