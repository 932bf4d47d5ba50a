use std::{os::unix::fs::PermissionsExt, time::Instant};

use axum::{
    Json, Router,
    extract::{Path, Query},
    routing::{get, post},
};
use tokio::net::UnixListener;

use super::*;
use crate::api::{ApiError, Timestamp};

/// Serves `router` on a socket in a directory of its own until it is dropped.
struct FakeAgent {
    directory: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl FakeAgent {
    fn start(router: Router) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("weft.sock")).unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { directory, task }
    }

    fn client(&self) -> Client {
        Client::new(self.directory.path().join("weft.sock")).with_deadline(Duration::from_secs(5))
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_name_reaches_the_agent_unchanged_whatever_is_in_it() {
    let router = Router::new().route(
        routes::SERVICE,
        get(
            async |Path(service): Path<String>, Query(query): Query<ServiceQuery>| {
                Err::<(), _>(ApiError::not_found(format!("{service} on {:?}", query.network)))
            },
        ),
    );
    let agent = FakeAgent::start(router);
    for name in ["web", "web~12ab", "a/b", "ä?x=1&y#z", "50%"] {
        let error = agent.client().service(name, Some(name)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{name} on Some({name:?})"));
        assert_eq!(error.exit_code(), 3);
    }
}

#[tokio::test]
async fn an_error_of_the_agent_arrives_whole() {
    let error = ApiError::conflict("network `app` exists already").with_help("choose another name");
    let answer = error.clone();
    let router = Router::new().route(routes::NETWORKS, post(async move || Err::<(), _>(answer)));
    let agent = FakeAgent::start(router);
    match agent
        .client()
        .network_create(&NetworkCreateRequest::new("app"))
        .await
        .unwrap_err()
    {
        ClientError::Api(received) => assert_eq!(received, error),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn events_arrive_one_by_one_and_the_stream_ends_with_the_agents_answer() {
    let event = |name: &str| Event {
        time: Timestamp::from_unix_millis(1_795_263_347_250),
        kind: EventKind::NetworkCreated,
        object: EventObject {
            id: "aa".into(),
            name: name.into(),
        },
        attributes: [("driver".to_owned(), "overlay".to_owned())].into(),
    };
    let expected = [event("one"), event("two")];
    let lines = expected
        .iter()
        .map(|event| serde_json::to_string(event).unwrap())
        .collect::<Vec<_>>()
        .join("\n");
    let router = Router::new().route(
        routes::EVENTS,
        get(async move |Query(query): Query<EventsQuery>| {
            assert_eq!(
                query,
                EventsQuery {
                    since: Some(Timestamp::from_unix_millis(5)),
                    follow: true
                }
            );
            lines
        }),
    );
    let agent = FakeAgent::start(router);
    let query = EventsQuery {
        since: Some(Timestamp::from_unix_millis(5)),
        follow: true,
    };
    let mut stream = agent.client().events(&query).await.unwrap();
    for event in expected {
        assert_eq!(stream.next().await.unwrap().unwrap(), event);
    }
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_silent_agent_is_given_up_at_the_deadline() {
    let router = Router::new().route(
        routes::STATUS,
        get(async || std::future::pending::<Json<()>>().await),
    );
    let agent = FakeAgent::start(router);
    let started = Instant::now();
    let error = agent
        .client()
        .with_deadline(Duration::from_millis(50))
        .status()
        .await
        .unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(
        error
            .to_string()
            .contains("did not answer GET /v1/status within 0.05 s"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 1);
}

#[tokio::test]
async fn what_is_not_the_api_is_said_to_be_that() {
    let router = Router::new().route(routes::VERSION, get(async || "hello"));
    let agent = FakeAgent::start(router);
    let error = agent.client().version().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("to GET /v1/version cannot be used: it is not what version"),
        "{error}"
    );
    let error = agent.client().nodes().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("status 404 Not Found without an explanation"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 1, "a missing path is not a missing object");
}

#[tokio::test]
async fn an_agent_that_cannot_be_reached_is_one_of_three_sentences() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weft.sock");
    let client = Client::new(&socket);

    let missing = client.version().await.unwrap_err();
    assert!(matches!(missing, ClientError::NoSocket { .. }), "{missing}");

    // A socket whose owner is gone, as after a crash.
    drop(UnixListener::bind(&socket).unwrap());
    let stopped = client.version().await.unwrap_err();
    assert!(matches!(stopped, ClientError::NotRunning { .. }), "{stopped}");

    for error in [missing, stopped] {
        assert!(error.to_string().contains(&socket.display().to_string()));
        assert!(error.help().unwrap().contains("sudo weft agent"));
        assert_eq!(error.exit_code(), 5);
    }
}

#[tokio::test]
async fn a_socket_of_others_says_who_may_use_it() {
    if nix::unistd::geteuid().is_root() {
        // Root may open every socket, so the operating system's answer is made up here.
        let error = ClientError::connect(
            std::path::Path::new("/run/weft/weft.sock"),
            std::io::ErrorKind::PermissionDenied.into(),
        );
        return assert_no_permission(&error);
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weft.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_no_permission(&Client::new(&socket).version().await.unwrap_err());
}

fn assert_no_permission(error: &ClientError) {
    assert!(
        error
            .to_string()
            .starts_with("you may not talk to the agent: permission denied on /"),
        "{error}"
    );
    // That of a socket in a temporary directory is whatever group the test has.
    let help = error.help().unwrap();
    assert!(help.contains("sudo"), "{help}");
    assert_eq!(error.exit_code(), 5);
}
