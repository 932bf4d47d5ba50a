//! The time to attach a namespace to a network that this host carries already, and to detach it.
//!
//! Ours chooses address and MAC, writes the record to the disk, attaches, tells the cluster, and answers. The others are given
//! everything and only attach: the same links, addresses, routes and entries.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use netns_harness::{Inside as _, Sandbox};
use serde_json::{Value, json};

mod netlink;

use crate::{
    Effort,
    api::Api,
    cluster::{Cluster, Node, target},
    table::{Table, Unit},
    tools::{command, output},
};

/// The bridge that the others attach to.
const BRIDGE: &str = "attach-br";
const PORT: &str = "attach-p";
const MAC: &str = "02:97:00:00:00:02";

/// What the others do: per program and namespace, lines for it. `SANDBOX` is the namespace's name.
const STEPS: [(&str, &[&str]); 3] = [
    (
        "ip",
        &[
            "link add attach-p mtu 1450 type veth peer name eth0 address 02:97:00:00:00:02 mtu 1450 netns SANDBOX",
            "link set attach-p alias bench master attach-br up",
            "neigh replace 10.97.0.2 lladdr 02:97:00:00:00:02 dev attach-br nud permanent",
        ],
    ),
    (
        "bridge",
        &[
            "link set dev attach-p learning off flood off",
            "fdb replace 02:97:00:00:00:02 dev attach-p master static",
        ],
    ),
    (
        "ip -n SANDBOX",
        &[
            "link set lo up",
            "link set eth0 alias bench up",
            "addr add 10.97.0.2/24 dev eth0",
            "route add 169.254.53.53 dev eth0",
            "route add default via 10.97.0.1",
        ],
    ),
];

pub fn measure(cluster: &Cluster, effort: Effort, table: &mut Table) -> Result<()> {
    let [node, _] = &cluster.nodes;
    cluster.network("attach")?;
    cluster.network("serving")?;
    for service in ["one", "two", "three"] {
        node.api()?
            .post("/v1/services", &json!({ "network": "serving", "name": service }))?;
    }
    // These stay, and with them the networks' namespaces.
    node.endpoint("attach", "attach-first", json!({}))?;
    node.endpoint("serving", "serving-first", json!({ "service": "one" }))?;
    for line in [
        format!("ip link add {BRIDGE} mtu 1450 type bridge mcast_snooping 0"),
        format!("ip addr add 10.97.0.1/24 dev {BRIDGE}"),
        format!("ip link set {BRIDGE} up"),
    ] {
        output(&node.host, &line)?;
    }

    let sandbox = |name| node.host.sandbox(name);
    let mut api = OverApi {
        api: node.api()?,
        network: "attach",
        sandbox: sandbox("attach-api")?,
    };
    let mut serving = OverApi {
        api: node.api()?,
        network: "serving",
        sandbox: sandbox("attach-vip")?,
    };
    let mut cli = Cli {
        weft: cluster.weft.clone(),
        socket: node.socket.clone(),
        sandbox: sandbox("attach-cli")?,
    };
    let by_hand = sandbox("attach-hand")?;
    let mut one_by_one = Programs {
        node,
        sandbox: by_hand.clone(),
        batch: false,
    };
    let mut in_batches = Programs {
        node,
        sandbox: by_hand.clone(),
        batch: true,
    };
    let mut netlink = netlink::InOneProcess::new(node, by_hand)?;

    let mut ways: [(&mut dyn Way, Vec<f64>, Vec<f64>); 6] = [
        (&mut api, vec![], vec![]),
        (&mut serving, vec![], vec![]),
        (&mut cli, vec![], vec![]),
        (&mut one_by_one, vec![], vec![]),
        (&mut in_batches, vec![], vec![]),
        (&mut netlink, vec![], vec![]),
    ];
    for round in 0..effort.attachments {
        if round % 10 == 0 {
            eprintln!("attach: round {} of {}", round + 1, effort.attachments);
        }
        for (way, attaching, detaching) in &mut ways {
            attaching.push(way.attach()?);
            detaching.push(way.detach()?);
        }
    }
    let [api, serving, cli, one_by_one, in_batches, netlink] =
        ways.map(|(_, attach, detach)| (attach, detach));
    let others: [(&str, &[f64]); 3] = [
        ("`ip` and `bridge`, 10 commands", &one_by_one.0),
        ("the same in 3 batches", &in_batches.0),
        ("one process, netlink", &netlink.0),
    ];
    table.compare("attach, API", Unit::Time, &api.0, &others);
    table.compare("attach, API, 3 services", Unit::Time, &serving.0, &others[2..]);
    table.compare("attach, CLI", Unit::Time, &cli.0, &others[..1]);
    table.compare(
        "detach, API",
        Unit::Time,
        &api.1,
        &[("`ip link delete`", &one_by_one.1)],
    );
    Ok(())
}

/// A way to attach one sandbox, again and again. Both answer with the seconds it took.
trait Way {
    fn attach(&mut self) -> Result<f64>;
    fn detach(&mut self) -> Result<f64>;
}

struct OverApi {
    api: Api,
    network: &'static str,
    sandbox: Sandbox,
}

impl OverApi {
    fn ask(&mut self, verb: &str) -> Result<f64> {
        let (path, request) = (
            format!("/v1/networks/{}/{verb}", self.network),
            target(&self.sandbox),
        );
        let start = Instant::now();
        let answer: Value = self.api.post(&path, &request)?;
        let took = start.elapsed();
        answer["id"].as_str().context("the answer names no endpoint")?;
        Ok(took.as_secs_f64())
    }
}

impl Way for OverApi {
    fn attach(&mut self) -> Result<f64> {
        self.ask("connect")
    }

    fn detach(&mut self) -> Result<f64> {
        self.ask("disconnect")
    }
}

struct Cli {
    weft: PathBuf,
    socket: PathBuf,
    sandbox: Sandbox,
}

impl Cli {
    fn run(&self, verb: &str) -> Result<f64> {
        let mut command = Command::new(&self.weft);
        command.arg(format!("--host=unix://{}", self.socket.display()));
        command.args(["network", verb, "attach"]).arg(self.sandbox.path());
        timed(&mut command)
    }
}

impl Way for Cli {
    fn attach(&mut self) -> Result<f64> {
        self.run("connect")
    }

    fn detach(&mut self) -> Result<f64> {
        self.run("disconnect")
    }
}

struct Programs<'c> {
    node: &'c Node,
    sandbox: Sandbox,
    batch: bool,
}

impl Way for Programs<'_> {
    fn attach(&mut self) -> Result<f64> {
        let fill = |text: &str| text.replace("SANDBOX", self.sandbox.name());
        self.node.host.run(|| {
            let mut took = 0.0;
            for (program, lines) in STEPS {
                if self.batch {
                    let mut file = tempfile::NamedTempFile::new()?;
                    lines
                        .iter()
                        .try_for_each(|line| writeln!(file, "{}", fill(line)))?;
                    let line = format!("{} -batch {}", fill(program), file.path().display());
                    took += timed(&mut command(&line))?;
                } else {
                    for line in lines {
                        took += timed(&mut command(&fill(&format!("{program} {line}"))))?;
                    }
                }
            }
            Ok(took)
        })?
    }

    fn detach(&mut self) -> Result<f64> {
        delete(self.node)
    }
}

fn delete(node: &Node) -> Result<f64> {
    node.host
        .run(|| timed(&mut command(&format!("ip link delete {PORT}"))))?
}

/// Runs it to its end, and fails if it fails.
fn timed(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("{command:?}"))?;
    let took = start.elapsed();
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(took.as_secs_f64())
}
