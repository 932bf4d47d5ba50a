//! Writes programs: one method for each instruction, labels for jumps, and a listing to read.
//!
//! Instructions are those of <https://docs.kernel.org/bpf/standardization/instruction-set.html>, which the listing
//! follows as well. What a program may do is not checked here but by the kernel's verifier when it is loaded.

use std::fmt;

/// A register. `R0` takes results, `R1` to `R5` arguments and are lost in a call, `R6` to `R9` stay, `R10` is the
/// end of the stack frame of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The size of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One byte.
    B,
    /// Two bytes.
    H,
    /// Four bytes.
    W,
    /// Eight bytes.
    D,
}

/// The second operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// A number, extended with its sign to 64 bits.
    Number(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

/// Arithmetic on 64 bits, without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Add,
    Mul,
    Mod,
    And,
    ShiftLeft,
    ShiftRight,
}

/// When to jump; numbers have no sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum If {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
}

/// A function of the kernel (`linux/bpf.h`, `bpf_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Helper {
    MapLookupElem = 1,
    MapUpdateElem = 2,
    KtimeGetNs = 5,
    GetSocketCookie = 46,
    SockOpsCbFlagsSet = 59,
    SkStorageGet = 107,
    GetNetnsCookie = 122,
    SetRetval = 187,
}

/// A place to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// An instruction as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u8,
    dst: Reg,
    src: u8,
    offset: i16,
    number: i32,
}

/// A program under construction.
#[derive(Debug, Clone, Default)]
pub struct Asm {
    insns: Vec<Insn>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
    /// Which instructions name maps, and which.
    maps: Vec<(usize, usize)>,
}

/// A finished program, with its maps still open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    insns: Vec<Insn>,
    maps: Vec<(usize, usize)>,
}

const LD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP: u8 = 0x05;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
const BY_REG: u8 = 0x08;
const LDX: u8 = 0x61;
const ST: u8 = 0x62;
const STX: u8 = 0x63;
/// `BPF_STX | BPF_ATOMIC | BPF_DW`
const ATOMIC: u8 = 0xdb;
const ATOMIC_ADD: i32 = 0x00;
const ATOMIC_FETCH: i32 = 0x01;
const ATOMIC_XCHG: i32 = 0xe0 | ATOMIC_FETCH;
const PSEUDO_MAP_FD: u8 = 1;

impl Size {
    fn bits(self) -> u8 {
        match self {
            Self::W => 0x00,
            Self::H => 0x08,
            Self::B => 0x10,
            Self::D => 0x18,
        }
    }
}

impl Op {
    fn bits(self) -> u8 {
        match self {
            Self::Add => 0x00,
            Self::Mul => 0x20,
            Self::ShiftLeft => 0x60,
            Self::ShiftRight => 0x70,
            Self::Mod => 0x90,
            Self::And => 0x50,
        }
    }
}

impl If {
    fn bits(self) -> u8 {
        match self {
            Self::Equal => 0x10,
            Self::Greater => 0x20,
            Self::GreaterOrEqual => 0x30,
            Self::NotEqual => 0x50,
            Self::Less => 0xa0,
        }
    }
}

impl Asm {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// A label for a place that comes later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub fn bind(&mut self, label: Label) -> &mut Self {
        self.labels[label.0] = Some(self.insns.len());
        self
    }

    /// A label for this place.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// `dst = src`
    pub fn set(&mut self, dst: Reg, src: impl Into<Operand>) -> &mut Self {
        self.alu(0xb0, dst, src.into())
    }

    /// `dst = dst op src`
    pub fn calc(&mut self, op: Op, dst: Reg, src: impl Into<Operand>) -> &mut Self {
        self.alu(op.bits(), dst, src.into())
    }

    /// `dst = number`, all 64 bits of it.
    pub fn set_wide(&mut self, dst: Reg, number: u64) -> &mut Self {
        self.wide(dst, 0, number)
    }

    /// `dst = map`, the one at this index when the program is loaded.
    pub fn set_map(&mut self, dst: Reg, map: usize) -> &mut Self {
        self.maps.push((self.insns.len(), map));
        self.wide(dst, PSEUDO_MAP_FD, 0)
    }

    /// `dst = *(base + offset)`, extended with zeros.
    pub fn load(&mut self, size: Size, dst: Reg, base: Reg, offset: i16) -> &mut Self {
        self.push(LDX | size.bits(), dst, base as u8, offset, 0)
    }

    /// `*(base + offset) = src`
    pub fn store(&mut self, size: Size, base: Reg, offset: i16, src: impl Into<Operand>) -> &mut Self {
        match src.into() {
            Operand::Reg(src) => self.push(STX | size.bits(), base, src as u8, offset, 0),
            Operand::Number(number) => self.push(ST | size.bits(), base, 0, offset, number),
        }
    }

    /// Adds to eight bytes in memory, whatever other processors do there.
    pub fn atomic_add(&mut self, base: Reg, offset: i16, src: Reg) -> &mut Self {
        self.push(ATOMIC, base, src as u8, offset, ATOMIC_ADD)
    }

    /// The same, and `src` is what was there before.
    pub fn atomic_fetch_add(&mut self, base: Reg, offset: i16, src: Reg) -> &mut Self {
        self.push(ATOMIC, base, src as u8, offset, ATOMIC_ADD | ATOMIC_FETCH)
    }

    /// Swaps eight bytes in memory with `src`.
    pub fn atomic_swap(&mut self, base: Reg, offset: i16, src: Reg) -> &mut Self {
        self.push(ATOMIC, base, src as u8, offset, ATOMIC_XCHG)
    }

    /// Jumps.
    pub fn jump(&mut self, to: Label) -> &mut Self {
        self.jumps.push((self.insns.len(), to));
        self.push(JUMP, Reg::R0, 0, 0, 0)
    }

    /// Jumps if `left` is so in relation to `right`.
    pub fn jump_if(&mut self, is: If, left: Reg, right: impl Into<Operand>, to: Label) -> &mut Self {
        self.jumps.push((self.insns.len(), to));
        match right.into() {
            Operand::Reg(right) => self.push(JMP | BY_REG | is.bits(), left, right as u8, 0, 0),
            Operand::Number(number) => self.push(JMP | is.bits(), left, 0, 0, number),
        }
    }

    /// `R0 = helper(R1, …)`
    pub fn call(&mut self, helper: Helper) -> &mut Self {
        self.push(CALL, Reg::R0, 0, 0, helper as i32)
    }

    /// Ends with `R0` as result.
    pub fn exit(&mut self) -> &mut Self {
        self.push(EXIT, Reg::R0, 0, 0, 0)
    }

    /// The program.
    ///
    /// # Panics
    ///
    /// If a label that is jumped to was never bound: a mistake in the program's text.
    pub fn finish(mut self) -> Program {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].expect("every label that is jumped to is bound");
            let distance = to as i64 - at as i64 - 1;
            self.insns[at].offset =
                i16::try_from(distance).expect("programs are far shorter than a jump reaches");
        }
        Program {
            insns: self.insns,
            maps: self.maps,
        }
    }

    fn alu(&mut self, op: u8, dst: Reg, src: Operand) -> &mut Self {
        match src {
            Operand::Reg(src) => self.push(ALU64 | BY_REG | op, dst, src as u8, 0, 0),
            Operand::Number(number) => self.push(ALU64 | op, dst, 0, 0, number),
        }
    }

    fn wide(&mut self, dst: Reg, kind: u8, number: u64) -> &mut Self {
        self.push(LD_IMM64, dst, kind, 0, number as i32);
        self.push(0, Reg::R0, 0, 0, (number >> 32) as i32)
    }

    fn push(&mut self, code: u8, dst: Reg, src: u8, offset: i16, number: i32) -> &mut Self {
        self.insns.push(Insn {
            code,
            dst,
            src,
            offset,
            number,
        });
        self
    }
}

impl Program {
    /// The instructions as the kernel takes them, with the descriptors of the maps filled in.
    pub(super) fn encode(&self, map_fds: &[i32]) -> Vec<[u8; 8]> {
        let mut insns = self.insns.clone();
        for &(at, map) in &self.maps {
            insns[at].number = map_fds[map];
        }
        insns.iter().map(Insn::encode).collect()
    }

    /// The instructions without descriptors: the same for the same program.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.insns.iter().flat_map(Insn::encode).collect();
        bytes.extend(self.maps.iter().flat_map(|&(_, map)| (map as u32).to_le_bytes()));
        bytes
    }

    /// How many maps it takes.
    pub(super) fn map_count(&self) -> usize {
        self.maps.iter().map(|&(_, map)| map + 1).max().unwrap_or(0)
    }
}

impl Insn {
    fn encode(&self) -> [u8; 8] {
        let registers = if cfg!(target_endian = "little") {
            (self.src << 4) | self.dst as u8
        } else {
            ((self.dst as u8) << 4) | self.src
        };
        let [o0, o1] = self.offset.to_ne_bytes();
        let [n0, n1, n2, n3] = self.number.to_ne_bytes();
        [self.code, registers, o0, o1, n0, n1, n2, n3]
    }
}

/// One instruction a line, numbered, as `bpftool prog dump xlated` and `llvm-objdump` write them.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = 0;
        while let Some(insn) = self.insns.get(at) {
            write!(f, "{at:4}: ")?;
            if insn.code == LD_IMM64 {
                match self.maps.iter().find(|(place, _)| *place == at) {
                    Some((_, map)) => writeln!(f, "r{} = map[{map}] ll", insn.dst as u8)?,
                    None => {
                        let high = self.insns.get(at + 1).map_or(0, |next| next.number);
                        let number = (u64::from(high as u32) << 32) | u64::from(insn.number as u32);
                        writeln!(f, "r{} = {number:#x} ll", insn.dst as u8)?;
                    }
                }
                at += 2;
                continue;
            }
            writeln!(f, "{}", Listing { insn, at })?;
            at += 1;
        }
        Ok(())
    }
}

struct Listing<'a> {
    insn: &'a Insn,
    at: usize,
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Insn {
            code,
            dst,
            src,
            offset,
            number,
        } = *self.insn;
        let dst = dst as u8;
        let size = match code & 0x18 {
            0x00 => "u32",
            0x08 => "u16",
            0x10 => "u8",
            _ => "u64",
        };
        let operand = if code & BY_REG != 0 {
            format!("r{src}")
        } else {
            number.to_string()
        };
        let target = self.at as i64 + 1 + i64::from(offset);
        match (code & 0x07, code) {
            (_, EXIT) => f.write_str("exit"),
            (_, CALL) => write!(f, "call {number}"),
            (_, JUMP) => write!(f, "goto {target}"),
            (_, ATOMIC) => {
                let verb = match number {
                    ATOMIC_ADD => "lock",
                    ATOMIC_XCHG => "swap",
                    _ => "lock, fetch",
                };
                write!(f, "{verb} *(u64 *)(r{dst} {offset:+}) += r{src}")
            }
            (0x01, _) => write!(f, "r{dst} = *({size} *)(r{src} {offset:+})"),
            (0x02, _) => write!(f, "*({size} *)(r{dst} {offset:+}) = {number}"),
            (0x03, _) => write!(f, "*({size} *)(r{dst} {offset:+}) = r{src}"),
            (0x05, _) => {
                let sign = match code & 0xf0 {
                    0x10 => "==",
                    0x20 => ">",
                    0x30 => ">=",
                    0x50 => "!=",
                    _ => "<",
                };
                write!(f, "if r{dst} {sign} {operand} goto {target}")
            }
            _ => {
                let sign = match code & 0xf0 {
                    0x00 => "+=",
                    0x20 => "*=",
                    0x60 => "<<=",
                    0x70 => ">>=",
                    0x90 => "%=",
                    0x50 => "&=",
                    _ => "=",
                };
                write!(f, "r{dst} {sign} {operand}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Helper::*, If::*, Op::*, Reg::*, Size::*, *};

    #[test]
    fn a_program_is_listed_and_encoded() {
        let mut asm = Asm::new();
        let out = asm.label();
        asm.load(W, R1, R10, -4).set_map(R2, 1).call(MapLookupElem);
        asm.jump_if(Equal, R0, 0, out)
            .set(R1, -1)
            .atomic_fetch_add(R0, 8, R1);
        asm.calc(Mod, R1, R2).store(H, R10, -2, R1).store(D, R10, -16, 7);
        asm.bind(out)
            .set_wide(R0, 0x1_0000_0002)
            .calc(ShiftLeft, R0, 3)
            .exit();
        let program = asm.finish();
        assert_eq!(
            program.to_string(),
            "   0: r1 = *(u32 *)(r10 -4)\n   1: r2 = map[1] ll\n   3: call 1\n   4: if r0 == 0 goto 10\n   \
             5: r1 = -1\n   6: lock, fetch *(u64 *)(r0 +8) += r1\n   7: r1 %= r2\n   8: *(u16 *)(r10 -2) = r1\n   \
             9: *(u64 *)(r10 -16) = 7\n  10: r0 = 0x100000002 ll\n  12: r0 <<= 3\n  13: exit\n"
        );
        let encoded = program.encode(&[5, 6]);
        assert_eq!(encoded.len(), 14);
        assert_eq!(program.map_count(), 2);
        if cfg!(target_endian = "little") {
            assert_eq!(encoded[0], [0x61, 0xa1, 0xfc, 0xff, 0, 0, 0, 0]);
            assert_eq!(
                encoded[1],
                [0x18, 0x12, 0, 0, 6, 0, 0, 0],
                "the descriptor of map 1"
            );
            assert_eq!(encoded[4], [0x15, 0x00, 5, 0, 0, 0, 0, 0]);
            assert_eq!(encoded[6], [0xdb, 0x10, 8, 0, 1, 0, 0, 0]);
        }
        assert_ne!(program.bytes(), program.encode(&[5, 6]).concat());
    }
}
