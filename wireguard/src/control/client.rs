use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Answer, Desired, Request, Status, read_message, write_message};

/// Asks the process of the tunnels. Blocking: not for a thread that runs tasks.
pub struct Client {
    stream: UnixStream,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("the process of the tunnels does not answer at {}", .path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke or nothing came in time. The request may have been carried out; connect and ask again.
    #[error("the process of the tunnels did not answer")]
    Broken(#[from] io::Error),
    /// It understood and did nothing.
    #[error("the process of the tunnels refused: {0}")]
    Refused(String),
    /// It runs another version.
    #[error("the process of the tunnels answered something else than was asked: is it of another version?")]
    Unexpected,
}

impl Client {
    /// Connects to the socket of the process.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Absent {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { stream })
    }

    /// Makes it so; what could not be done comes back, a sentence each.
    pub fn apply(&mut self, desired: Desired, timeout: Duration) -> Result<Vec<String>, ClientError> {
        match self.ask(&Request::Apply(Box::new(desired)), timeout)? {
            Answer::Applied { failed, .. } => Ok(failed),
            Answer::Refused(why) => Err(ClientError::Refused(why)),
            Answer::Status(_) => Err(ClientError::Unexpected),
        }
    }

    /// How things are.
    pub fn status(&mut self, timeout: Duration) -> Result<Status, ClientError> {
        match self.ask(&Request::Status, timeout)? {
            Answer::Status(status) => Ok(status),
            Answer::Refused(why) => Err(ClientError::Refused(why)),
            Answer::Applied { .. } => Err(ClientError::Unexpected),
        }
    }

    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Answer, ClientError> {
        let mut stream = Deadline {
            stream: &self.stream,
            at: Instant::now() + timeout,
        };
        write_message(&mut stream, request)?;
        Ok(read_message(&mut stream)?)
    }
}

/// A stream on which all reads and writes together have to be done by then.
struct Deadline<'a> {
    stream: &'a UnixStream,
    at: Instant,
}

impl Deadline<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
