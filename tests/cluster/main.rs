//! Whole clusters of real agents on hosts of namespaces, driven by the command line, each endpoint a real namespace.

mod applied;
mod bed;
mod counts;
mod crash;
mod drain;
mod eject;
mod encrypted;
mod health;
mod http;
mod leftovers;
mod metrics;
mod names;
mod networks;
mod partition;
mod publish;
mod ranges;
mod refusals;
mod repair;
mod restart;
mod rolling;
mod scenarios;
mod services;
mod state;
mod swarm;
mod traffic;
mod tuning;
