//! The gossip core in virtual time: many nodes, a bad network, one seed.
//!
//! `SIM_SEED=n` replays a run. Each test prints its seed and what it measured (`--nocapture`).

mod hostile;
mod lives;
mod spread;
mod world;
