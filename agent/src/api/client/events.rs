use http_body_util::BodyExt;

use super::{ClientError, transport::Opened};
use crate::api::types::Event;

/// An event is a few hundred bytes; a line beyond this is not one.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Events as they arrive.
#[derive(Debug)]
pub struct EventStream {
    opened: Opened,
    /// What was received and not yet returned: at most one chunk beyond an incomplete line.
    buffer: Vec<u8>,
    ended: bool,
}

impl EventStream {
    pub(super) fn new(opened: Opened) -> Self {
        Self {
            opened,
            buffer: Vec::new(),
            ended: false,
        }
    }

    /// The next event; none when the agent has ended the stream.
    ///
    /// Cancel-safe: what was received stays in the stream.
    pub async fn next(&mut self) -> Option<Result<Event, ClientError>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Some(serde_json::from_slice(&line).map_err(|error| self.opened.origin.error(error)));
            }
            if self.ended {
                return None;
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return self.fail(format!("a line of events has more than {MAX_LINE_BYTES} bytes"));
            }
            match self.opened.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return self.fail(format!("the stream broke off: {error}")),
                // The last line may lack its end.
                None => {
                    self.ended = true;
                    self.buffer.push(b'\n');
                }
            }
        }
    }

    fn fail(&mut self, reason: String) -> Option<Result<Event, ClientError>> {
        self.ended = true;
        self.buffer.clear();
        Some(Err(self.opened.origin.error(reason)))
    }
}
