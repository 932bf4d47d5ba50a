//! The end of a connection, which makes it count as open no more, and its beginning, if it has one.
//!
//! It failed if TCP gave it up before it was made, for whatever reason: it was refused or reset, nothing can lead there, or
//! nobody answered for too long. If its program gives it up, by a time-out of its own or because it ends, that is a failure once
//! the first segment was sent again in vain, which takes a second; until then the backend had no time to answer. (One case is
//! missed: an ICMP error that comes within the system call, as from a firewall on the same host, TCP tells the program and does not
//! act on; a program that then gives up at once looks as if it had not waited.)

use super::*;

/// `struct bpf_sock_ops`
mod ops {
    pub(super) const OP: i16 = 0;
    pub(super) const OLD_STATE: i16 = 4;
    pub(super) const NEW_STATE: i16 = 8;
    /// What is called for this socket.
    pub(super) const CALLED: i16 = 84;
    pub(super) const RETRANSMITTED: i16 = 136;
    pub(super) const SOCKET: i16 = 184;
    /// `BPF_SOCK_OPS_TCP_CONNECT_CB`, `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`, `BPF_SOCK_OPS_STATE_CB` and its flag
    pub(super) const CONNECTING: i32 = 3;
    pub(super) const MADE: i32 = 4;
    pub(super) const STATE: i32 = 10;
    pub(super) const STATE_FLAG: i32 = 4;
    /// `TCP_SYN_SENT`, `TCP_SYN_RECV`, `TCP_FIN_WAIT1`, `TCP_CLOSE`, `TCP_CLOSE_WAIT`
    pub(super) const SYN_SENT: i32 = 2;
    pub(super) const SYN_RECEIVED: i32 = 3;
    pub(super) const FIN_WAIT: i32 = 4;
    pub(super) const CLOSED: i32 = 7;
    pub(super) const CLOSE_WAIT: i32 = 8;
}

/// A socket is closed, by its program or with it.
pub(super) fn on_release() -> Program {
    let mut asm = Asm::new();
    let a = &mut asm;
    let pass = a.label();
    a.set(R2, R1)
        .set_map(R1, MapId::Sockets as usize)
        .set(R3, 0)
        .set(R4, 0)
        .call(Helper::SkStorageGet)
        .jump_if(Equal, R0, 0, pass)
        .set(R7, R0);
    release(a);
    a.bind(pass).set(R0, 1).exit();
    asm.finish()
}

/// A connection is attempted, is made, or ends before its socket is closed: it was reset, timed out, was never made, or the other side
/// has said that it is done. Each call costs as much as a small function of the kernel's, so a socket of which there is nothing more to
/// be known makes none.
pub(super) fn on_sock_ops() -> Program {
    let mut asm = Asm::new();
    let a = &mut asm;
    let [known, attempted, noted, ended, settled, pass] = [(); 6].map(|()| a.label());
    a.set(R6, R1)
        .load(W, R7, R6, ops::OP)
        .set(R8, 0)
        .jump_if(Equal, R7, ops::CONNECTING, known)
        .jump_if(Equal, R7, ops::MADE, known)
        .jump_if(NotEqual, R7, ops::STATE, pass)
        .load(W, R8, R6, ops::NEW_STATE)
        .jump_if(Equal, R8, ops::CLOSED, known)
        .jump_if(Equal, R8, ops::FIN_WAIT, known)
        .jump_if(NotEqual, R8, ops::CLOSE_WAIT, pass)
        .bind(known)
        .set_map(R1, MapId::Sockets as usize)
        .load(D, R2, R6, ops::SOCKET)
        .jump_if(Equal, R2, 0, pass)
        .set(R3, 0)
        .set(R4, 0)
        .call(Helper::SkStorageGet)
        .jump_if(Equal, R0, 0, pass)
        // It is connected to nobody's virtual address now.
        .load(H, R1, R0, socket::PEER_PORT)
        .jump_if(Equal, R1, 0, pass)
        .set(R9, R7)
        .set(R7, R0)
        .jump_if(Equal, R9, ops::CONNECTING, attempted)
        .jump_if(NotEqual, R9, ops::MADE, noted);
    count_one(a, load::MADE, pass);
    a.jump(pass).bind(attempted);
    call_for_states(a, true);
    count_one(a, load::TCP, pass);
    a.jump(pass)
        .bind(noted)
        .jump_if(NotEqual, R8, ops::FIN_WAIT, ended)
        // A program that says that it is done, and has not closed its socket, may be answered for long.
        .load(D, R1, R7, socket::COUNTED)
        .jump_if(NotEqual, R1, 0, pass)
        .jump(settled)
        .bind(ended);
    let counted = a.label();
    note_failure(a, counted);
    a.bind(counted);
    release(a);
    a.bind(settled);
    call_for_states(a, false);
    a.bind(pass).set(R0, 1).exit();
    asm.finish()
}

/// Has this program called for each state that the socket of R6 comes to, or no more; what others are called for stays.
fn call_for_states(a: &mut Asm, wanted: bool) {
    a.load(W, R2, R6, ops::CALLED).calc(And, R2, !ops::STATE_FLAG);
    if wanted {
        a.calc(Add, R2, ops::STATE_FLAG);
    }
    a.set(R1, R6).call(Helper::SockOpsCbFlagsSet);
}

/// Counts a connection that ends in the state R8 and was never made.
fn note_failure(a: &mut Asm, other: Label) {
    let [never_made, failed] = [(); 2].map(|()| a.label());
    a.jump_if(NotEqual, R8, ops::CLOSED, other)
        .load(W, R1, R6, ops::OLD_STATE)
        .jump_if(Equal, R1, ops::SYN_SENT, never_made)
        .jump_if(NotEqual, R1, ops::SYN_RECEIVED, other)
        .bind(never_made)
        // What its program has closed counts as open no more.
        .load(D, R1, R7, socket::COUNTED)
        .jump_if(NotEqual, R1, 0, failed)
        .load(W, R1, R6, ops::RETRANSMITTED)
        .jump_if(Equal, R1, 0, other)
        .bind(failed);
    count_one(a, load::FAILED, other);
}

/// One more at the backend that is noted at R7.
fn count_one(a: &mut Asm, what: i16, gone: Label) {
    load_of(a, gone);
    a.set(R1, 1).atomic_add(R0, what, R1);
}

/// What is noted at R7 does not count as open any more, if it did.
pub(super) fn release(a: &mut Asm) {
    let done = a.label();
    a.set(R1, 0)
        .atomic_swap(R7, socket::COUNTED, R1)
        .jump_if(Equal, R1, 0, done);
    load_of(a, done);
    a.set(R1, -1).atomic_add(R0, load::OPEN, R1).bind(done);
}

/// R0 is what is counted for the backend that is noted at R7. One that was given up meanwhile has another tag, and its
/// successor has nothing to do with this.
fn load_of(a: &mut Asm, gone: Label) {
    a.load(W, R1, R7, socket::BACKEND).store(W, R10, SCRATCH, R1);
    lookup(a, MapId::Backends, R10, SCRATCH);
    a.jump_if(Equal, R0, 0, gone)
        .load(D, R1, R0, backend::TAG)
        .load(D, R2, R7, socket::TAG)
        .jump_if(NotEqual, R1, R2, gone);
    lookup(a, MapId::Loads, R10, SCRATCH);
    a.jump_if(Equal, R0, 0, gone);
}
