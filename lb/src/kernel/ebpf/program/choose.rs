//! Which backend gets a connection.

use super::*;

/// Least connection looks at so many backends, from another one on each time; the verifier wants a bound.
const MAX_SCAN: i32 = 64;

/// Puts the number of a backend at `BACKEND`.
pub(super) fn choose_backend(a: &mut Asm, refuse: Label, chosen: Label) {
    let [least, in_turn] = [(); 2].map(|()| a.label());
    lookup(a, MapId::Services, R8, vip::SERVICE);
    a.jump_if(Equal, R0, 0, refuse)
        .set(R7, R0)
        .load(D, R1, R10, FAMILY)
        .calc(And, R1, 1)
        .calc(ShiftLeft, R1, 3)
        .calc(Add, R1, R7)
        .load(W, R2, R1, service::RANGES)
        .store(D, R10, FIRST, R2)
        .load(W, R2, R1, service::RANGES + 4)
        .jump_if(Equal, R2, 0, refuse)
        .store(D, R10, COUNT, R2)
        .set(R1, 1)
        .atomic_fetch_add(R7, service::TURN, R1)
        .store(D, R10, TURN, R1)
        .load(W, R3, R7, service::SCHEDULER)
        .jump_if(
            Equal,
            R3,
            scheduler_number(Scheduler::LeastConnections) as i32,
            least,
        )
        .jump_if(NotEqual, R3, scheduler_number(Scheduler::Maglev) as i32, in_turn)
        .load(D, R1, R10, CLIENT)
        .bind(in_turn);
    load_slot(a, refuse);
    a.load(W, R1, R0, slot::BACKEND)
        .store(W, R10, BACKEND, R1)
        .jump(chosen);
    a.bind(least);
    least_connections(a);
}

/// R0 is the slot of turn R1.
fn load_slot(a: &mut Asm, none: Label) {
    a.load(D, R2, R10, COUNT)
        .calc(Mod, R1, R2)
        .load(D, R2, R10, FIRST)
        .calc(Add, R1, R2)
        .store(W, R10, SLOT, R1);
    lookup(a, MapId::Slots, R10, SLOT);
    a.jump_if(Equal, R0, 0, none);
}

/// The lowest number of open connections per weight, counted with the one to come; among equals the one that was
/// chosen longest ago.
fn least_connections(a: &mut Asm) {
    let [take, next, done] = [(); 3].map(|()| a.label());
    // The first one is less loaded than this. What is best needs no mark for "none yet", on which the verifier would
    // have to follow every order of events.
    a.set_wide(R1, 1 << 40)
        .store(D, R10, BEST_OPEN, R1)
        .load(D, R1, R10, COUNT)
        .store(D, R10, BEST_WEIGHT, R1)
        .store(D, R10, BEST_CHOSEN, R1)
        .store(D, R10, BEST, R1)
        .set(R9, 0);
    let again = a.here();
    a.load(D, R1, R10, COUNT)
        .jump_if(GreaterOrEqual, R9, R1, done)
        .jump_if(GreaterOrEqual, R9, MAX_SCAN, done)
        .load(D, R1, R10, TURN)
        .calc(Add, R1, R9);
    load_slot(a, done);
    a.load(W, R1, R0, slot::BACKEND)
        .store(W, R10, SCRATCH, R1)
        .load(W, R8, R0, slot::WEIGHT);
    lookup(a, MapId::Loads, R10, SCRATCH);
    a.jump_if(Equal, R0, 0, next)
        .load(D, R1, R0, load::OPEN)
        .calc(Add, R1, 1)
        .load(D, R2, R0, load::CHOSEN)
        .load(D, R3, R10, BEST_WEIGHT)
        .calc(Mul, R3, R1)
        .load(D, R4, R10, BEST_OPEN)
        .calc(Mul, R4, R8)
        .jump_if(Less, R3, R4, take)
        .jump_if(Greater, R3, R4, next)
        .load(D, R3, R10, BEST_CHOSEN)
        .jump_if(GreaterOrEqual, R2, R3, next);
    a.bind(take)
        .store(D, R10, BEST_OPEN, R1)
        .store(D, R10, BEST_WEIGHT, R8)
        .store(D, R10, BEST_CHOSEN, R2)
        .load(W, R1, R10, SCRATCH)
        .store(D, R10, BEST, R1);
    a.bind(next).calc(Add, R9, 1).jump(again);
    a.bind(done).load(D, R1, R10, BEST).store(W, R10, BACKEND, R1);
}
