//! Endpoints that Docker has forgotten, or not.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::get,
};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::{
    newer::{ENDPOINT, NETWORK, endpoint, network},
    rig::Rig,
};
use crate::docker::{containers::Containers, engine::Engine};

/// A Docker with one container, or none.
#[derive(Clone)]
struct Docker {
    exists: bool,
    /// Whether it runs when the containers are listed.
    is_listed: bool,
    /// Whether it runs when it is looked at.
    runs: bool,
}

async fn list(State(docker): State<Docker>, Query(query): Query<Value>) -> Json<Value> {
    let is_listed = docker.exists && (docker.is_listed || query["all"] == "true");
    Json(if is_listed {
        json!([{"Id": "c"}])
    } else {
        json!([])
    })
}

async fn inspect(State(docker): State<Docker>, Path(_): Path<(String, String)>) -> Json<Value> {
    Json(json!({
        "Id": "c",
        "Name": "/web",
        "State": {"Running": docker.runs},
        "Config": {},
        "NetworkSettings": {"Networks": {"app": {"NetworkID": NETWORK, "EndpointID": ENDPOINT}}},
    }))
}

/// How many endpoints are left when such a Docker was looked at.
fn left(docker: Docker) -> usize {
    let mut rig = Rig::new();
    let pools = network(&mut rig);
    endpoint(&mut rig, &pools);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let owner = rig.owner.clone();
    rig.during(async {
        let router = Router::new()
            .route("/_ping", get(async || [("api-version", "1.41")]))
            .route("/{version}/containers/json", get(list))
            .route("/{version}/containers/{id}/json", get(inspect))
            .with_state(docker);
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let engine = Engine::connect(&socket).await.unwrap();
        let mut containers = Containers::default();
        containers.look(&engine, &owner).await.unwrap();
        while let Some(inspected) = containers.inspected().await {
            containers.take_in(inspected, &engine, &owner).await.unwrap();
            containers.look(&engine, &owner).await.unwrap();
        }
    });
    rig.node.check();
    rig.node.held()[1]
}

#[test]
fn an_endpoint_that_no_container_has_is_removed_at_once() {
    let gone = Docker {
        exists: false,
        is_listed: false,
        runs: false,
    };
    assert_eq!(left(gone), 0);
}

/// What it shows is from before dockerd was killed.
#[test]
fn that_of_a_container_that_does_not_run_is_removed() {
    let stopped = Docker {
        exists: true,
        is_listed: false,
        runs: false,
    };
    assert_eq!(left(stopped), 0);
}

#[test]
fn that_of_a_container_that_was_being_started_stays() {
    let starting = Docker {
        exists: true,
        is_listed: false,
        runs: true,
    };
    assert_eq!(left(starting), 1);
    let running = Docker {
        exists: true,
        is_listed: true,
        runs: true,
    };
    assert_eq!(left(running), 1);
}
