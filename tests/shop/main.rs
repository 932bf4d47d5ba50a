//! `weft lab` as a user has it: the real program on `examples/shop.yaml` and small variants of it, in real namespaces,
//! through real sockets. Runs as root and as an ordinary user; each test has labs of its own and ends them.

mod balance;
mod bed;
mod death;
mod files;
mod health;
mod leftovers;
mod pictures;
mod publish;
mod reach;
mod rootless;
mod sides;
