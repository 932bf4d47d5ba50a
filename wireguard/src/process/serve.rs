//! The control socket.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::stat::{Mode, umask};

use super::{RunError, Shared};
use crate::{
    Answer, Request,
    control::{read_message, write_message},
    secret::scrub_stack,
};

/// The agent has one; the rest is for who looks on.
const MOST_CONNECTIONS: usize = 8;
/// For how long one may ask nothing, or not take its answer. The agent asks four times a second.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Takes over the socket of a process that is gone, not that of one that runs. Only its owner gets at it.
pub fn listen(path: &Path) -> Result<UnixListener, RunError> {
    let failed = |error: io::Error| RunError::new("listen on the control socket", error);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    match UnixStream::connect(path) {
        Ok(_) => return Err(RunError::Taken(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(path).map_err(failed)?,
    }
    // There is one thread: nobody else's files are concerned.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map_err(failed)
}

pub fn run(shared: &Arc<Shared>, listener: &UnixListener, silence: Duration) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors: some of them are given back with time.
            std::thread::park_timeout(Duration::from_millis(100));
            continue;
        };
        if connections.fetch_add(1, Relaxed) >= MOST_CONNECTIONS {
            connections.fetch_sub(1, Relaxed);
            continue;
        }
        let open = Arc::clone(&connections);
        let serve = move |shared: &Arc<Shared>| {
            // Whatever ends a connection, packets go on as last told.
            let _ = answer_all(shared, &stream, silence);
            open.fetch_sub(1, Relaxed);
        };
        if shared.spawn("connection".to_owned(), serve).is_err() {
            connections.fetch_sub(1, Relaxed);
        }
    }
}

fn answer_all(shared: &Arc<Shared>, mut stream: &UnixStream, silence: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(silence))?;
    stream.set_write_timeout(Some(silence))?;
    loop {
        let answer = match read_message(&mut stream) {
            Ok(Request::Status) => Answer::Status(shared.status()),
            Ok(Request::Apply(desired)) => {
                let generation = desired.generation;
                match shared.apply(*desired) {
                    Ok(failed) => Answer::Applied { generation, failed },
                    Err(why) => Answer::Refused(why),
                }
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                // What follows could begin anywhere.
                write_message(
                    &mut stream,
                    &Answer::Refused(format!("not a request of this version: {error}")),
                )?;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        write_message(&mut stream, &answer)?;
        scrub_stack();
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, thread, time::Instant};

    use super::*;
    use crate::Client;

    #[test]
    fn whoever_asks_nothing_keeps_the_agent_out_for_a_moment_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let shared = Arc::new(Shared::new().unwrap());
        let silence = Duration::from_millis(200);
        thread::spawn(move || run(&shared, &listener, silence));
        let crowd: Vec<_> = (0..MOST_CONNECTIONS)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        let ask = || {
            let mut agent = Client::connect(&path).ok()?;
            agent.status(Duration::from_secs(5)).ok().map(|_| agent)
        };
        assert!(ask().is_none(), "there is room beside them");
        // Each ends by itself.
        for mut silent in crowd {
            silent.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut agent = loop {
            match ask() {
                Some(agent) => break agent,
                None => assert!(Instant::now() < deadline, "the agent is kept out"),
            }
        };
        // Who asks now and then stays.
        for _ in 0..4 {
            thread::park_timeout(silence / 2);
            agent.status(Duration::from_secs(5)).unwrap();
        }
    }
}
