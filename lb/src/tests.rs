use std::{net::IpAddr, num::NonZeroU16};

use proptest::prelude::*;
use weft_netlink::netns::Netns;
use weft_types::{EndpointId, NetworkId, ServiceId};

use super::*;

fn service(states: &[(u8, BackendState)], scheduler: Scheduler) -> Service {
    let backend = |&(n, state)| Backend {
        endpoint: EndpointId([n; 16]),
        addrs: vec![IpAddr::from([10, 0, 0, n])],
        weight: NonZeroU16::new(u16::from(n % 3) + 1).unwrap(),
        state,
    };
    Service {
        id: ServiceId([1; 16]),
        vips: vec![IpAddr::from([10, 0, 1, 0])],
        ports: vec![],
        scheduler,
        backends: states.iter().map(backend).collect(),
        idle_timeout: None,
        is_watched: false,
    }
}

fn any_scheduler() -> impl Strategy<Value = Scheduler> {
    prop::sample::select(Scheduler::ALL.to_vec())
}

fn any_states() -> impl Strategy<Value = Vec<(u8, BackendState)>> {
    let state = prop::sample::select(vec![
        BackendState::Active,
        BackendState::Draining,
        BackendState::Down,
    ]);
    prop::collection::btree_map(0u8..50, state, 0..40).prop_map(|states| states.into_iter().collect())
}

proptest! {
    #[test]
    fn exactly_the_active_backends_are_chosen(states in any_states(), scheduler in any_scheduler()) {
        let service = service(&states, scheduler);
        let chosen = choices(&service, false, &Loads::new());
        for backend in &service.backends {
            let active = backend.state == BackendState::Active;
            // Under weights one round of least connection may end before the lightest have their turn.
            if !active || scheduler != Scheduler::LeastConnections {
                prop_assert_eq!(chosen.contains(&backend.endpoint), active);
            }
        }
        prop_assert_eq!(chosen.is_empty(), service.active(false).is_empty());
        prop_assert!(choices(&service, true, &Loads::new()).is_empty(), "nobody has an IPv6 address");
    }

    #[test]
    fn the_order_in_which_backends_are_given_does_not_matter(states in any_states(), scheduler in any_scheduler()) {
        let forward = service(&states, scheduler);
        let mut backward = forward.clone();
        backward.backends.reverse();
        prop_assert_eq!(choices(&forward, false, &Loads::new()), choices(&backward, false, &Loads::new()));
    }
}

#[test]
fn the_fake_chooses_as_the_kernel_would_and_fails_on_demand() {
    let netns = Netns::current().unwrap();
    let fake = FakeDatapath::new();
    let states = [1, 2, 3].map(|n| (n, BackendState::Active));
    let mut web = service(&states, Scheduler::RoundRobin);
    let vip = web.vips[0];
    let table = |service: &Service| [ClientTable::new(NetworkId([1; 16]), [service.clone()])];
    assert_eq!(fake.sync("a", &netns, &table(&web)).unwrap().changed, 1);
    assert!(fake.sync("a", &netns, &table(&web)).unwrap().is_nothing());
    let turns: Vec<_> = (0..4).map(|_| fake.connect("a", vip).unwrap().0[0]).collect();
    assert_eq!(turns, [1, 2, 3, 1]);
    assert_eq!(fake.connect("elsewhere", vip), None);
    assert_eq!(fake.connections(web.id), None);

    web.scheduler = Scheduler::LeastConnections;
    fake.fail_with(Some("no kernel"));
    let error = fake.sync("a", &netns, &table(&web)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot translate virtual addresses in sandbox a"
    );
    assert_eq!(
        fake.tables("a").unwrap()[0].services[0].scheduler,
        Scheduler::RoundRobin
    );
    fake.fail_with(None);
    fake.sync("a", &netns, &table(&web)).unwrap();
    (1..=3).for_each(|n| fake.close(web.id, EndpointId([n; 16])));
    assert_eq!(
        fake.connections(web.id)
            .unwrap()
            .values()
            .copied()
            .collect::<Vec<_>>(),
        [1, 0, 0]
    );
    assert_ne!(fake.connect("a", vip).unwrap().0[0], 1);
    fake.remove("a", None).unwrap();
    assert_eq!(fake.tables("a"), None);
}

#[test]
fn what_a_datapath_cannot_do_it_does_not_claim_to_have_done() {
    let (netns, fake) = (Netns::current().unwrap(), FakeDatapath::new());
    let web = service(&[(1, BackendState::Active)], Scheduler::RoundRobin);
    assert_eq!(fake.expire("a", &netns, std::time::Instant::now()).unwrap(), 0);
    assert!(fake.count("a", &netns, &[&web]).unwrap().is_empty());
    assert!(fake.attempts_of("a", &netns, &[&web]).unwrap().is_empty());
    assert_eq!(fake.attempts(web.id), None);
}

#[test]
fn attempts_add_up_one_by_one() {
    let one = Attempts {
        total: 20,
        failed: 2,
        tcp: 15,
        made: 4,
        unknown: 3,
    };
    let mut sum = Attempts {
        total: 1,
        failed: 2,
        tcp: 3,
        made: 4,
        unknown: 5,
    };
    sum += one;
    let expected = Attempts {
        total: 21,
        failed: 4,
        tcp: 18,
        made: 8,
        unknown: 8,
    };
    assert_eq!(sum, expected);
    assert_eq!((one.settled(), one.pending()), (9, 6));
}

#[test]
fn a_range_of_ports_leads_to_one_as_long_and_ends_where_ports_do() {
    let pairs = |map: PortMap| map.pairs().collect::<Vec<_>>();
    assert_eq!(pairs(PortMap::tcp(80, 8080)), [(80, 8080)]);
    assert_eq!(
        pairs(PortMap::tcp(80, 8080).times(3)),
        [(80, 8080), (81, 8081), (82, 8082)]
    );
    assert_eq!(pairs(PortMap::tcp(1, 65_535).times(3)), [(1, 65_535)]);
}

#[test]
fn an_idle_timeout_is_at_least_a_second_and_at_most_what_the_kernel_counts() {
    use std::time::Duration;

    let secs = |idle_timeout| {
        let web = service(&[], Scheduler::RoundRobin);
        Service { idle_timeout, ..web }.idle_secs()
    };
    assert_eq!(secs(None), None);
    assert_eq!(secs(Some(Duration::from_millis(500))), Some(1));
    assert_eq!(secs(Some(Duration::from_secs(90))), Some(90));
    assert_eq!(secs(Some(Duration::MAX)), Some(u32::MAX));
}
