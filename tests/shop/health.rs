//! Compose's `healthcheck`, and what `x-weft` tries instead.

use std::time::Duration;

use netns_harness::eventually;

use crate::{
    bed::{LOOK, Lab, User, answers, each},
    rootless::somebody_else,
};

const SOON: Duration = Duration::from_secs(20);

/// `web` is asked over HTTP, `api` by a command that looks for the port it listens on.
const FILE: &str = "\
services:
  web:
    healthcheck: { interval: 200ms, timeout: 1s, retries: 2 }
    x-weft: { builtin: whoami, health: http=/health }
    deploy: { replicas: 3 }
  api:
    healthcheck:
      test: [CMD-SHELL, \"grep -q :1F90 /proc/thread-self/net/tcp\"]
      interval: 200ms
      timeout: 1s
      retries: 2
    x-weft: { builtin: whoami, port: 8080 }
  late:
    command: [sleep, infinity]
    healthcheck: { interval: 200ms, retries: 1 }
    x-weft: { health: tcp }
  client:
    x-weft: { builtin: idle }
";

/// Waits until `calls` are answered by these alone, each as often.
fn answered_by(lab: &Lab<'_>, replicas: &[&str]) {
    let times = 4 * replicas.len() as u32;
    let expected = each(replicas, 4);
    let look = || {
        let ended = lab.lab(
            "call",
            &["client-1", "http://web/", "--times", &times.to_string()],
        );
        match ended.code {
            0 if answers(&ended.stdout) == expected => Ok(()),
            _ => Err(format!("{ended:?}")),
        }
    };
    eventually(format!("answers of {replicas:?}"), SOON, LOOK, look).unwrap();
}

fn says(lab: &Lab<'_>, replica: &str, status: &str) {
    let url = format!("http://{replica}/health");
    lab.exec(
        "client-1",
        &["curl", "-sS", "--fail", "-X", "PUT", "-d", status, &url],
    )
    .good();
}

fn only_healthy_replicas_are_called(user: &User) {
    let lab = user.up(&user.file("lab.yaml", FILE));
    let all = ["web-1", "web-2", "web-3"];
    answered_by(&lab, &all);
    says(&lab, "web-2", "503");
    answered_by(&lab, &["web-1", "web-3"]);
    says(&lab, "web-2", "200");
    answered_by(&lab, &all);

    eventually("the command passes", SOON, LOOK, || {
        let ended = lab.lab("call", &["client-1", "http://api:8080/"]);
        if ended.code == 0 {
            Ok(())
        } else {
            Err(format!("{ended:?}"))
        }
    })
    .unwrap();
    eventually("one that does not listen is unhealthy", SOON, LOOK, || {
        let shown = lab.exec("h1", &["weft", "service", "inspect", "late"]).good();
        if shown.contains("unhealthy") && shown.contains("connecting to port 80: connection refused") {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .unwrap();
    // A virtual address without a healthy backend refuses, at once.
    let refused = lab.lab("call", &["client-1", "http://late/", "--timeout", "1s"]);
    assert!(
        refused.code != 0 && format!("{refused:?}").contains("refused"),
        "{refused:?}"
    );
    lab.down();
}

#[test]
fn only_healthy_replicas_of_a_lab_are_called() {
    only_healthy_replicas_are_called(&User::me());
}

/// Root becomes somebody else for it; for anybody else, the test above is this one.
#[test]
fn an_ordinary_users_lab_checks_its_replicas_too() {
    if let Some(nobody) = somebody_else() {
        only_healthy_replicas_are_called(&nobody);
    }
}
