use serde_json::json;

use super::*;
use crate::{
    api::types::{NetworkCreateRequest, Scheduler, ServiceQuery, ServiceUpdateRequest},
    control::{
        Command,
        world::{Answer, Kernel, World},
    },
};

/// Three nodes, and a service that all have.
fn world() -> World {
    let mut world = World::of(3);
    let network = NetworkCreateRequest::new("app");
    world.done(0, |to| Command::NetworkCreate(network, to));
    let service = serde_json::from_value(json!({"network": "app", "name": "web"})).unwrap();
    let made = world.done(0, |to| Command::ServiceCreate(service, to));
    assert_eq!(made.unconfirmed, Vec::new());
    for node in 0..3 {
        world
            .connect(node, "app", &format!("client-{node}"), None)
            .unwrap();
    }
    world.pass(Duration::from_secs(1));
    world
}

fn update(world: &mut World, scheduler: Scheduler) -> Answer<ServiceChanged> {
    let request = ServiceUpdateRequest {
        scheduler: Some(scheduler),
        ..Default::default()
    };
    let query = ServiceQuery::default();
    world.ask(0, |to| {
        Command::ServiceUpdate("web".to_owned(), request, query, to)
    })
}

fn unconfirmed(answer: &mut Answer<ServiceChanged>) -> Option<Vec<(String, String)>> {
    let unconfirmed = answer.get()?.unconfirmed.into_iter();
    Some(unconfirmed.map(|node| (node.node_name, node.reason)).collect())
}

#[test]
fn a_change_is_answered_when_the_last_kernel_has_it() {
    let mut world = world();
    world.nodes[2].kernel = Kernel::Hangs;
    let mut answer = update(&mut world, Scheduler::Lc);
    world.pass(Duration::from_secs(4));
    assert_eq!(unconfirmed(&mut answer), None, "one has not applied it yet");
    world.nodes[2].kernel = Kernel::Obeys;
    let took = world.until(Duration::from_secs(1), |_| {
        unconfirmed(&mut answer) == Some(Vec::new())
    });
    assert!(took < Duration::from_millis(10), "{took:?}");
}

#[test]
fn what_a_kernel_does_not_do_in_time_is_said_and_who_it_was() {
    let mut world = world();
    world.nodes[2].kernel = Kernel::Hangs;
    let mut answer = update(&mut world, Scheduler::Lc);
    world.pass(PATIENCE);
    let silent = ("h3".to_owned(), "no answer within 5 s".to_owned());
    assert_eq!(unconfirmed(&mut answer), Some(vec![silent]));

    world.nodes[2].kernel = Kernel::Obeys;
    world.nodes[1].kernel = Kernel::Refuses("no room".to_owned());
    let mut answer = update(&mut world, Scheduler::Rr);
    world.pass(Duration::from_secs(1));
    let refused = ("h2".to_owned(), "no room".to_owned());
    assert_eq!(unconfirmed(&mut answer), Some(vec![refused]));
}

#[test]
fn this_node_is_waited_for_like_others() {
    let mut world = world();
    world.nodes[0].kernel = Kernel::Hangs;
    let mut answer = update(&mut world, Scheduler::Lc);
    world.pass(Duration::from_secs(1));
    assert_eq!(unconfirmed(&mut answer), None);
    world.nodes[0].kernel = Kernel::Obeys;
    world.pass(Duration::from_secs(1));
    assert_eq!(unconfirmed(&mut answer), Some(Vec::new()));
}

#[test]
fn a_lost_question_or_record_is_made_up_for() {
    for losses in 1..12 {
        let mut world = world();
        world.losses = losses;
        let mut answer = update(&mut world, Scheduler::Lc);
        world.pass(PATIENCE);
        assert_eq!(
            unconfirmed(&mut answer),
            Some(Vec::new()),
            "{losses} packets lost"
        );
    }
}

#[test]
fn nobody_waits_for_a_node_that_is_believed_dead() {
    let mut world = world();
    world.nodes[2].is_cut_off = true;
    world.pass(Duration::from_secs(10));
    let mut answer = update(&mut world, Scheduler::Lc);
    world.pass(Duration::from_millis(50));
    assert_eq!(unconfirmed(&mut answer), Some(Vec::new()));
}

#[test]
fn an_agent_that_is_away_is_named_and_not_waited_for() {
    let mut world = world();
    world.hosts_answer = true;
    world.nodes[2].is_cut_off = true;
    world.pass(Duration::from_secs(10));
    let mut answer = update(&mut world, Scheduler::Lc);
    world.pass(Duration::from_millis(50));
    let away = ("h3".to_owned(), AWAY.to_owned());
    assert_eq!(unconfirmed(&mut answer), Some(vec![away]));
}
