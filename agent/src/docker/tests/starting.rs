//! A container that dockerd starts is not shown until it runs, and is known by name before.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, sync::watch};

use super::{
    newer::{ENDPOINT, NETWORK, endpoint, network},
    rig::Rig,
};
use crate::{
    control::HealthState,
    docker::{
        containers::Containers,
        engine::{Engine, EngineEvent},
    },
};

/// How far dockerd is.
#[derive(Clone, Copy, PartialEq)]
enum Container {
    Created,
    Starting,
    Runs,
}

struct Docker {
    container: watch::Sender<Container>,
    has_check: bool,
}

async fn inspect(State(docker): State<Arc<Docker>>) -> Json<Value> {
    let mut now = docker.container.subscribe();
    let now = *now.wait_for(|now| *now != Container::Starting).await.unwrap();
    let runs = now == Container::Runs;
    let endpoint = if runs { ENDPOINT } else { "" };
    let check = docker.has_check.then(|| json!({"Test": ["CMD", "true"]}));
    let health = docker.has_check.then(|| json!({"Status": "starting"}));
    Json(json!({
        "Id": "c",
        "Name": "/web",
        "State": {"Running": runs, "Health": health.filter(|_| runs)},
        "Config": {"Hostname": "h", "Labels": {"weft.service": "pages"}, "Healthcheck": check},
        "NetworkSettings": {"Networks": {"app": {"EndpointID": endpoint, "Aliases": ["www"]}}},
    }))
}

async fn members(Path((_, id)): Path<(String, String)>) -> Json<Value> {
    assert_eq!(id, NETWORK);
    Json(json!({"Name": "app", "Id": NETWORK, "Containers": {"c": {"EndpointID": ENDPOINT}}}))
}

fn event(kind: &str, action: &str, id: &str) -> EngineEvent {
    let event =
        json!({"Type": kind, "Action": action, "Actor": {"ID": id, "Attributes": {"container": "c"}}});
    serde_json::from_value(event).unwrap()
}

/// What is known of its endpoint while dockerd starts it, and when it runs.
fn described(has_check: bool) -> [(Vec<String>, Option<String>, Option<HealthState>); 2] {
    let mut rig = Rig::new();
    let pools = network(&mut rig);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let owner = rig.owner.clone();
    let docker = Arc::new(Docker {
        container: watch::Sender::new(Container::Created),
        has_check,
    });
    let router = Router::new()
        .route("/_ping", get(async || [("api-version", "1.41")]))
        .route("/{version}/containers/json", get(async || Json(json!([]))))
        .route("/{version}/containers/{id}/json", get(inspect))
        .route("/{version}/networks/{id}", get(members))
        .with_state(docker.clone());
    let (engine, mut containers) = rig.during(async {
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let engine = Engine::connect(&socket).await.unwrap();
        let mut containers = Containers::default();
        containers.look(&engine, &owner).await.unwrap();
        containers.note(&event("container", "create", "c"), &engine);
        let created = containers.inspected().await.unwrap();
        containers.take_in(created, &engine, &owner).await.unwrap();
        (engine, containers)
    });
    endpoint(&mut rig, &pools);
    docker.container.send_replace(Container::Starting);
    rig.during(async {
        containers.note_network(&event("network", "connect", NETWORK));
        containers.look(&engine, &owner).await.unwrap();
    });
    let early = rig.node.described();
    docker.container.send_replace(Container::Runs);
    rig.during(async {
        let runs = containers.inspected().await.unwrap();
        containers.take_in(runs, &engine, &owner).await.unwrap();
    });
    rig.node.check();
    [early, rig.node.described()]
}

#[test]
fn it_has_its_names_before_it_runs_and_serves_when_it_does() {
    for has_check in [false, true] {
        let [early, late] = described(has_check);
        let names = ["web", "www", "c", "h"].map(str::to_owned).to_vec();
        let health = has_check.then_some(HealthState::Starting);
        assert_eq!(early, (names.clone(), None, health));
        assert_eq!(late, (names, Some("pages".to_owned()), health));
    }
}
