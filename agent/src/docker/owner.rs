//! Asking the owner of the state.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};

use crate::{
    api::ApiError,
    control::{Responder, docker::DockerCommand},
};

/// For everything that is asked of the owner of the state. dockerd itself would wait for ever, with the
/// network locked.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way to the owner of the state.
#[derive(Clone)]
pub struct Owner(mpsc::Sender<DockerCommand>);

impl Owner {
    pub fn new(commands: mpsc::Sender<DockerCommand>) -> Self {
        Self(commands)
    }

    /// Asks, and takes for an error that this node is in no cluster.
    pub async fn ask<T>(&self, command: impl FnOnce(Responder<T>) -> DockerCommand) -> Result<T, ApiError> {
        self.ask_if_member(command).await?.unwrap_or_else(|| {
            Err(ApiError::unavailable("this node is in no cluster")
                .with_help("make one with `weft init`, or join one with `weft join --token TOKEN HOST:PORT`"))
        })
    }

    /// `None` if nobody could answer, because this node is in no cluster.
    pub async fn ask_if_member<T>(
        &self,
        command: impl FnOnce(Responder<T>) -> DockerCommand,
    ) -> Result<Option<Result<T, ApiError>>, ApiError> {
        let (responder, answer) = Responder::new();
        let exchange = async {
            if self.0.send(command(responder)).await.is_err() {
                let error = ApiError::unavailable("the agent is stopping; the request was not carried out");
                return Some(Err(error));
            }
            answer.await.ok()
        };
        timeout(PATIENCE, exchange).await.map_err(|_| {
            ApiError::unavailable(format!(
                "the agent did not answer within {} seconds; it may still carry the request out",
                PATIENCE.as_secs()
            ))
        })
    }
}
