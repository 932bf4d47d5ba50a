//! The program against an agent that is not one: what is printed, and the exit code.

use std::{
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{MethodFilter, on},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixListener,
    process::Command,
    sync::Notify,
    time::timeout,
};
use weft::api::{ApiError, ROUTES};

const DEADLINE: Duration = Duration::from_secs(20);

fn samples() -> Value {
    serde_json::from_str(include_str!("../testdata/api.json")).unwrap()
}

/// Answers every route with the sample of its type, or with one error, and notes what it was asked.
struct FakeAgent {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeAgent {
    fn answering(error: Option<ApiError>) -> Self {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut router = Router::new();
        for route in ROUTES {
            let (asked, error) = (asked.clone(), error.clone());
            let answer = async move |method: Method, uri: Uri, body: Bytes| -> Response {
                let line = format!("{method} {uri} {}", String::from_utf8_lossy(&body));
                asked.lock().unwrap().push(line.trim_end().to_owned());
                match error {
                    Some(error) => error.into_response(),
                    None => success(route.response),
                }
            };
            let filter = MethodFilter::try_from(route.method.parse::<Method>().unwrap()).unwrap();
            router = router.route(route.path, on(filter, answer));
        }
        Self::serving(router, asked)
    }

    fn serving(router: Router, asked: Arc<Mutex<Vec<String>>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("weft.sock")).unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            directory,
            asked,
            task,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("weft.sock")
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    async fn run(&self, line: &str) -> Output {
        weft(&self.host(), line).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn success(name: &str) -> Response {
    let samples = samples();
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(item) => Json(json!([samples[item]])).into_response(),
        None if name == "Event" => format!("{}\n{}\n", samples[name], samples[name]).into_response(),
        None => Json(samples[name].clone()).into_response(),
    }
}

fn command(host: &str, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .args(line.split_whitespace())
        .env("WEFT_HOST", host)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn weft(host: &str, line: &str) -> Output {
    timeout(DEADLINE, command(host, line).output())
        .await
        .expect("the program ends")
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Every command that asks the agent something.
const COMMANDS: &[&str] = &[
    "init",
    "join --token T h1:7946",
    "leave",
    "token create",
    "token ls",
    "node ls",
    "node inspect h1",
    "node drain h2",
    "node activate",
    "node rotate-key",
    "node rm h2",
    "network create app",
    "network ls",
    "network inspect app",
    "network rm app",
    "network connect app blue",
    "network disconnect app blue",
    "service create --network app web",
    "service ls",
    "service inspect web",
    "service update --lb lc web",
    "service drain web-1",
    "service activate web-1",
    "service rm web",
    "status",
    "events --since 2026-11-21T12:15:47Z --no-follow",
    "version",
];

#[tokio::test]
async fn every_command_asks_what_it_should_and_shows_the_answer() {
    let agent = FakeAgent::answering(None);
    let mut shown = String::new();
    for line in COMMANDS {
        let output = agent.run(line).await;
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{line}");
        shown += &format!(
            "$ weft {line}\n{}> {}\n\n",
            text(&output.stdout),
            agent.asked().join("\n> ")
        );
    }
    insta::assert_snapshot!("tables", shown);
}

#[tokio::test]
async fn flags_become_the_fields_and_queries_of_requests() {
    let agent = FakeAgent::answering(None);
    let mut asked = String::new();
    for line in [
        "token create --ttl 2h --reusable",
        "node rm --force h2 h3",
        "network create --subnet 10.7.0.0/24 --ip-range 10.7.0.128/25 --gateway 10.7.0.1 --aux-address \
         printer=10.7.0.9 --ipv6 --internal --opt mtu=1450 --label team=shop --allow-overlap app",
        "network connect --name web-1 --alias www --ip 10.7.0.130 --ip6 fd00:7::82 --mac 02:42:0a:07:00:82 \
         --service web --weight 2 app pid:7",
        "service create --network app --lb lc --endpoint-mode dnsrr --port http=80:8080 --port 53/udp web",
        "service create --network app --port 80 --health http=/ready --interval 2s --retries 5 web",
        "service ls --network app",
        "service inspect --network app web",
        "service update --network app --endpoint-mode dnsrr --port 80 web",
        "service update --health tcp=8080 --timeout 500ms --start-period 1m web",
        "service update --health none web",
        "service create --network app --publish 8080:80 --publish [::1]:53:53/udp,mode=host web",
        "service update --publish 8080:80 web",
        "service update --unpublish web",
        "service drain --grace 1m --network app web-1",
        "service activate --network app web-1",
        "node drain --grace 0s",
        "network disconnect --grace 500ms app blue",
        "service rm --network app web",
    ] {
        assert!(agent.run(line).await.status.success(), "{line}");
        asked += &format!("$ weft {line}\n> {}\n", agent.asked().join("\n> "));
    }
    insta::assert_snapshot!("requests", asked);
}

#[tokio::test]
async fn json_is_the_answer_of_the_agent() {
    let agent = FakeAgent::answering(None);
    let samples = samples();
    for (line, expected) in [
        ("init", samples["ClusterInitResponse"].clone()),
        ("token ls", json!([samples["TokenInfo"]])),
        ("node ls", json!([samples["NodeInfo"]])),
        ("node inspect h1", samples["NodeDetail"].clone()),
        ("network ls", json!([samples["NetworkSummary"]])),
        ("network inspect app", samples["NetworkDetail"].clone()),
        ("network connect app blue", samples["ConnectResponse"].clone()),
        ("service ls", json!([samples["ServiceSummary"]])),
        ("service inspect web", samples["ServiceDetail"].clone()),
        ("status", samples["StatusResponse"].clone()),
        (
            "version",
            json!({"client": samples["VersionResponse"], "agent": samples["VersionResponse"]}),
        ),
    ] {
        let output = agent.run(&format!("{line} --format json")).await;
        assert_eq!(
            serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            expected,
            "{line}"
        );
    }
}

#[tokio::test]
async fn quiet_is_whole_ids_only() {
    let agent = FakeAgent::answering(None);
    for (noun, name) in [
        ("node", "NodeInfo"),
        ("network", "NetworkSummary"),
        ("service", "ServiceSummary"),
    ] {
        let output = agent.run(&format!("{noun} ls -q")).await;
        assert_eq!(
            text(&output.stdout),
            format!("{}\n", samples()[name]["id"].as_str().unwrap())
        );
    }
}

#[tokio::test]
async fn every_kind_of_failure_is_a_sentence_a_way_out_and_its_exit_code() {
    for (error, code) in [
        (ApiError::not_found("no network is called `app`"), 3),
        (ApiError::conflict("network `app` exists already"), 4),
        (ApiError::invalid("10.7.0.300 is no address"), 2),
        (
            ApiError::unavailable("no node that owns free addresses answers"),
            1,
        ),
        (ApiError::exhausted("network `app` has no free address"), 1),
        (ApiError::forbidden("the token has expired"), 1),
        (ApiError::internal("the kernel refused"), 1),
    ] {
        let expected = format!("error: {}\n help: do otherwise\n", error.message);
        let agent = FakeAgent::answering(Some(error.with_help("do otherwise")));
        let output = agent.run("network inspect app").await;
        assert_eq!(
            (text(&output.stderr), output.status.code()),
            (expected, Some(code))
        );
        assert_eq!(text(&output.stdout), "");
    }
}

#[tokio::test]
async fn every_command_fails_with_three_when_its_object_is_not_there() {
    let agent = FakeAgent::answering(Some(ApiError::not_found("it is not there")));
    for line in COMMANDS.iter().filter(|line| **line != "version") {
        let output = agent.run(line).await;
        assert_eq!(output.status.code(), Some(3), "{line}");
        assert_eq!(text(&output.stderr), "error: it is not there\n", "{line}");
    }
}

#[tokio::test]
async fn removal_goes_on_after_a_failure_and_still_fails() {
    let answer = async |uri: Uri| match uri.path().strip_prefix("/v1/networks/") {
        Some("b") => ApiError::not_found("no network is called `b`").into_response(),
        _ => success("NetworkRemoveResponse"),
    };
    let router = Router::new().route("/v1/networks/{ref}", axum::routing::delete(answer));
    let agent = FakeAgent::serving(router, Arc::default());
    let output = agent.run("network rm a b c").await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        text(&output.stdout),
        "removed network app (d4d4d4d4d4d4)\n".repeat(2)
    );
    assert_eq!(text(&output.stderr), "error: no network is called `b`\n");
}

#[tokio::test]
async fn an_agent_that_cannot_be_reached_is_exit_code_five() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weft.sock");
    let host = format!("unix://{}", socket.display());
    let missing = weft(&host, "status").await;
    assert_eq!(missing.status.code(), Some(5));
    assert_eq!(
        text(&missing.stderr),
        format!(
            "error: there is no agent on this host: {} does not exist\n help: start it with `sudo weft agent`; \
             if it uses another socket, name that with --host or WEFT_HOST\n",
            socket.display()
        )
    );

    drop(UnixListener::bind(&socket).unwrap());
    let stopped = weft(&host, "network ls").await;
    assert_eq!(stopped.status.code(), Some(5));
    assert!(text(&stopped.stderr).contains("the agent is not running: nothing listens on"));

    let looped = directory.path().join("loop");
    symlink(&looped, &looped).unwrap();
    let looped = weft(&format!("unix://{}", looped.display()), "status").await;
    assert_eq!(looped.status.code(), Some(5));
    assert!(text(&looped.stderr).starts_with("error: the agent cannot be reached on "));
}

#[tokio::test]
async fn the_own_version_is_known_without_an_agent() {
    let output = weft("unix:///nonexistent/weft.sock", "version").await;
    assert!(output.status.success());
    assert!(text(&output.stdout).starts_with(&format!("weft:   {} (API v1)\n", env!("CARGO_PKG_VERSION"))));
    assert!(text(&output.stderr).starts_with("note: there is no agent on this host"));
}

#[tokio::test]
async fn usage_is_exit_code_two_and_help_is_none() {
    for (line, code) in [
        ("--help", 0),
        ("network create --help", 0),
        ("--version", 0),
        ("network", 2),
        ("network create", 2),
        ("network create --opt encrypted=perhaps app", 2),
        ("network create --opt mtu=9 app", 2),
        ("network create --opt mtu=1400 --opt mtu=1500 app", 2),
        ("network create a.b", 2),
        ("service create --network app a.b", 2),
        ("service create --network app --health ftp web", 2),
        ("service create --network app --interval 5s web", 2),
        ("--host unix:///x completion bash", 2),
        ("frobnicate", 2),
    ] {
        // No agent is asked: a socket that does not exist would be exit code 5.
        let output = weft("unix:///nonexistent/weft.sock", line).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {}",
            text(&output.stderr)
        );
    }
    let refused = weft(
        "unix:///nonexistent/weft.sock",
        "network create --opt encrypted=perhaps app",
    )
    .await;
    assert!(text(&refused.stderr).contains("neither yes nor no, so it was not created"));
}

#[tokio::test]
async fn a_stream_of_events_that_breaks_off_is_a_failure() {
    let agent = FakeAgent::answering(None);
    let output = agent.run("events").await;
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let expected = &samples()["Event"];
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap(), *expected);
    }
    assert!(text(&output.stderr).starts_with("error: the agent ended the stream of events\n"));
}

#[tokio::test]
async fn who_waits_for_longer_than_a_second_is_told_what_for() {
    let said = Arc::new(Notify::new());
    let slow = {
        let said = said.clone();
        async move || {
            said.notified().await;
            (StatusCode::OK, success("NetworkSummary"))
        }
    };
    let router = Router::new().route("/v1/networks", axum::routing::post(slow));
    let agent = FakeAgent::serving(router, Arc::default());
    let mut waiting = command(&agent.host(), "network create app")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let line = timeout(DEADLINE, lines.next_line())
        .await
        .expect("a line is written while the answer is waited for")
        .unwrap();
    assert_eq!(line.as_deref(), Some("making network app …"));
    said.notify_one();
    let output = timeout(DEADLINE, waiting.wait_with_output())
        .await
        .expect("the program ends")
        .unwrap();
    assert_eq!(lines.next_line().await.unwrap(), None);
    assert_eq!(
        text(&output.stdout),
        format!("{}\n", samples()["NetworkSummary"]["id"].as_str().unwrap())
    );
}

#[tokio::test]
async fn completions_name_every_noun_in_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = weft("unix:///nonexistent/weft.sock", &format!("completion {shell}")).await;
        let script = text(&output.stdout);
        for noun in ["agent", "network", "service", "node", "token", "whoami"] {
            assert!(script.contains(noun), "{shell}: {noun}");
        }
    }
}
