//! Frames for tests, made and checked by the plainest code.

use crate::headers::{Layout, TCP, UDP, fold, sum, write16};

/// A frame of TCP or UDP with right lengths and checksums.
#[derive(Debug, Clone)]
pub struct Made {
    pub v6: bool,
    pub udp: bool,
    pub port: u16,
    pub sequence: u32,
    pub flags: u8,
    /// Options of TCP, a multiple of four bytes.
    pub options: Vec<u8>,
    pub content: Vec<u8>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            port: 1000,
            sequence: 1,
            flags: 0x10,
            options: Vec::new(),
            content: Vec::new(),
        }
    }
}

impl Made {
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let header = if self.udp { 8 } else { 20 + self.options.len() };
        let length = header + self.content.len();
        let protocol = if self.udp { UDP } else { TCP };
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([0xfd; 16]);
            frame.extend([0xfe; 16]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(((length + 20) as u16).to_be_bytes());
            frame.extend([0, 9, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = !fold(sum(&frame[14..]));
            write16(&mut frame, 24, checksum);
        }
        let transport = frame.len();
        frame.extend(self.port.to_be_bytes());
        frame.extend([0, 80]);
        if self.udp {
            frame.extend((length as u16).to_be_bytes());
            frame.extend([0, 0]);
        } else {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend([0, 0, 0, 7, (header as u8 / 4) << 4, self.flags, 1, 0, 0, 0, 0, 0]);
            frame.extend(&self.options);
        }
        frame.extend(&self.content);
        let layout = Layout::of(&frame).expect("made right");
        let checksum = !fold(layout.pseudo_sum(&frame, length) + sum(&frame[transport..]));
        write16(&mut frame, transport + self.checksum_at(), checksum);
        frame
    }

    /// Where in the header of TCP or UDP the checksum is.
    pub fn checksum_at(&self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    pub fn transport(&self) -> usize {
        if self.v6 { 54 } else { 34 }
    }
}

/// Whether all lengths and checksums of a frame are right.
pub fn is_right(frame: &[u8]) -> bool {
    let Some(layout) = Layout::of(frame) else {
        return false;
    };
    let ip = layout.v6 || fold(sum(&frame[layout.ip..layout.transport])) == 0xffff;
    let length = layout.end - layout.transport;
    let transport = layout.pseudo_sum(frame, length) + sum(&frame[layout.transport..layout.end]);
    ip && layout.end == frame.len() && fold(transport) == 0xffff
}
