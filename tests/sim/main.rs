//! The gossip core in virtual time: many nodes, a bad network, one seed.
//!
//! Each test has a seed of its own, so that a run is the same every time. `SIM_SEED=n` gives all of them another;
//! `SIM_THOROUGH=1` makes clusters larger and runs more. Each prints its seed and what it measured (`--nocapture`).

mod evil;
mod hostile;
mod interest;
mod lives;
mod spread;
mod watch;
mod world;
