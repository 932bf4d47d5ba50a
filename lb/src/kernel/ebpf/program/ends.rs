//! The end of a connection, which makes it count as open no more.

use super::*;

/// `struct bpf_sock_ops`
mod ops {
    pub(super) const OP: i16 = 0;
    pub(super) const NEW_STATE: i16 = 8;
    pub(super) const SOCKET: i16 = 184;
    /// `BPF_SOCK_OPS_TCP_CONNECT_CB`, `BPF_SOCK_OPS_STATE_CB` and its flag
    pub(super) const CONNECTING: i32 = 3;
    pub(super) const STATE: i32 = 10;
    pub(super) const STATE_FLAG: i32 = 4;
    /// `TCP_CLOSE`, `TCP_CLOSE_WAIT`
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

/// A connection ends before its socket is closed: it was reset, timed out, was never made, or the other side has said
/// that it is done.
pub(super) fn on_sock_ops() -> Program {
    let mut asm = Asm::new();
    let a = &mut asm;
    let [known, connecting, ended, pass] = [(); 4].map(|()| a.label());
    a.set(R6, R1)
        .load(W, R7, R6, ops::OP)
        .jump_if(Equal, R7, ops::CONNECTING, known)
        .jump_if(NotEqual, R7, ops::STATE, pass)
        .load(W, R1, R6, ops::NEW_STATE)
        .jump_if(Equal, R1, ops::CLOSED, known)
        .jump_if(NotEqual, R1, ops::CLOSE_WAIT, pass)
        .bind(known)
        .set_map(R1, MapId::Sockets as usize)
        .load(D, R2, R6, ops::SOCKET)
        .jump_if(Equal, R2, 0, pass)
        .set(R3, 0)
        .set(R4, 0)
        .call(Helper::SkStorageGet)
        .jump_if(Equal, R0, 0, pass)
        .jump_if(Equal, R7, ops::CONNECTING, connecting)
        .jump(ended);
    a.bind(connecting)
        .set(R1, R6)
        .set(R2, ops::STATE_FLAG)
        .call(Helper::SockOpsCbFlagsSet)
        .jump(pass);
    a.bind(ended).set(R7, R0);
    release(a);
    a.bind(pass).set(R0, 1).exit();
    asm.finish()
}

/// What is noted at R7 does not count as open any more, if it did. A backend that was given up meanwhile has another
/// tag, and its successor must not lose a connection for it.
pub(super) fn release(a: &mut Asm) {
    let done = a.label();
    a.set(R1, 0)
        .atomic_swap(R7, socket::COUNTED, R1)
        .jump_if(Equal, R1, 0, done)
        .load(W, R1, R7, socket::BACKEND)
        .store(W, R10, SCRATCH, R1);
    lookup(a, MapId::Backends, R10, SCRATCH);
    a.jump_if(Equal, R0, 0, done)
        .load(D, R1, R0, backend::TAG)
        .load(D, R2, R7, socket::TAG)
        .jump_if(NotEqual, R1, R2, done);
    lookup(a, MapId::Loads, R10, SCRATCH);
    a.jump_if(Equal, R0, 0, done)
        .set(R1, -1)
        .atomic_add(R0, load::OPEN, R1)
        .bind(done);
}
