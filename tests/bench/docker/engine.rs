//! A dockerd on a host of the cluster, spoken to over its socket.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netns_harness::{Host, Inside as _, Output, Process, eventually};
use serde_json::{Value, json};

use crate::{
    cluster::{LOOK_EVERY, PATIENCE},
    tools::command,
};

const SOCKET: &str = "/run/docker.sock";
/// What containers are made from.
pub const IMAGE: &str = "bench";

pub struct Engine {
    pub host: Host,
    _dockerd: Process,
}

impl Engine {
    /// Starts a dockerd and gives it the image.
    pub fn start(host: &Host, dir: &Path) -> Result<Self> {
        let dir = dir.join(format!("docker-{}", host.name()));
        std::fs::create_dir_all(&dir)?;
        let shown = dir.display();
        std::fs::write(dir.join("daemon.json"), r#"{"dns": ["169.254.53.53"]}"#)?;
        let line = format!(
            "dockerd --config-file {shown}/daemon.json --data-root {shown}/data --exec-root {shown}/exec \
             --pidfile /run/docker.pid --host unix://{SOCKET}"
        );
        let log = dir.join("dockerd.log");
        let dockerd = host.spawn(&mut command(&line), Output::File(log.clone()))?;
        let engine = Self {
            host: host.clone(),
            _dockerd: dockerd,
        };
        eventually("an answer of dockerd", PATIENCE, LOOK_EVERY, || {
            engine
                .ask("GET", "/_ping", "")
                .map_err(|error| format!("{error:#}"))
        })
        .with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
        engine.import(&dir)?;
        Ok(engine)
    }

    /// An image with busybox alone.
    fn import(&self, dir: &Path) -> Result<()> {
        let root = dir.join("root");
        std::fs::create_dir_all(root.join("bin"))?;
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        let script = format!(
            "tar -C {} -cf - . | docker --host unix://{SOCKET} import - {IMAGE}",
            root.display()
        );
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-euc", &script])
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy");
        self.host.exec(&mut shell, Duration::from_secs(60))?.success()?;
        Ok(())
    }

    /// One request; the body of the answer.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let answer = self.host.run(|| -> Result<String> {
            let mut stream = UnixStream::connect(SOCKET)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(
            status.starts_with('2'),
            "{method} {path} was answered with {head}: {body}"
        );
        Ok(body.to_owned())
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.ask("POST", path, &body.to_string())?;
        match answer.trim() {
            "" => Ok(Value::Null),
            text => Ok(serde_json::from_str(text)?),
        }
    }

    /// How many seconds a request takes.
    pub fn timed(&self, path: &str, body: &Value) -> Result<f64> {
        let begun = Instant::now();
        self.post(path, body)?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// A container that sleeps, not started yet; Docker's own server in it asks these, or those that all ask.
    pub fn create(&self, name: &str, network: &str, servers: &[&str]) -> Result<()> {
        let config = json!({
            "Image": IMAGE, "Cmd": ["/bin/busybox", "sleep", "100000"], "StopSignal": "KILL",
            "HostConfig": {"NetworkMode": network, "Dns": servers},
        });
        self.post(&format!("/containers/create?name={name}"), &config)?;
        Ok(())
    }

    pub fn start_container(&self, name: &str) -> Result<()> {
        // What dockerd does not read of a request it answers with a reset.
        self.ask("POST", &format!("/containers/{name}/start"), "")?;
        Ok(())
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        self.ask("DELETE", &format!("/containers/{name}?force=1"), "")?;
        Ok(())
    }

    /// Where a container's network namespace is, for this process.
    pub fn namespace(&self, name: &str) -> Result<String> {
        let said: Value = serde_json::from_str(&self.ask("GET", &format!("/containers/{name}/json"), "")?)?;
        let pid = said["State"]["Pid"].as_u64().context("no process")?;
        Ok(format!("/proc/{pid}/ns/net"))
    }
}
