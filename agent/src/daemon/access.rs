//! Who may ask what of the API, and who asked for a change.
//!
//! There are two sockets, and which of them one can connect to is what one may: so the kernel decides by owner, group and mode,
//! supplementary groups and lists of access included, and what may only look can be given to a container by mounting one file.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    extract::{Request, State},
    http::Method,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use nix::unistd::Gid;
use tokio::net::UnixStream;

use crate::{
    api::ApiError,
    options::{AgentOptions, DEFAULT_READ_GROUP, DEFAULT_SOCKET_GROUP},
    serve::{Bounds, SILENCE},
    socket::{self, Bound, FOR_READING, group_of},
};

/// Connections to the API at one time.
pub(crate) const MAX_CONNECTIONS: usize = 1_024;
/// The same of those who may only look.
pub(crate) const MAX_READING: usize = 128;

/// The API's sockets, which nobody can connect to yet.
pub(super) struct Sockets {
    all: Bound,
    reading: Bound,
}

impl Sockets {
    pub(super) fn bind(options: &AgentOptions) -> anyhow::Result<Self> {
        let (all, reading) = (&options.socket, options.run_dir.join(FOR_READING));
        Ok(Self {
            all: bind(all, options.socket_group.as_deref(), DEFAULT_SOCKET_GROUP)?,
            reading: bind(&reading, options.read_group.as_deref(), DEFAULT_READ_GROUP)?,
        })
    }

    /// Each with what may be done by it.
    pub(super) fn open(self) -> [(Bound, Access); 2] {
        let reading = Access::Reading {
            socket: self.reading.path().to_owned(),
            changes: self.all.path().to_owned(),
        };
        [(self.all, Access::All), (self.reading, reading)]
    }
}

fn bind(path: &Path, asked: Option<&str>, usual: &str) -> anyhow::Result<Bound> {
    let failed = || format!("cannot serve the API at {}", path.display());
    let group = socket::group(asked, usual).with_context(failed)?;
    match Bound::new(path, group) {
        // In a user namespace the groups of the host are not there to be given anything.
        Err(error) if asked.is_none() && group.is_some() => {
            tracing::info!(group = usual, %error, "the usual group is not let in");
            Bound::new(path, None::<Gid>)
        }
        bound => bound,
    }
    .with_context(failed)
}

/// What may be done by a socket.
#[derive(Debug, Clone)]
pub(super) enum Access {
    All,
    /// To look, and the rest at another socket.
    Reading {
        socket: PathBuf,
        changes: PathBuf,
    },
}

impl Access {
    /// What bounds its connections. Who may only look takes no place from who may do everything.
    pub(super) fn bounds(&self) -> Bounds {
        let places = match self {
            Self::All => MAX_CONNECTIONS,
            Self::Reading { .. } => MAX_READING,
        };
        Bounds {
            places,
            silence: SILENCE,
        }
    }

    /// The same service for whoever comes by this socket.
    pub(super) fn guard(self, router: Router) -> Router {
        router.layer(from_fn_with_state(self, admit))
    }

    fn check(&self, method: &Method, path: &str) -> Result<(), ApiError> {
        let Self::Reading { socket, changes } = self else {
            return Ok(());
        };
        if is_look(method) {
            return Ok(());
        }
        let error = ApiError::forbidden(format!(
            "{method} {path} does more than look, and {} is for looking only; nothing was changed",
            socket.display()
        ));
        Err(error.with_help(match group_of(changes) {
            Some(group) => format!(
                "who is in the group `{group}` may do it: `sudo usermod -aG {group} USER`, then log in anew; or run the command \
                 with sudo"
            ),
            None => "run the command with sudo; `weft agent --socket-group GROUP` lets a group do it too".to_owned(),
        }))
    }
}

/// What changes nothing and sends no packet. `doctor` and `why` are no such thing: they try connections in the place of endpoints.
fn is_look(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Who is at the other end of a connection, as the kernel says (`SO_PEERCRED`): it cannot be made up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller(Option<Peer>);

#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: u32,
    gid: u32,
    /// None where the process is in a namespace that this agent does not see into.
    pid: Option<i32>,
}

impl Caller {
    pub(super) fn of(stream: &UnixStream) -> Self {
        let peer = stream.peer_cred().map(|peer| Peer {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid().filter(|pid| *pid != 0),
        });
        Self(peer.ok())
    }
}

/// Before anything is done, as whoever asked may be gone when it is.
async fn admit(
    State(access): State<Access>,
    Extension(Caller(peer)): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let allowed = access.check(method, path);
    if !is_look(method) {
        let (uid, gid) = (peer.map(|peer| peer.uid), peer.map(|peer| peer.gid));
        let pid = peer.and_then(|peer| peer.pid);
        match &allowed {
            Ok(()) => tracing::info!(%method, path, uid, gid, pid, "a change is asked for"),
            Err(_) => tracing::info!(%method, path, uid, gid, pid, "a change is refused"),
        }
    }
    match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ErrorKind, ROUTES};

    #[test]
    fn by_the_socket_for_reading_one_can_only_look() {
        let reading = Access::Reading {
            socket: "/run/weft/weft-read.sock".into(),
            changes: "/nonexistent/weft.sock".into(),
        };
        for route in ROUTES {
            let method: Method = route.method.parse().unwrap();
            assert_eq!(Access::All.check(&method, route.path), Ok(()));
            match reading.check(&method, route.path) {
                Ok(()) => assert_eq!(route.method, "GET"),
                Err(error) => {
                    assert_ne!(route.method, "GET");
                    assert_eq!(error.kind, ErrorKind::Forbidden);
                    assert!(error.help.unwrap().contains("--socket-group"));
                }
            }
        }
        for other in ["PUT", "OPTIONS", "CONNECT", "TRACE", "get"] {
            assert!(
                reading.check(&other.parse().unwrap(), "/v1/status").is_err(),
                "{other}"
            );
        }
    }
}
