//! Commands that may have to wait for a number from another node.
//!
//! An operation is tried; if it needs a number this node does not own, it is parked while the owners
//! are asked, and tried again from its beginning when one gave. What it took so far it keeps in
//! itself, and gives back if it fails.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use weft_ipam::Want;
use weft_types::NodeId;

use super::{
    Control, Now, Responder,
    docker::{DockerAnswer, DockerTask},
    endpoints::Connect,
    networks::{CreateNetwork, GrowNetwork},
    publish::Enter,
    records::SpaceKey,
    services::SetService,
};
use crate::api::{
    ApiError,
    types::{ConnectResponse, NetworkSummary, ServiceChanged, ServiceSummary},
};

/// After this an operation that still waits fails, whatever it waits for.
const PATIENCE: Duration = Duration::from_secs(8);

pub(super) enum Operation {
    CreateNetwork(CreateNetwork, Responder<NetworkSummary>),
    GrowNetwork(GrowNetwork, Responder<NetworkSummary>),
    Connect(Connect, Responder<ConnectResponse>),
    SetService(SetService, Responder<ServiceChanged>),
    CreateDockerNetwork(CreateNetwork, Responder<()>),
    Docker(DockerTask),
    Enter(Enter),
}

pub(super) struct Parked {
    operation: Operation,
    /// What it waits for; `None` while this node reads back what it may have forgotten.
    waits_for: Option<(SpaceKey, Want)>,
    /// What it has waited for in vain.
    in_vain: Vec<SpaceKey>,
    pub(super) deadline: Instant,
}

/// Why an operation cannot go on.
pub(super) enum Stop {
    Fail(ApiError),
    /// Another node has to give first: `want` of `space`, from one of `ask`.
    Ask {
        space: SpaceKey,
        want: Want,
        ask: Vec<NodeId>,
    },
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self::Fail(error)
    }
}

impl Control {
    pub(super) fn start(&mut self, operation: Operation, now: Now) {
        let deadline = now.instant + PATIENCE;
        if self.reading_back.is_some() {
            self.parked.push_back(Parked {
                operation,
                waits_for: None,
                in_vain: Vec::new(),
                deadline,
            });
        } else {
            self.attempt(operation, Vec::new(), deadline, now);
        }
    }

    fn attempt(&mut self, operation: Operation, in_vain: Vec<SpaceKey>, deadline: Instant, now: Now) {
        self.attempt_or(operation, in_vain, deadline, None, now);
    }

    /// Tries it. If it would have to wait for what it has waited for in vain, it fails, because of that.
    fn attempt_or(
        &mut self,
        mut operation: Operation,
        in_vain: Vec<SpaceKey>,
        deadline: Instant,
        because: Option<&ApiError>,
        now: Now,
    ) {
        self.in_vain.clone_from(&in_vain);
        let stopped = match &mut operation {
            Operation::CreateNetwork(create, _) | Operation::CreateDockerNetwork(create, _) => {
                self.create_network(create, now).map(Done::Network)
            }
            Operation::GrowNetwork(grow, _) => self.grow_network(grow, now).map(Done::Network),
            Operation::Docker(task) => self.attempt_docker(task, now).map(Done::Docker),
            Operation::Enter(enter) => self.enter(enter, now).map(|()| Done::Entered),
            Operation::Connect(connect, _) => self.connect(connect, now).map(|()| Done::Attaching),
            Operation::SetService(set, _) => self
                .set_service(set, now)
                .map(|summary| Done::Service(Box::new(summary))),
        };
        match stopped {
            Ok(done) => self.finish(operation, done, now),
            Err(Stop::Fail(error)) => self.fail(operation, error, now),
            Err(Stop::Ask { space, want, ask }) => {
                if let Some(error) = because.filter(|_| in_vain.contains(&space)) {
                    return self.fail(operation, error.clone(), now);
                }
                self.parked.push_back(Parked {
                    operation,
                    waits_for: Some((space, want.clone())),
                    in_vain,
                    deadline,
                });
                self.seek(space, want, ask, now);
            }
        }
    }

    fn finish(&mut self, operation: Operation, done: Done, now: Now) {
        match (operation, done) {
            (
                Operation::CreateNetwork(_, responder) | Operation::GrowNetwork(_, responder),
                Done::Network(summary),
            ) => self.reply(responder, Ok(summary)),
            (Operation::CreateDockerNetwork(_, responder), Done::Network(_)) => {
                self.reply(responder, Ok(()));
            }
            (Operation::Docker(task), Done::Docker(answer)) => self.finish_docker(task, answer),
            (Operation::SetService(set, responder), Done::Service(summary)) => {
                self.await_service(&set, *summary, responder, now);
            }
            (Operation::Connect(connect, responder), Done::Attaching) => {
                self.await_attachment(connect, responder)
            }
            (Operation::Enter(_), Done::Entered) => {}
            _ => unreachable!("each operation is done in its own way"),
        }
    }

    fn fail(&mut self, operation: Operation, error: ApiError, now: Now) {
        match operation {
            Operation::CreateNetwork(create, responder) => {
                self.abandon_network(create, now);
                self.reply(responder, Err(error));
            }
            Operation::GrowNetwork(grow, responder) => {
                self.abandon_growth(grow, now);
                self.reply(responder, Err(error));
            }
            Operation::CreateDockerNetwork(create, responder) => {
                self.abandon_network(create, now);
                self.reply(responder, Err(error));
            }
            Operation::Docker(task) => self.fail_docker(task, error),
            Operation::Enter(enter) => self.abandon_enter(enter, error, now),
            Operation::Connect(connect, responder) => {
                self.abandon_connect(connect, now);
                self.reply(responder, Err(error));
            }
            Operation::SetService(set, responder) => {
                self.abandon_service(set, now);
                self.reply(responder, Err(error));
            }
        }
    }

    /// Tries everything again that is parked and not waiting for a negotiation under way.
    pub(super) fn resume(&mut self, now: Now) {
        if self.reading_back.is_some() {
            return;
        }
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| {
                !parked
                    .waits_for
                    .as_ref()
                    .is_some_and(|(space, _)| self.spaces.is_seeking(*space))
            });
        self.parked = waiting;
        for Parked {
            operation,
            in_vain,
            deadline,
            ..
        } in ready
        {
            self.attempt(operation, in_vain, deadline, now);
        }
    }

    /// Ends what waits for `want` of `space`, unless it can do with another one: nobody gave. What waits for another part of it is
    /// tried again.
    pub(super) fn fail_waiting(&mut self, space: SpaceKey, want: &Want, error: &ApiError, now: Now) {
        let (failed, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| {
                parked
                    .waits_for
                    .as_ref()
                    .is_some_and(|(s, w)| *s == space && w == want)
            });
        self.parked = waiting;
        for parked in failed {
            let mut in_vain = parked.in_vain;
            in_vain.push(space);
            self.attempt_or(parked.operation, in_vain, parked.deadline, Some(error), now);
        }
        self.resume(now);
    }

    pub(super) fn expire_operations(&mut self, now: Now) {
        let (expired, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|parked| parked.deadline <= now.instant);
        self.parked = waiting;
        for Parked { operation, .. } in expired {
            let error = ApiError::unavailable(format!(
                "no number could be had within {} seconds; nothing was changed",
                PATIENCE.as_secs()
            ))
            .with_help("`weft node ls` shows which nodes can be reached; try again when more of them can");
            self.fail(operation, error, now);
        }
    }
}

enum Done {
    Network(NetworkSummary),
    Service(Box<ServiceSummary>),
    Docker(DockerAnswer),
    Attaching,
    Entered,
}
