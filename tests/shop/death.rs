//! A host dies.

use std::time::{Duration, Instant};

use netns_harness::eventually;

use crate::bed::{LOOK, Lab, User, each};

/// Within this time nobody is sent to a dead host any more.
const NOTICED: Duration = Duration::from_secs(10);

/// How many addresses of replicas of `web` the name server gives.
fn tasks(shop: &Lab<'_>, kind: &str) -> usize {
    let answer = shop.exec(
        "client-1",
        &["dig", "+search", "+short", "+time=1", "tasks.web", kind],
    );
    answer.good().lines().count()
}

#[test]
fn the_replicas_of_a_killed_host_leave_names_and_services_in_bounded_time() {
    let me = User::me();
    let shop = me.shop();
    assert_eq!((tasks(&shop, "A"), tasks(&shop, "AAAA")), (3, 3));

    let killed = Instant::now();
    let told = shop.lab("kill", &["h3"]).good();
    assert!(told.contains("web-3") && told.contains("api-3"), "{told}");

    eventually("tasks.web with two addresses", NOTICED, LOOK, || {
        let found = (tasks(&shop, "A"), tasks(&shop, "AAAA"));
        if found == (2, 2) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .unwrap();
    let names = killed.elapsed();
    let short = [
        "weft",
        "lab",
        "fetch",
        "--times",
        "12",
        "--timeout-ms",
        "500",
        "http://web/",
    ];
    let mut tries = 0;
    eventually(
        "an answer to every call",
        NOTICED.saturating_sub(names),
        LOOK,
        || {
            tries += 1;
            let called = shop.exec("client-1", &short);
            if called.code == 0 {
                Ok(())
            } else {
                Err(called.stdout)
            }
        },
    )
    .unwrap();
    println!(
        "after the death of a host: out of tasks.web after {:.2} s, out of the service after {:.2} s (try {tries})",
        names.as_secs_f64(),
        killed.elapsed().as_secs_f64()
    );

    // From now on, for everybody who is left.
    for client in ["client-1", "api-2"] {
        assert_eq!(
            shop.calls(client, "http://web/", 12),
            each(&["web-1", "web-2"], 6)
        );
        assert_eq!(shop.calls(client, "http://api/", 4).values().sum::<u32>(), 4);
    }
    let live = shop.inspect();
    assert_eq!(live.host_state("h3"), "killed");
    assert_eq!(live.replica_state("web-3"), "killed");
    assert_eq!(live.replica_state("web-2"), "running");

    let again = shop.lab("kill", &["h3"]);
    assert_eq!(again.code, 4, "{again:?}");
    let entered = shop.exec("web-3", &["true"]);
    assert!(entered.code == 1 && entered.stderr.contains("h3"), "{entered:?}");
    shop.down();
}
