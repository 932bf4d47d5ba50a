//! Capturing frames from an interface into a pcap file, or counting those that matter.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::error::LabError;
use crate::namespaces::Namespaces;
use crate::sys;
use crate::wait::TimedOut;
use weft_netlink::packet;

/// With segmentation offload, a frame on a veth can be 64 KiB and its headers.
const LARGEST_FRAME: usize = (64 << 10) + 256;

/// Libpcap's mark of a file with nanoseconds, and the link type of Ethernet.
const PCAP_MAGIC: u32 = 0xa1b2_3c4d;
const PCAP_ETHERNET: u32 = 1;

type Filter = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// What to do with captured frames. Without any option they are counted.
#[derive(Default)]
pub struct CaptureOptions {
    file: Option<PathBuf>,
    filter: Option<Filter>,
}

impl fmt::Debug for CaptureOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureOptions")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl CaptureOptions {
    /// Counts all frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the matching frames to a pcap file, overwriting it. It is complete once the capture is stopped.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Takes only the frames for which this says yes. It sees each from the Ethernet header on.
    #[must_use]
    pub fn filter(mut self, filter: impl FnMut(&[u8]) -> bool + Send + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// Takes only the frames that contain these bytes anywhere: a canary.
    #[must_use]
    pub fn containing(self, needle: impl Into<Vec<u8>>) -> Self {
        let needle = needle.into();
        self.filter(move |frame| {
            needle.is_empty() || frame.windows(needle.len()).any(|window| window == needle)
        })
    }
}

/// What a capture has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames that passed on the interface, in either direction.
    pub frames: u64,
    /// Those of them that the filter took.
    pub matched: u64,
    /// Frames that came faster than they were read, so that nobody knows what was in them.
    pub missed: u64,
}

/// A running capture. Dropping it stops it.
#[derive(Debug)]
pub struct Capture {
    place: String,
    shared: Arc<Shared>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    error: Option<io::Error>,
}

impl Capture {
    pub(crate) fn start(
        namespaces: &Namespaces,
        interface: &str,
        options: CaptureOptions,
    ) -> Result<Self, LabError> {
        let place = format!("{interface} of {}", namespaces.place());
        let what = || format!("capture on {place}");
        let socket = namespaces.run(|| {
            let index = nix::net::if_::if_nametoindex(interface).map_err(|_| LabError::NoInterface {
                place: namespaces.place().to_owned(),
                interface: interface.to_owned(),
            })?;
            let socket = packet::open().map_err(LabError::os(what()))?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))
                .map_err(LabError::os(what()))?;
            packet::bind(socket.as_fd(), index, libc::ETH_P_ALL as u16).map_err(LabError::os(what()))?;
            Ok::<_, LabError>(socket)
        })??;
        let pcap = options
            .file
            .as_deref()
            .map(Pcap::create)
            .transpose()
            .map_err(LabError::os(what()))?;
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC).map_err(LabError::os(what()))?;
        let stop = Arc::new(Stop(Mutex::new(Some(stop))));
        namespaces.remember_capture(&stop);
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new()
            .name("capture".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    if let Err(error) = read_frames(&socket, &stopped, &shared, options.filter, pcap) {
                        shared.lock().error = Some(error);
                        shared.changed.notify_all();
                    }
                }
            })
            .map_err(LabError::os(what()))?;
        Ok(Self {
            place,
            shared,
            stop,
            thread: Some(thread),
        })
    }

    /// What it has seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.lock().seen
    }

    /// Waits until so many frames have matched.
    ///
    /// # Errors
    ///
    /// [`LabError::TimedOut`] with what was seen instead, [`LabError::Os`] if the capture broke.
    pub fn wait_for(&self, matched: u64, timeout: Duration) -> Result<Seen, LabError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(source) = state.error.take() {
                return Err(LabError::Os {
                    what: format!("capture on {}", self.place),
                    source,
                });
            }
            if state.seen.matched >= matched {
                return Ok(state.seen);
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let what = format!("a capture of {matched} matching frames on {}", self.place);
                let Seen {
                    frames,
                    matched,
                    missed,
                } = state.seen;
                let last = format!("{matched} matching of {frames}, {missed} missed");
                return Err(TimedOut { what, timeout, last }.into());
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Takes what has arrived so far, ends the capture and closes its file.
    ///
    /// # Errors
    ///
    /// [`LabError::Os`] if frames could not be received or written.
    pub fn stop(mut self) -> Result<Seen, LabError> {
        self.end();
        let mut state = self.shared.lock();
        match state.error.take() {
            Some(source) => Err(LabError::Os {
                what: format!("capture on {}", self.place),
                source,
            }),
            None => Ok(state.seen),
        }
    }

    fn end(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// The writing end of a pipe: closing it ends the capture.
#[derive(Debug)]
pub(crate) struct Stop(Mutex<Option<OwnedFd>>);

impl Stop {
    pub(crate) fn stop(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_frames(
    socket: &OwnedFd,
    stopped: &OwnedFd,
    shared: &Shared,
    mut filter: Option<Filter>,
    mut pcap: Option<Pcap>,
) -> io::Result<()> {
    let mut buffer = vec![0; LARGEST_FRAME];
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::NONE)?;
        let stopping = ready[1].any() == Some(true);
        let mut seen = Seen::default();
        loop {
            let length = match sys::packet_recv(socket.as_fd(), &mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The interface went down or away; it may come back up.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::EINTR)) => continue,
                Err(error) => return Err(error),
            };
            let frame = &buffer[..length.min(buffer.len())];
            seen.frames += 1;
            if filter.as_mut().is_none_or(|filter| filter(frame)) {
                seen.matched += 1;
                if let Some(pcap) = &mut pcap {
                    pcap.write(frame, length)?;
                }
            }
            // A flood must neither hide the stop nor keep the figures back.
            if seen.frames == 256 {
                break;
            }
        }
        seen.missed = u64::from(sys::packet_drops(socket.as_fd())?);
        let drained = seen.frames < 256;
        let mut state = shared.lock();
        state.seen.frames += seen.frames;
        state.seen.matched += seen.matched;
        state.seen.missed += seen.missed;
        drop(state);
        shared.changed.notify_all();
        if stopping && drained {
            return pcap.map_or(Ok(()), Pcap::finish);
        }
    }
}

/// A pcap file with nanosecond time stamps (the format of libpcap's savefiles, in our byte order).
struct Pcap {
    file: BufWriter<File>,
}

impl Pcap {
    fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        let snap = u32::try_from(LARGEST_FRAME).unwrap_or(u32::MAX);
        // Magic number, version 2.4, time zone, accuracy of time stamps, longest frame, link type.
        file.write_all(&PCAP_MAGIC.to_ne_bytes())?;
        file.write_all(&2_u16.to_ne_bytes())?;
        file.write_all(&4_u16.to_ne_bytes())?;
        for word in [0, 0, snap, PCAP_ETHERNET] {
            file.write_all(&word.to_ne_bytes())?;
        }
        Ok(Self { file })
    }

    fn write(&mut self, frame: &[u8], length: usize) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        // The format has 32 bits for the seconds, unsigned: good until 2106.
        for word in [now.as_secs() as u32, now.subsec_nanos(), kept, length] {
            self.file.write_all(&word.to_ne_bytes())?;
        }
        self.file.write_all(frame)
    }

    fn finish(mut self) -> io::Result<()> {
        self.file.flush()
    }
}
