//! From frames that came out of tunnels to what a TAP device takes: segments of one flow become one frame, which the
//! kernel handles as it would have handled what was cut at the other end.
//!
//! Contents are not copied: a joined frame is the headers of its first segment, changed, and pieces of the arena that
//! the frames lie in. Checksums are not looked at, as WireGuard has vouched for every byte since the peer that had them
//! from its own kernel.

use std::{io::IoSlice, ops::Range};

use crate::headers::{
    ETHERNET, GSO_TCP4, GSO_TCP6, GSO_UDP, Layout, NEEDS_CHECKSUM, TCP, UDP, Vnet, fold, read16, write16,
};

/// Frames that may become one. Linux takes no more segments of UDP.
const MOST_SEGMENTS: usize = 64;
/// The longest IP packet.
const MOST_BYTES: usize = 65_535;
/// Flows that are looked for when a frame comes; more at a time pass unjoined.
const MOST_FLOWS: usize = 16;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// Collects frames and joins those that belong together.
#[derive(Debug, Default)]
pub struct Joiner {
    /// In the order in which they go; those behind `used` are kept for their memory.
    groups: Vec<Group>,
    used: usize,
    /// Places in `groups` of those that may still grow.
    open: Vec<usize>,
}

/// Frames that go as one.
#[derive(Debug, Default)]
struct Group {
    /// Which device they are for.
    device: usize,
    /// The first one.
    frame: Range<usize>,
    headers: Vec<u8>,
    layout: Option<Layout>,
    /// The contents of all, if there are several.
    contents: Vec<Range<usize>>,
    /// How long the content of all but the last is.
    segment: usize,
    /// Of all contents.
    total: usize,
    /// The TCP sequence number that comes next.
    next: u32,
}

/// A frame of which others may be the continuation.
struct Segment {
    layout: Layout,
    headers: usize,
    sequence: u32,
    /// Nothing may follow it.
    ends: bool,
}

impl Segment {
    fn of(frame: &[u8], with_udp: bool) -> Option<Self> {
        let layout = Layout::of(frame)?;
        if layout.transport - layout.ip != if layout.v6 { 40 } else { 20 } {
            return None;
        }
        let header = &frame[layout.transport..layout.end];
        let (headers, sequence, ends) = match layout.protocol {
            TCP => {
                let length = layout.tcp_header_len(frame)?;
                let flags = header[13];
                if flags & !(TCP_PSH) != TCP_ACK {
                    return None;
                }
                let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                (length, sequence, flags & TCP_PSH != 0)
            }
            UDP if with_udp => {
                // A datagram without checksum would get one.
                let whole = header.len() >= 8
                    && usize::from(read16(header, 4)) == header.len()
                    && read16(header, 6) != 0;
                (whole.then_some(8)?, 0, false)
            }
            _ => return None,
        };
        let headers = layout.transport + headers;
        (headers < layout.end).then_some(Self {
            layout,
            headers,
            sequence,
            ends,
        })
    }
}

impl Joiner {
    /// Takes a frame that lies in the arena. `with_udp` says whether its device takes joined datagrams.
    pub fn push(&mut self, arena: &[u8], device: usize, frame: Range<usize>, with_udp: bool) {
        let bytes = &arena[frame.clone()];
        let segment = Segment::of(bytes, with_udp);
        let found = Layout::of(bytes).and_then(|layout| {
            let same_flow = |at: &usize| self.groups[*at].is_of_flow(device, &layout, bytes);
            self.open.iter().position(same_flow)
        });
        if let Some(place) = found {
            let group = &mut self.groups[self.open[place]];
            match &segment {
                Some(segment) if group.fits(segment, bytes) => {
                    if !group.add(segment, bytes, frame.start) {
                        self.open.swap_remove(place);
                    }
                    return;
                }
                // What follows must not overtake this one.
                _ => drop(self.open.swap_remove(place)),
            }
        }
        if self.used == self.groups.len() {
            self.groups.push(Group::default());
        }
        let group = &mut self.groups[self.used];
        group.begin(device, frame, bytes, segment.as_ref());
        if segment.is_some_and(|segment| !segment.ends) {
            if self.open.len() == MOST_FLOWS {
                self.open.remove(0);
            }
            self.open.push(self.used);
        }
        self.used += 1;
    }

    /// Gives out all there is, in order: the device, the pieces of the frame, and how many frames it was made of.
    pub fn flush(&mut self, arena: &[u8], mut write: impl FnMut(usize, &[IoSlice<'_>], usize)) {
        for group in &mut self.groups[..self.used] {
            group.write(arena, &mut write);
        }
        self.used = 0;
        self.open.clear();
    }
}

impl Group {
    fn begin(&mut self, device: usize, frame: Range<usize>, bytes: &[u8], segment: Option<&Segment>) {
        self.device = device;
        self.headers.clear();
        self.contents.clear();
        self.layout = segment.map(|segment| segment.layout);
        if let Some(segment) = segment {
            self.headers.extend_from_slice(&bytes[..segment.headers]);
            let content = segment.headers..segment.layout.end;
            (self.segment, self.total) = (content.len(), content.len());
            self.next = segment.sequence.wrapping_add(content.len() as u32);
            self.contents
                .push(frame.start + content.start..frame.start + content.end);
        }
        self.frame = frame;
    }

    fn is_of_flow(&self, device: usize, layout: &Layout, frame: &[u8]) -> bool {
        self.device == device
            && self.layout.is_some_and(|ours| {
                (ours.ip, ours.v6, ours.protocol, ours.transport)
                    == (layout.ip, layout.v6, layout.protocol, layout.transport)
                    && ours.addresses(&self.headers) == layout.addresses(frame)
                    && frame.get(layout.transport..layout.transport + 4)
                        == self.headers.get(ours.transport..ours.transport + 4)
            })
    }

    /// Whether a frame of the flow continues this one, so that cutting would bring both back.
    fn fits(&self, segment: &Segment, frame: &[u8]) -> bool {
        let Some(layout) = self.layout else {
            return false;
        };
        let content = segment.layout.end - segment.headers;
        let (ip, transport) = (layout.ip, layout.transport);
        let same = |range: Range<usize>| self.headers.get(range.clone()) == frame.get(range);
        let same_ip = if layout.v6 {
            same(ip..ip + 4) && same(ip + 6..ip + 8)
        } else {
            // Not length, id and checksum.
            same(ip..ip + 2) && same(ip + 6..ip + 10)
        };
        let same_transport = layout.protocol == UDP
            || (segment.sequence == self.next
                // The acknowledged number, the length of the header, the window, and the options.
                && same(transport + 8..transport + 13)
                && same(transport + 14..transport + 16)
                && same(transport + 20..self.headers.len()));
        segment.headers == self.headers.len()
            && content <= self.segment
            && self.contents.len() < MOST_SEGMENTS
            && self.headers.len() - ip + self.total + content <= MOST_BYTES
            && same(0..ETHERNET.max(ip))
            && same_ip
            && same_transport
    }

    /// Whether more may follow.
    fn add(&mut self, segment: &Segment, frame: &[u8], start: usize) -> bool {
        let content = segment.headers..segment.layout.end;
        self.total += content.len();
        self.next = segment.sequence.wrapping_add(content.len() as u32);
        if segment.layout.protocol == TCP {
            let flags = segment.layout.transport + 13;
            self.headers[flags] |= frame[flags] & TCP_PSH;
        }
        let ends = segment.ends || content.len() < self.segment;
        self.contents.push(start + content.start..start + content.end);
        !ends
    }

    fn write(&mut self, arena: &[u8], write: &mut impl FnMut(usize, &[IoSlice<'_>], usize)) {
        let mut pieces = [IoSlice::new(&[]); MOST_SEGMENTS + 2];
        let Some(layout) = self.layout.filter(|_| self.contents.len() > 1) else {
            let vnet = Vnet::default().bytes();
            pieces[0] = IoSlice::new(&vnet);
            pieces[1] = IoSlice::new(&arena[self.frame.clone()]);
            write(self.device, &pieces[..2], 1);
            return;
        };
        let vnet = self.finish(layout).bytes();
        pieces[0] = IoSlice::new(&vnet);
        pieces[1] = IoSlice::new(&self.headers);
        for (piece, content) in pieces[2..].iter_mut().zip(&self.contents) {
            *piece = IoSlice::new(&arena[content.clone()]);
        }
        let count = self.contents.len();
        write(self.device, &pieces[..count + 2], count);
    }

    /// Makes the headers those of the whole.
    fn finish(&mut self, layout: Layout) -> Vnet {
        let end = self.headers.len() + self.total;
        layout.set_length(&mut self.headers, end);
        let (kind, at) = if layout.protocol == TCP {
            (if layout.v6 { GSO_TCP6 } else { GSO_TCP4 }, 16)
        } else {
            write16(
                &mut self.headers,
                layout.transport + 4,
                (end - layout.transport) as u16,
            );
            (GSO_UDP, 6)
        };
        let pseudo = fold(layout.pseudo_sum(&self.headers, end - layout.transport));
        write16(&mut self.headers, layout.transport + at, pseudo);
        Vnet {
            flags: NEEDS_CHECKSUM,
            kind,
            header_len: self.headers.len() as u16,
            segment: self.segment as u16,
            checksum_start: layout.transport as u16,
            checksum_offset: at as u16,
        }
    }
}

#[cfg(test)]
mod tests;
