//! Two hosts with an agent each, joined in a cluster.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use netns_harness::{Host, Inside as _, Lab, Output, Process, Sandbox, SwitchOptions, eventually};
use serde_json::{Value, json};

use crate::api::Api;

/// An agent starts in a fraction of a second, and knowledge spreads in another.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked meanwhile.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Not the usual one, which a Swarm has too.
const GOSSIP: u16 = 7947;

/// A host with its agent.
#[derive(Debug)]
pub struct Node {
    pub host: Host,
    pub underlay: IpAddr,
    pub socket: PathBuf,
    _agent: Process,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    pub weft: PathBuf,
    pub nodes: [Node; 2],
    lab: Lab,
}

/// What an endpoint was given.
#[derive(Debug)]
pub struct Endpoint {
    pub sandbox: Sandbox,
    pub address: IpAddr,
}

impl Cluster {
    /// With Docker's driver, if dockerds are to come.
    pub fn start(weft: &Path, dir: &Path, docker: bool) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let subnet: IpNet = "10.99.0.0/24".parse()?;
        let underlay = lab.switch("underlay", SwitchOptions::new().subnet(subnet))?;
        let hosts = lab.hosts(&["h1", "h2"])?;
        lab.plug(&underlay, &hosts)?;
        let mut nodes = Vec::new();
        for host in hosts {
            nodes.push(Node::start(host, weft, dir, docker)?);
        }
        let nodes: [Node; 2] = nodes.try_into().ok().context("the lab has two hosts")?;
        let [first, second] = &nodes;
        let mut api = first.api()?;
        let made = api.post("/v1/cluster/init", &json!({}))?;
        let token = made["join"]["token"]
            .as_str()
            .context("the agent gave no token")?;
        let join = json!({ "token": token, "address": format!("{}:{GOSSIP}", first.underlay) });
        second.api()?.post("/v1/cluster/join", &join)?;
        Ok(Self {
            weft: weft.to_owned(),
            nodes,
            lab,
        })
    }

    /// Makes a network and waits until both hosts know it.
    pub fn network(&self, name: &str) -> Result<Value> {
        let [first, second] = &self.nodes;
        let made = first.api()?.post("/v1/networks", &json!({ "name": name }))?;
        let mut api = second.api()?;
        eventually(
            format!("knowledge of network {name}"),
            PATIENCE,
            LOOK_EVERY,
            || {
                api.get(&format!("/v1/networks/{name}"))
                    .map_err(|error| error.to_string())
            },
        )?;
        Ok(made)
    }

    /// What translates virtual addresses, and why it was chosen.
    pub fn datapath(&self) -> Result<String> {
        let status = self.nodes[0].api()?.get("/v1/status")?;
        let of = |field: &str| status["datapath"][field].as_str().unwrap_or_default().to_owned();
        Ok(format!("{} ({})", of("name"), of("reason")))
    }

    /// Ends everything, and fails if something is left.
    pub fn stop(self) -> Result<()> {
        drop(self.nodes);
        Ok(self.lab.close()?)
    }
}

impl Node {
    fn start(host: Host, weft: &Path, dir: &Path, docker: bool) -> Result<Self> {
        let name = host.name().to_owned();
        let underlay = host
            .interface("eth0")?
            .addresses()?
            .first()
            .context("no address")?
            .addr();
        let socket = dir.join(format!("{name}.sock"));
        let mut command = Command::new(weft);
        command
            .arg("agent")
            .arg("--data-dir")
            .arg(dir.join(&name))
            // In the host's own /run, which ends with the host.
            .args(["--run-dir", "/run/weft", "--socket"])
            .arg(&socket)
            .args([
                "--node-name",
                &name,
                "--advertise",
                &format!("{underlay}:{GOSSIP}"),
            ]);
        if docker {
            command
                .args(["--docker-plugin", "/run/docker/plugins/weft.sock"])
                .env("WEFT_LOG", "info,weft::docker=debug");
        }
        let log = dir.join(format!("{name}.log"));
        let agent = host.spawn(&mut command, Output::File(log.clone()))?;
        let answered = eventually(
            format!("an answer from the agent of {name}"),
            PATIENCE,
            LOOK_EVERY,
            || {
                Api::connect(&socket)
                    .and_then(|mut api| api.get("/v1/version"))
                    .map_err(|error| format!("{error:#}"))
            },
        );
        answered.with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
        Ok(Self {
            host,
            underlay,
            socket,
            _agent: agent,
        })
    }

    pub fn api(&self) -> Result<Api> {
        Api::connect(&self.socket)
    }

    /// Makes a sandbox and attaches it; `more` are further fields of the request.
    pub fn endpoint(&self, network: &str, name: &str, more: Value) -> Result<Endpoint> {
        let sandbox = self.host.sandbox(name)?;
        let address = self.connect(network, &sandbox, more)?;
        Ok(Endpoint { sandbox, address })
    }

    /// Attaches a sandbox and returns its address.
    pub fn connect(&self, network: &str, sandbox: &Sandbox, more: Value) -> Result<IpAddr> {
        let mut request = target(sandbox);
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more);
        }
        let made = self
            .api()?
            .post(&format!("/v1/networks/{network}/connect"), &request)?;
        let address = made["addresses"][0]
            .as_str()
            .context("the endpoint has no address")?;
        Ok(address.parse::<IpNet>()?.addr())
    }
}

/// How the API names a sandbox: by its path on the host.
pub fn target(sandbox: &Sandbox) -> Value {
    json!({ "target": sandbox.path().to_string_lossy() })
}

/// Waits until an endpoint can reach another.
pub fn await_ping(from: &Sandbox, to: IpAddr) -> Result<()> {
    let what = format!("a reply from {to}");
    eventually(&what, PATIENCE, LOOK_EVERY, || {
        from.ping(to, Duration::from_millis(200))
            .map_err(|error| error.to_string())
    })?;
    Ok(())
}
