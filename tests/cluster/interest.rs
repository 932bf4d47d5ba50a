//! Who has nothing to do with a network is not told of its endpoints, and asks when it is asked.

use std::time::Duration;

use netns_harness::Inside as _;

use super::{
    bed::{Bed, alone, items, soon, within},
    metrics::metrics,
    node::Node,
};

/// Whether a host knows so many endpoints of the network; `None` if it knows nothing of them.
fn knows(node: &Node, count: Option<usize>) -> Result<(), String> {
    let mut all = metrics(node);
    let lines = all.remove("weft_network_endpoints").unwrap_or_default();
    let expected = count.map(|count| format!("weft_network_endpoints{{network=\"app\"}} {count}"));
    let is_so = match expected {
        Some(line) => lines.contains(&line),
        None => lines.is_empty(),
    };
    if is_so { Ok(()) } else { Err(format!("{lines:?}")) }
}

#[test]
fn a_host_is_told_of_the_endpoints_of_its_own_networks_and_asks_for_those_of_others() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2", "h3"]);
        let [h1, h2, h3] = ["h1", "h2", "h3"].map(|name| &bed[name]);
        h1.weft("network create app");
        bed.on(&["h2"], "the network", |node| {
            match items(&node.json("network ls")).count() {
                1 => Ok(()),
                count => Err(count),
            }
        });
        // All hosts were asked who is there, and so went on being told for a minute.
        within(
            Duration::from_secs(120),
            "its agent is told of its own networks",
            || knows(h3, None),
        );
        let endpoints: Vec<_> = (0..20)
            .map(|n| [h1, h2][n % 2].connected(&format!("e{n}"), "app", ""))
            .collect();
        for node in [h1, h2] {
            soon("the hosts on it know all endpoints", || knows(node, Some(20)));
        }
        knows(h3, None).expect("it was not asked");
        let ended = h3.try_weft("network rm app");
        assert!(ended.stderr.contains("is in use by 20 endpoint(s)"), "{ended:?}");
        knows(h3, Some(20)).expect("it was");
        assert_eq!(items(&h3.json("network inspect app")["endpoints"]).count(), 20);
        let newcomer = h3.connected("late", "app", "");
        let answer = newcomer
            .sandbox
            .ping(endpoints[0].address(), Duration::from_secs(2));
        answer.expect("it was told of it before it was connected");
        soon("all know it", || knows(h1, Some(21)));
        bed.all_well();
        bed.close();
    });
}
