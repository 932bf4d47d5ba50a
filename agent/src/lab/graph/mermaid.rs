//! The lab as a Mermaid flow chart: services on the left, hosts with their replicas, networks on the right.

use super::Drawing;
use crate::lab::resolve::Topology;

pub(super) fn draw(drawing: &Drawing<'_>) -> String {
    let topology = drawing.topology;
    let ids = Ids { topology };
    let mut out = Chart::default();
    out.line("flowchart LR");
    for (number, service) in topology.services.iter().enumerate() {
        let mut label = vec![format!("<b>{}</b> on {}", service.name, service.network)];
        label.extend(drawing.service_lines(
            &service.name,
            &service.network,
            service.endpoint_mode,
            service.lb,
        ));
        out.line(&format!("  service{number}([\"{}\"])", label.join("<br/>")));
    }
    for host in &topology.hosts {
        let state = if drawing.host_up(&host.name) {
            ""
        } else {
            " (down)"
        };
        out.line(&format!(
            "  subgraph {}[\"{} · {}{state}\"]",
            ids.host(&host.name),
            host.name,
            host.advertise()
        ));
        for replica in topology
            .replicas
            .iter()
            .filter(|replica| replica.host == host.name)
        {
            let mut label = vec![format!("<b>{}</b>", replica.name)];
            for attachment in &replica.attachments {
                label.extend(drawing.addresses(&replica.name, &attachment.network));
            }
            out.line(&format!(
                "    {}[\"{}\"]",
                ids.replica(&replica.name),
                label.join("<br/>")
            ));
        }
        out.line("  end");
    }
    for network in &topology.networks {
        let mut label = vec![format!("<b>{}</b>", network.name)];
        label.extend(drawing.traits_of(&network.name));
        label.extend(drawing.subnets(&network.name));
        out.line(&format!(
            "  {}{{{{\"{}\"}}}}",
            ids.network(&network.name),
            label.join("<br/>")
        ));
    }
    for (number, service) in topology.services.iter().enumerate() {
        for replica in &service.replicas {
            // A dotted arrow leads to a backend that gets no connections.
            let arrow = if drawing.replica_runs(replica) {
                "-->"
            } else {
                "-.->"
            };
            out.line(&format!("  service{number} {arrow} {}", ids.replica(replica)));
        }
    }
    for replica in &topology.replicas {
        for attachment in &replica.attachments {
            out.line(&format!(
                "  {} --- {}",
                ids.replica(&replica.name),
                ids.network(&attachment.network)
            ));
        }
    }
    out.line("  classDef down fill:#fde8e8,stroke:#c0392b,color:#7b241c");
    let mut down: Vec<_> = topology
        .hosts
        .iter()
        .filter(|host| !drawing.host_up(&host.name))
        .map(|host| ids.host(&host.name))
        .collect();
    down.extend(
        topology
            .replicas
            .iter()
            .filter(|replica| !drawing.replica_runs(&replica.name))
            .map(|replica| ids.replica(&replica.name)),
    );
    if !down.is_empty() {
        out.line(&format!("  class {} down", down.join(",")));
    }
    out.text
}

#[derive(Default)]
struct Chart {
    text: String,
}

impl Chart {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// Identifiers by number: names may hold what Mermaid reads as an arrow or a word of its own.
struct Ids<'t> {
    topology: &'t Topology,
}

impl Ids<'_> {
    fn host(&self, name: &str) -> String {
        number(
            "host",
            self.topology.hosts.iter().position(|host| host.name == name),
        )
    }

    fn replica(&self, name: &str) -> String {
        number(
            "replica",
            self.topology
                .replicas
                .iter()
                .position(|replica| replica.name == name),
        )
    }

    fn network(&self, name: &str) -> String {
        number(
            "network",
            self.topology
                .networks
                .iter()
                .position(|network| network.name == name),
        )
    }
}

fn number(kind: &str, position: Option<usize>) -> String {
    format!("{kind}{}", position.unwrap_or_default())
}
