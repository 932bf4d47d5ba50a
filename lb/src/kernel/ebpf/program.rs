//! The programs, one for each thing that a socket does.
//!
//! * `connect`: an address that the socket's sandbox knows as virtual is replaced by that of a backend, once; the
//!   packets of the connection are then nobody's business. What was replaced is noted with the socket.
//! * `sendmsg`: the same for sockets that are not connected, with a note for each address they send to, so that the
//!   datagrams of one conversation go to one backend.
//! * `recvmsg`, `getpeername`: the backend's address is shown as the virtual one.
//! * `release`, `sock_ops`: a connection counts as open until its socket is closed or the connection has ended.

mod choose;
mod ends;

use weft_netlink::bpf::{Asm, Attach, Helper, If::*, Label, Op::*, Operand, Program, Reg, Reg::*, Size::*};

use self::{
    choose::choose_backend,
    ends::{on_release, on_sock_ops, release},
};
use super::layout::{MapId, backend, flow, load, sandbox, scheduler_number, service, slot, socket, vip};
use crate::Scheduler;

/// `struct bpf_sock_addr`
mod addr {
    pub(super) const IP4: i16 = 4;
    pub(super) const IP6: i16 = 8;
    pub(super) const PORT: i16 = 24;
    pub(super) const PROTOCOL: i16 = 36;
    pub(super) const SOCKET: i16 = 64;
}

const TCP: i32 = 6;
const UDP: i32 = 17;
/// A conversation of datagrams that pauses for longer may go on at another backend.
const FLOW_IDLE_SECS: i32 = 60;
// The stack frame, from its end.
const COOKIE: i16 = -8;
const VIP_KEY: i16 = -40;
const FLOW_KEY: i16 = -72;
const FLOW: i16 = -112;
const FAMILY: i16 = -120;
const PROTOCOL: i16 = -128;
const TARGET: i16 = -136;
const FIRST: i16 = -144;
const COUNT: i16 = -152;
const TURN: i16 = -160;
const SLOT: i16 = -168;
const BACKEND: i16 = -176;
const BEST: i16 = -184;
const BEST_OPEN: i16 = -192;
const BEST_WEIGHT: i16 = -200;
const BEST_CHOSEN: i16 = -208;
const SCRATCH: i16 = -216;
const CLIENT: i16 = -224;

/// The second half of `::ffff:0:0/96`, as memory has it.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// All programs, where they are attached, and what they are called.
pub(super) fn programs() -> [(Attach, &'static str, Program); 10] {
    [
        (Attach::Release, "weft_release", on_release()),
        (Attach::SockOps, "weft_sock_ops", on_sock_ops()),
        (Attach::Recvmsg4, "weft_recvmsg4", show(false, true)),
        (Attach::Recvmsg6, "weft_recvmsg6", show(true, true)),
        (Attach::Getpeername4, "weft_peername4", show(false, false)),
        (Attach::Getpeername6, "weft_peername6", show(true, false)),
        (Attach::Sendmsg4, "weft_sendmsg4", translate(false, true)),
        (Attach::Sendmsg6, "weft_sendmsg6", translate(true, true)),
        (Attach::Connect4, "weft_connect4", translate(false, false)),
        (Attach::Connect6, "weft_connect6", translate(true, false)),
    ]
}

/// `connect` and `sendmsg`.
fn translate(ipv6: bool, datagram: bool) -> Program {
    let mut asm = Asm::new();
    let a = &mut asm;
    let [pass, not_ours, refuse, choose, chosen, apply] = [(); 6].map(|()| a.label());
    a.set(R6, R1);
    asm_protocol(a, pass);
    a.set(R1, R6)
        .call(Helper::GetNetnsCookie)
        .store(D, R10, COOKIE, R0);
    lookup(a, MapId::Sandboxes, R10, COOKIE);
    a.jump_if(Equal, R0, 0, pass)
        .load(D, R1, R0, sandbox::VIEW)
        .store(D, R10, VIP_KEY + vip::KEY_VIEW, R1)
        .load(D, R1, R0, sandbox::NAME)
        .store(D, R10, CLIENT, R1);
    read_addr(a, ipv6, VIP_KEY + vip::KEY_ADDR);
    family(a, ipv6);
    find_vip(a, not_ours);
    // R8: what is known about the address.
    a.set(R8, R0)
        .load(H, R1, R8, vip::TARGET)
        .store(D, R10, TARGET, R1)
        .load(B, R1, R8, vip::REFUSE)
        .jump_if(NotEqual, R1, 0, refuse);
    if datagram {
        resume_flow(a, choose, apply);
    }
    a.bind(choose);
    choose_backend(a, refuse, chosen);
    a.bind(chosen);
    lookup(a, MapId::Backends, R10, BACKEND);
    a.jump_if(Equal, R0, 0, refuse).set(R9, R0);
    lookup(a, MapId::Loads, R10, BACKEND);
    a.jump_if(Equal, R0, 0, refuse)
        .set(R1, 1)
        .atomic_add(R0, load::TOTAL, R1)
        .load(D, R1, R10, TURN)
        .store(D, R0, load::CHOSEN, R1);
    if datagram {
        begin_flow(a);
    }
    // R9: the backend; R8: its address.
    a.bind(apply)
        .load(D, R1, R10, FAMILY)
        .calc(And, R1, 1)
        .calc(ShiftLeft, R1, 4)
        .set(R8, R9)
        .calc(Add, R8, R1);
    if datagram {
        note_way_back(a);
    } else {
        // The agent finds connected datagram sockets by this note alone.
        let stream = a.label();
        a.load(D, R1, R10, PROTOCOL)
            .jump_if(NotEqual, R1, UDP, stream)
            .set(R1, R6)
            .call(Helper::GetSocketCookie)
            .store(D, R10, FLOW_KEY + flow::KEY_COOKIE, R0)
            .store(H, R10, FLOW_KEY + flow::KEY_PORT + 2, 0);
        note_way_back(a);
        a.bind(stream);
    }
    note_with_socket(a, datagram);
    write_addr(a, ipv6, R8, backend::ADDRS);
    let same_port = a.label();
    a.load(D, R1, R10, TARGET)
        .jump_if(Equal, R1, 0, same_port)
        .store(W, R6, addr::PORT, R1)
        .bind(same_port)
        .set(R0, 1)
        .exit();

    a.bind(refuse);
    if !datagram {
        // Connecting a datagram socket sends nothing. Programs do so to learn their own address; what they then send
        // is refused as the address is one of the sandbox itself.
        a.load(D, R1, R10, PROTOCOL).jump_if(Equal, R1, UDP, not_ours);
    }
    a.set(R1, -libc_econnrefused())
        .call(Helper::SetRetval)
        .set(R0, 0)
        .exit();

    a.bind(not_ours);
    if !datagram {
        // The socket may have been connected to a virtual address before.
        storage(a, addr::SOCKET, 0);
        // Nobody has port 0: what it is connected to now is shown as it is, even if it is the same backend.
        a.jump_if(Equal, R0, 0, pass)
            .set(R7, R0)
            .store(H, R7, socket::PEER_PORT, 0);
        release(a);
    }
    a.bind(pass).set(R0, 1).exit();
    asm.finish()
}

/// The errno that a connection to nobody gets.
fn libc_econnrefused() -> i32 {
    nix::errno::Errno::ECONNREFUSED as i32
}

fn asm_protocol(a: &mut Asm, pass: Label) {
    let known = a.label();
    a.load(W, R1, R6, addr::PROTOCOL)
        .jump_if(Equal, R1, TCP, known)
        .jump_if(NotEqual, R1, UDP, pass)
        .bind(known)
        .store(D, R10, PROTOCOL, R1);
}

/// Writes the context's address to the stack, in sixteen bytes.
fn read_addr(a: &mut Asm, ipv6: bool, to: i16) {
    if ipv6 {
        for word in 0..4 {
            a.load(W, R1, R6, addr::IP6 + 4 * word)
                .store(W, R10, to + 4 * word, R1);
        }
    } else {
        a.store(D, R10, to, 0)
            .store(W, R10, to + 8, MAPPED as i32)
            .load(W, R1, R6, addr::IP4)
            .store(W, R10, to + 12, R1);
    }
}

/// Writes an address of sixteen bytes to the context.
fn write_addr(a: &mut Asm, ipv6: bool, from: Reg, at: i16) {
    if ipv6 {
        for word in 0..4 {
            a.load(W, R1, from, at + 4 * word)
                .store(W, R6, addr::IP6 + 4 * word, R1);
        }
    } else {
        a.load(W, R1, from, at + 12).store(W, R6, addr::IP4, R1);
    }
}

/// Notes whether the address is of IPv4 (0) or IPv6 (1); a socket of IPv6 may mean either.
fn family(a: &mut Asm, ipv6: bool) {
    a.set(R1, i32::from(ipv6));
    if ipv6 {
        let six = a.label();
        let at = VIP_KEY + vip::KEY_ADDR;
        a.load(D, R2, R10, at)
            .jump_if(NotEqual, R2, 0, six)
            .load(W, R2, R10, at + 8)
            .set_wide(R3, MAPPED.into())
            .jump_if(NotEqual, R2, R3, six)
            .set(R1, 0)
            .bind(six);
    }
    a.store(D, R10, FAMILY, R1);
}

/// R0 is the entry for the address and port, or for the rest of the address.
fn find_vip(a: &mut Asm, not_ours: Label) {
    let found = a.label();
    a.load(W, R1, R6, addr::PORT)
        .store(H, R10, VIP_KEY + vip::KEY_PORT, R1)
        .load(D, R1, R10, PROTOCOL)
        .store(B, R10, VIP_KEY + vip::KEY_PROTOCOL, R1)
        .store(B, R10, VIP_KEY + vip::KEY_PROTOCOL + 1, 0)
        .store(W, R10, VIP_KEY + vip::KEY_PROTOCOL + 2, 0);
    lookup(a, MapId::Vips, R10, VIP_KEY);
    a.jump_if(NotEqual, R0, 0, found)
        .store(W, R10, VIP_KEY + vip::KEY_PORT, 0);
    lookup(a, MapId::Vips, R10, VIP_KEY);
    a.jump_if(Equal, R0, 0, not_ours).bind(found);
}

/// Goes on with the backend that this socket's datagrams to this address go to.
fn resume_flow(a: &mut Asm, choose: Label, apply: Label) {
    let limit = a.label();
    a.set(R1, R6)
        .call(Helper::GetSocketCookie)
        .store(D, R10, FLOW_KEY + flow::KEY_COOKIE, R0);
    copy(
        a,
        16,
        (R10, VIP_KEY + vip::KEY_ADDR),
        (R10, FLOW_KEY + flow::KEY_ADDR),
    );
    a.load(W, R1, R6, addr::PORT)
        .store(H, R10, FLOW_KEY + flow::KEY_PORT, R1)
        .store(H, R10, FLOW_KEY + flow::KEY_PORT + 2, 0)
        .store(W, R10, FLOW_KEY + flow::KEY_BACK, 0);
    lookup(a, MapId::Flows, R10, FLOW_KEY);
    a.jump_if(Equal, R0, 0, choose)
        .set(R7, R0)
        .call(Helper::KtimeGetNs)
        .load(W, R2, R8, vip::IDLE)
        .jump_if(NotEqual, R2, 0, limit)
        .set(R2, FLOW_IDLE_SECS)
        .bind(limit)
        .calc(Mul, R2, 1_000_000_000)
        .load(D, R1, R7, flow::SEEN)
        .calc(Add, R1, R2)
        .jump_if(Greater, R0, R1, choose)
        .store(D, R7, flow::SEEN, R0)
        .load(W, R1, R7, flow::BACKEND)
        .store(W, R10, BACKEND, R1);
    lookup(a, MapId::Backends, R10, BACKEND);
    a.jump_if(Equal, R0, 0, choose)
        .set(R9, R0)
        .load(D, R1, R7, flow::TAG)
        .load(D, R2, R9, backend::TAG)
        .jump_if(Equal, R1, R2, apply);
}

/// Keeps the next datagrams of this socket to this address at the backend in R9.
fn begin_flow(a: &mut Asm) {
    a.call(Helper::KtimeGetNs)
        .store(D, R10, FLOW + flow::SEEN, R0)
        .store(D, R10, FLOW + flow::ADDR, 0)
        .store(D, R10, FLOW + flow::ADDR + 8, 0)
        .load(D, R1, R9, backend::TAG)
        .store(D, R10, FLOW + flow::TAG, R1)
        .load(W, R1, R10, BACKEND)
        .store(W, R10, FLOW + flow::BACKEND, R1)
        .store(W, R10, FLOW + flow::PORT, 0);
    update_flow(a);
}

/// Notes which virtual address answers from the backend at R8 come from, as far as this socket is concerned.
fn note_way_back(a: &mut Asm) {
    let [write, noted] = [(); 2].map(|()| a.label());
    copy(a, 16, (R8, backend::ADDRS), (R10, FLOW_KEY + flow::KEY_ADDR));
    peer_port(a);
    a.store(H, R10, FLOW_KEY + flow::KEY_PORT, R1)
        .store(W, R10, FLOW_KEY + flow::KEY_BACK, 1);
    copy(a, 16, (R10, VIP_KEY + vip::KEY_ADDR), (R10, FLOW + flow::ADDR));
    a.load(D, R1, R9, backend::TAG)
        .store(D, R10, FLOW + flow::TAG, R1)
        .store(D, R10, FLOW + flow::SEEN, 0)
        .load(W, R1, R10, BACKEND)
        .store(W, R10, FLOW + flow::BACKEND, R1)
        .load(W, R1, R6, addr::PORT)
        .store(W, R10, FLOW + flow::PORT, R1);
    lookup(a, MapId::Flows, R10, FLOW_KEY);
    a.jump_if(Equal, R0, 0, write);
    for (size, at) in [
        (D, flow::ADDR),
        (D, flow::ADDR + 8),
        (D, flow::TAG),
        (W, flow::PORT),
    ] {
        a.load(size, R1, R0, at)
            .load(size, R2, R10, FLOW + at)
            .jump_if(NotEqual, R1, R2, write);
    }
    a.jump(noted).bind(write);
    update_flow(a);
    a.bind(noted);
}

fn update_flow(a: &mut Asm) {
    a.set_map(R1, MapId::Flows as usize)
        .set(R2, R10)
        .calc(Add, R2, i32::from(FLOW_KEY))
        .set(R3, R10)
        .calc(Add, R3, i32::from(FLOW))
        .set(R4, 0)
        .call(Helper::MapUpdateElem);
}

/// R1 is the port of the backend.
fn peer_port(a: &mut Asm) {
    let known = a.label();
    a.load(D, R1, R10, TARGET)
        .jump_if(NotEqual, R1, 0, known)
        .load(W, R1, R6, addr::PORT)
        .bind(known);
}

/// Notes the translation with the socket and counts it; without memory for that it works all the same, uncounted.
fn note_with_socket(a: &mut Asm, datagram: bool) {
    let [count, noted] = [(); 2].map(|()| a.label());
    storage(a, addr::SOCKET, 1);
    a.jump_if(Equal, R0, 0, noted).set(R7, R0);
    copy(a, 16, (R10, VIP_KEY + vip::KEY_ADDR), (R7, socket::VIP));
    copy(a, 16, (R8, backend::ADDRS), (R7, socket::PEER));
    a.load(W, R1, R6, addr::PORT).store(H, R7, socket::VIP_PORT, R1);
    peer_port(a);
    a.store(H, R7, socket::PEER_PORT, R1);
    if datagram {
        // The next datagram of the same conversation is counted already.
        a.load(D, R1, R7, socket::COUNTED)
            .jump_if(Equal, R1, 0, count)
            .load(W, R1, R7, socket::BACKEND)
            .load(W, R2, R10, BACKEND)
            .jump_if(NotEqual, R1, R2, count)
            .load(D, R1, R7, socket::TAG)
            .load(D, R2, R9, backend::TAG)
            .jump_if(Equal, R1, R2, noted);
    }
    a.bind(count);
    release(a);
    a.load(W, R1, R10, BACKEND)
        .store(W, R7, socket::BACKEND, R1)
        .load(D, R1, R9, backend::TAG)
        .store(D, R7, socket::TAG, R1);
    lookup(a, MapId::Loads, R10, BACKEND);
    a.jump_if(Equal, R0, 0, noted)
        .set(R1, 1)
        .atomic_add(R0, load::OPEN, R1)
        .set(R1, 1)
        .store(D, R7, socket::COUNTED, R1);
    a.bind(noted);
}

/// R0 is what is noted with the socket of the context.
fn storage(a: &mut Asm, socket_at: i16, create: i32) {
    a.set_map(R1, MapId::Sockets as usize)
        .load(D, R2, R6, socket_at)
        .set(R3, 0)
        .set(R4, create)
        .call(Helper::SkStorageGet);
}

/// `recvmsg` and `getpeername`.
fn show(ipv6: bool, datagram: bool) -> Program {
    let mut asm = Asm::new();
    let a = &mut asm;
    let [other, pass] = [(); 2].map(|()| a.label());
    let peer = FLOW_KEY + flow::KEY_ADDR;
    a.set(R6, R1);
    storage(a, addr::SOCKET, 0);
    a.jump_if(Equal, R0, 0, pass).set(R7, R0);
    read_addr(a, ipv6, peer);
    for at in [0, 8] {
        a.load(D, R1, R10, peer + at)
            .load(D, R2, R7, socket::PEER + at)
            .jump_if(NotEqual, R1, R2, other);
    }
    a.load(W, R1, R6, addr::PORT)
        .load(H, R2, R7, socket::PEER_PORT)
        .jump_if(NotEqual, R1, R2, other);
    write_addr(a, ipv6, R7, socket::VIP);
    a.load(H, R1, R7, socket::VIP_PORT)
        .store(W, R6, addr::PORT, R1)
        .jump(pass)
        .bind(other);
    if datagram {
        a.set(R1, R6)
            .call(Helper::GetSocketCookie)
            .store(D, R10, FLOW_KEY + flow::KEY_COOKIE, R0)
            .load(W, R1, R6, addr::PORT)
            .store(H, R10, FLOW_KEY + flow::KEY_PORT, R1)
            .store(H, R10, FLOW_KEY + flow::KEY_PORT + 2, 0)
            .store(W, R10, FLOW_KEY + flow::KEY_BACK, 1);
        lookup(a, MapId::Flows, R10, FLOW_KEY);
        a.jump_if(Equal, R0, 0, pass).set(R7, R0);
        write_addr(a, ipv6, R7, flow::ADDR);
        a.load(W, R1, R7, flow::PORT).store(W, R6, addr::PORT, R1);
    }
    a.bind(pass).set(R0, 1).exit();
    asm.finish()
}

/// R0 is the value of the key at `base + offset`.
fn lookup(a: &mut Asm, map: MapId, base: Reg, offset: i16) {
    a.set(R2, base);
    if offset != 0 {
        a.calc(Add, R2, Operand::Number(offset.into()));
    }
    a.set_map(R1, map as usize).call(Helper::MapLookupElem);
}

fn copy(a: &mut Asm, bytes: i16, (from, from_at): (Reg, i16), (to, to_at): (Reg, i16)) {
    for at in (0..bytes).step_by(8) {
        a.load(D, R1, from, from_at + at).store(D, to, to_at + at, R1);
    }
}
