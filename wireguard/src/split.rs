//! From what a TAP device hands out to what goes into a tunnel: segments with headers and checksums of their own.

use crate::{
    envelope::ENVELOPE,
    headers::{
        GSO_ECN, GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP, Layout, NEEDS_CHECKSUM, TCP, UDP, Vnet, fold, read16,
        sum, write16,
    },
};

const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Why nothing can be made of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsendable {
    /// What is said in front of it does not fit it.
    Malformed,
    /// Its packet is larger than the path takes and may not be cut: the sender has to be told.
    TooBig,
}

/// The segments of one frame, written one after the other.
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The frame as it is, with the checksum that is still missing: where it begins, and where it goes.
    Whole {
        checksum: Option<(usize, usize)>,
        done: bool,
    },
    Cut(Cut),
}

#[derive(Debug)]
struct Cut {
    layout: Layout,
    headers: usize,
    segment: usize,
    /// Where the next segment's content begins.
    at: usize,
    index: u32,
    pseudo: u64,
}

impl<'a> Segments<'a> {
    /// `limit` is the largest IP packet that can go; TCP is cut to it whatever the frame says.
    pub fn new(vnet: Vnet, frame: &'a [u8], limit: usize) -> Result<Self, Unsendable> {
        let malformed = Unsendable::Malformed;
        if frame.len() < crate::headers::ETHERNET {
            return Err(malformed);
        }
        if vnet.kind != GSO_NONE {
            return Self::cut(vnet, frame, limit).ok_or(malformed);
        }
        let mut checksum = None;
        if vnet.flags & NEEDS_CHECKSUM != 0 {
            let start = usize::from(vnet.checksum_start);
            let at = start + usize::from(vnet.checksum_offset);
            if at + 2 > frame.len() {
                return Err(malformed);
            }
            checksum = Some((start, at));
        }
        let whole = Self {
            frame,
            kind: Kind::Whole {
                checksum,
                done: false,
            },
        };
        match Layout::of(frame) {
            Some(layout) if layout.end - layout.ip > limit => whole.too_big(layout, limit),
            _ => Ok(whole),
        }
    }

    /// How large the frame of the longest segment is.
    pub fn longest(&self) -> usize {
        match &self.kind {
            Kind::Whole { .. } => self.frame.len(),
            Kind::Cut(cut) => self.frame.len().min(cut.headers + cut.segment),
        }
    }

    /// Writes the next segment behind the room for its envelope and says how long it is; `out` has room for
    /// [`longest`](Self::longest) and the envelope.
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let out = &mut out[ENVELOPE..];
        match &mut self.kind {
            Kind::Whole { done: true, .. } => None,
            Kind::Whole { checksum, done } => {
                *done = true;
                let out = &mut out[..self.frame.len()];
                out.copy_from_slice(self.frame);
                if let Some((start, at)) = *checksum {
                    // What stands there already is the sum of the pseudo header.
                    let checksum = !fold(sum(&out[start..]));
                    write16(out, at, if checksum == 0 { 0xffff } else { checksum });
                }
                Some(self.frame.len())
            }
            Kind::Cut(cut) => cut.write_next(self.frame, out),
        }
    }

    fn cut(vnet: Vnet, frame: &'a [u8], limit: usize) -> Option<Self> {
        let layout = Layout::of(frame)?;
        let headers = match (vnet.kind & !GSO_ECN, layout.protocol) {
            (GSO_TCP4 | GSO_TCP6, TCP) => layout.transport + layout.tcp_header_len(frame)?,
            (GSO_UDP, UDP) => layout.transport + 8,
            _ => return None,
        };
        let mut segment = usize::from(vnet.segment);
        if layout.protocol == TCP {
            segment = segment.min(limit.saturating_sub(headers - layout.ip));
        }
        (segment > 0 && headers < layout.end).then(|| Self::with(frame, layout, headers, segment))
    }

    fn with(frame: &'a [u8], layout: Layout, headers: usize, segment: usize) -> Self {
        let frame = &frame[..layout.end];
        let kind = Kind::Cut(Cut {
            layout,
            headers,
            segment,
            at: headers,
            index: 0,
            pseudo: layout.pseudo_sum(frame, 0),
        });
        Self { frame, kind }
    }

    fn too_big(self, layout: Layout, limit: usize) -> Result<Self, Unsendable> {
        let checked = matches!(
            self.kind,
            Kind::Whole {
                checksum: Some(_),
                ..
            }
        );
        if let Some(tcp) = layout.tcp_header_len(self.frame) {
            let headers = layout.transport + tcp;
            let segment = limit.saturating_sub(headers - layout.ip);
            let length = layout.end - layout.transport;
            // Its segments get new checksums: damage must not get one as well.
            let content = sum(&self.frame[layout.transport..layout.end]);
            let intact = checked || fold(content + layout.pseudo_sum(self.frame, length)) == 0xffff;
            if segment > 0 && headers < layout.end && intact {
                return Ok(Self::with(self.frame, layout, headers, segment));
            }
        }
        let may_be_fragmented = !layout.v6 && self.frame[layout.ip + 6] & 0x40 == 0;
        if may_be_fragmented {
            Ok(self)
        } else {
            Err(Unsendable::TooBig)
        }
    }
}

impl Cut {
    fn write_next(&mut self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let content = frame.get(self.at..).filter(|content| !content.is_empty())?;
        let content = &content[..content.len().min(self.segment)];
        let last = self.at + content.len() == frame.len();
        let Layout {
            ip, transport, v6, ..
        } = self.layout;
        let length = self.headers + content.len();
        let out = &mut out[..length];
        out[..self.headers].copy_from_slice(&frame[..self.headers]);
        out[self.headers..].copy_from_slice(content);
        if !v6 {
            // RFC 6864, section 4.1: ids matter to packets that may be fragmented; like Linux, all get their own.
            let id = read16(out, ip + 4).wrapping_add(self.index as u16);
            write16(out, ip + 4, id);
        }
        self.layout.set_length(out, length);
        let checksum_at = if self.layout.protocol == TCP {
            let sequence = &mut out[transport + 4..transport + 8];
            let number = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
            let offset = (self.at - self.headers) as u32;
            sequence.copy_from_slice(&number.wrapping_add(offset).to_be_bytes());
            let flags = &mut out[transport + 13];
            if !last {
                *flags &= !FIN_PSH;
            }
            if self.index > 0 {
                *flags &= !CWR;
            }
            TCP_CHECKSUM
        } else {
            write16(out, transport + 4, (length - transport) as u16);
            UDP_CHECKSUM
        };
        write16(out, transport + checksum_at, 0);
        let total = self.pseudo + (length - transport) as u64 + sum(&out[transport..]);
        let checksum = !fold(total);
        // RFC 768: in UDP zero is no checksum; TCP takes either.
        write16(
            out,
            transport + checksum_at,
            if checksum == 0 { 0xffff } else { checksum },
        );
        self.at += content.len();
        self.index += 1;
        Some(length)
    }
}

#[cfg(test)]
mod tests;
