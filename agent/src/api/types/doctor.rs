use serde::{Deserialize, Serialize};

/// `POST /v1/doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DoctorRequest {
    /// Make right what can be made right.
    pub fix: bool,
    /// Only compare what is known: send no packet to hosts and endpoints.
    pub passive: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorResponse {
    /// The node that looked.
    pub node_name: String,
    /// Everything that was looked at.
    pub checks: Vec<DoctorCheck>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorCheck {
    /// What kind of thing.
    pub topic: DoctorTopic,
    /// What exactly: a network, a node, an endpoint, a service.
    pub subject: String,
    /// Whether it is as it should be.
    pub verdict: DoctorVerdict,
    /// What was seen, in a sentence.
    pub sentence: String,
    /// Why that may be; null where all is well, or where it is not known.
    pub cause: Option<String>,
    /// What to do about it; null where there is nothing to do.
    pub help: Option<String>,
}

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoctorTopic {
    /// What the cluster remembers, and whether that contradicts itself.
    Records,
    /// What other nodes believe.
    Peers,
    /// The clocks of other nodes.
    Clock,
    /// What this host's kernel holds.
    Kernel,
    /// The way to other hosts.
    Underlay,
    /// The way to other endpoints, through the tunnel.
    Tunnel,
    /// Who answers for addresses.
    Addresses,
    /// What names resolve to.
    Names,
    /// Whether services and their backends take connections.
    Services,
}

impl DoctorTopic {
    /// Every topic, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Records,
        Self::Peers,
        Self::Clock,
        Self::Kernel,
        Self::Underlay,
        Self::Tunnel,
        Self::Addresses,
        Self::Names,
        Self::Services,
    ];
}

/// Whether something is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoctorVerdict {
    /// It is.
    Ok,
    /// It was not, and is now.
    Fixed,
    /// It cannot be told.
    Unknown,
    /// It is not.
    Wrong,
}

impl DoctorVerdict {
    /// Every verdict, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Fixed, Self::Unknown, Self::Wrong];
}

impl DoctorCheck {
    /// Something that is as it should be.
    pub fn ok(topic: DoctorTopic, subject: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self {
            topic,
            subject: subject.into(),
            verdict: DoctorVerdict::Ok,
            sentence: sentence.into(),
            cause: None,
            help: None,
        }
    }

    /// Something that is not.
    pub fn wrong(topic: DoctorTopic, subject: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self {
            verdict: DoctorVerdict::Wrong,
            ..Self::ok(topic, subject, sentence)
        }
    }

    /// Adds why that may be.
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds the way out.
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with another verdict.
    pub fn judged(mut self, verdict: DoctorVerdict) -> Self {
        self.verdict = verdict;
        self
    }
}
