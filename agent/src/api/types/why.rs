use serde::{Deserialize, Serialize};

use super::DoctorVerdict;

/// `POST /v1/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyRequest {
    /// The name of a service or an endpoint, an alias, a name in full, or an address.
    pub name: String,
    /// The endpoint of this host that asks; one that can be answered if null.
    #[serde(default)]
    pub from: Option<String>,
    /// Only what this network knows.
    #[serde(default)]
    pub network: Option<String>,
}

/// What a question passes, from one end to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyResponse {
    /// What was asked for.
    pub name: String,
    /// The endpoint that asks; null where this host has none on the networks in question.
    pub from: Option<String>,
    /// The node that looked.
    pub node_name: String,
    /// What was found, in the order in which a question passes it.
    pub steps: Vec<WhyStep>,
}

/// One thing on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyStep {
    /// What kind of thing.
    pub stage: WhyStage,
    /// Whether it is as it should be.
    pub verdict: DoctorVerdict,
    /// What was seen, in a sentence.
    pub sentence: String,
    /// What to do about it; null where there is nothing to do.
    pub help: Option<String>,
}

/// What a step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyStage {
    /// Who asks, and on which networks.
    Asker,
    /// What the cluster remembers of the name.
    Record,
    /// What the name server says.
    Answer,
    /// The service's own address.
    Service,
    /// One endpoint behind it, and whether it gets connections.
    Backend,
    /// The way to an endpoint: neighbour and forwarding entries, the tunnel.
    Way,
}

impl WhyStage {
    /// Every stage, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Asker,
        Self::Record,
        Self::Answer,
        Self::Service,
        Self::Backend,
        Self::Way,
    ];
}
