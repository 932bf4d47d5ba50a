//! Pictures of a lab: Mermaid text, an SVG drawn here, or the data as JSON.
//!
//! The same lab always gives the same bytes, so pictures can be kept under version control and compared.

mod mermaid;
mod shapes;
mod svg;

use serde::Serialize;

use super::{live::Live, resolve::Topology};
use crate::api::types::EndpointMode;

/// How a lab is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GraphFormat {
    /// Text that GitHub, GitLab and many editors draw.
    #[default]
    Mermaid,
    /// A picture that every browser shows.
    Svg,
    /// What the pictures are drawn from.
    Json,
}

/// A lab as it is drawn: what the file says and, of a running lab, what became of it.
#[derive(Debug, Serialize)]
pub struct Drawing<'l> {
    /// What the file says.
    pub topology: &'l Topology,
    /// What became of it; `None` for a lab that is not up.
    pub live: Option<&'l Live>,
}

impl Drawing<'_> {
    /// The picture in one of the formats, with a line feed at its end.
    pub fn render(&self, format: GraphFormat) -> String {
        match format {
            GraphFormat::Mermaid => mermaid::draw(self),
            GraphFormat::Svg => svg::draw(self),
            GraphFormat::Json => {
                let mut text = serde_json::to_string_pretty(self).unwrap_or_else(|error| error.to_string());
                text.push('\n');
                text
            }
        }
    }

    fn host_up(&self, host: &str) -> bool {
        self.live.is_none_or(|live| live.is_up(host))
    }

    fn replica_runs(&self, replica: &str) -> bool {
        self.live.is_none_or(|live| live.runs(replica))
    }

    /// The subnets of a network: those it has, or those the file asks for.
    fn subnets(&self, network: &str) -> Vec<String> {
        if let Some(live) = self.live.and_then(|live| live.networks.get(network)) {
            return live.subnets.iter().map(ToString::to_string).collect();
        }
        let spec = self.topology.networks.iter().find(|spec| spec.name == network);
        spec.map(|spec| {
            spec.subnets
                .iter()
                .map(|subnet| subnet.subnet.to_string())
                .collect()
        })
        .unwrap_or_default()
    }

    /// `internal, IPv6`, or nothing.
    fn traits_of(&self, network: &str) -> Option<String> {
        let spec = self.topology.networks.iter().find(|spec| spec.name == network)?;
        let traits: Vec<_> = [(spec.internal, "internal"), (spec.ipv6, "IPv6")]
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| word)
            .collect();
        (!traits.is_empty()).then(|| traits.join(", "))
    }

    /// The addresses of a replica on a network: those it has, or those the file fixes.
    fn addresses(&self, replica: &str, network: &str) -> Vec<String> {
        if let Some(live) = self.live {
            return live
                .addresses(replica, network)
                .iter()
                .map(ToString::to_string)
                .collect();
        }
        let replica = self.topology.replica(replica);
        let attachment = replica.and_then(|replica| {
            replica
                .attachments
                .iter()
                .find(|attachment| attachment.network == network)
        });
        let fixed = attachment.map(|one| {
            [
                one.ipv4.map(|ip| ip.to_string()),
                one.ipv6.map(|ip| ip.to_string()),
            ]
        });
        fixed.into_iter().flatten().flatten().collect()
    }

    /// The lines under a service's name: how it is balanced, and its virtual addresses if it has them yet.
    fn service_lines(
        &self,
        name: &str,
        network: &str,
        mode: EndpointMode,
        lb: impl std::fmt::Display,
    ) -> Vec<String> {
        let mut lines = vec![match mode {
            EndpointMode::Vip => format!("vip, {lb}"),
            EndpointMode::Dnsrr => "dnsrr".to_owned(),
        }];
        if let Some(live) = self.live {
            lines.extend(live.vips(name, network).iter().map(ToString::to_string));
        }
        lines
    }
}

#[cfg(test)]
mod tests;
