use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    api::{ApiError, ErrorKind},
    socket::{for_reading, group_of},
};

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket: no agent was started, or it uses another path.
    #[error("there is no agent on this host: {} does not exist", socket.display())]
    NoSocket {
        /// The socket.
        socket: PathBuf,
    },
    /// There is a socket, and nobody listens.
    #[error("the agent is not running: nothing listens on {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket belongs to others.
    #[error("you may not talk to the agent: permission denied on {}", socket.display())]
    NoPermission {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be used for another reason.
    #[error("the agent cannot be reached on {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent took the request and was silent.
    #[error(
        "the agent on {} did not answer {method} {path} within {} s; whether it was done is not known",
        socket.display(), deadline.as_secs_f32()
    )]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// The HTTP method.
        method: &'static str,
        /// The path.
        path: String,
        /// What the request may take.
        deadline: Duration,
    },
    /// The connection ended early, or what came is not this API.
    #[error("the answer of {} to {method} {path} cannot be used: {reason}", socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// The HTTP method.
        method: &'static str,
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent said no.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// A socket that could not be connected to.
    pub(super) fn connect(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => Self::NotRunning { socket },
            io::ErrorKind::PermissionDenied => Self::NoPermission { socket },
            _ => Self::Connect { socket, source },
        }
    }

    /// An answer that is none.
    pub(super) fn protocol(socket: &Path, method: &'static str, path: &str, reason: impl ToString) -> Self {
        Self::Protocol {
            socket: socket.to_owned(),
            method,
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// Whether the agent says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.kind == ErrorKind::NotFound)
    }

    /// The way out.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoSocket { .. } | Self::NotRunning { .. } => Some(
                "start it with `sudo weft agent`; if it uses another socket, name that with --host or WEFT_HOST"
                    .to_owned(),
            ),
            Self::NoPermission { socket } => Some(groups(socket)),
            Self::Connect { .. } => {
                Some("--host and WEFT_HOST take unix:///PATH of the agent's socket".to_owned())
            }
            Self::Deadline { .. } => Some(
                "`weft status` says what the agent is busy with or what is wrong; its log says more".to_owned(),
            ),
            Self::Protocol { .. } => {
                Some("`weft version` compares the versions of this program and of the agent".to_owned())
            }
            Self::Api(error) => error.help.clone(),
        }
    }

    /// The exit code of a command that failed this way; 5 is an agent that cannot be reached.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoSocket { .. }
            | Self::NotRunning { .. }
            | Self::NoPermission { .. }
            | Self::Connect { .. } => 5,
            Self::Deadline { .. } | Self::Protocol { .. } => 1,
            Self::Api(error) => error.kind.exit_code(),
        }
    }
}

/// Who would be let in.
fn groups(socket: &Path) -> String {
    let by = |socket: &Path, what: &str| {
        let group = group_of(socket)?;
        Some(format!(
            "who is in the group `{group}` may {what} (`sudo usermod -aG {group} USER`, then log in anew)"
        ))
    };
    let ways = [by(socket, "give every command"), by(&for_reading(socket), "look")];
    let mut ways: Vec<_> = ways.into_iter().flatten().collect();
    if ways.is_empty() {
        return "run the command with sudo; `weft agent --socket-group GROUP` and `--read-group GROUP` let others in"
            .to_owned();
    }
    ways.push("root may with sudo".to_owned());
    ways.join("; ")
}
