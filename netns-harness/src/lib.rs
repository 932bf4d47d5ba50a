//! Labs of network namespaces: several hosts on one machine, as root or as an ordinary user.
//!
//! A [`Lab`] is a set of [`Host`]s, each with its own network, its own `/run`, `/etc/resolv.conf` and host name, connected by
//! [`Switch`]es and cables. Real processes run on them; links can be unplugged, hosts partitioned and crashed, frames captured.
//! At the end [`Lab::close`] checks that nothing is left. No `ip`, `tc` or `nft` is needed: the crate talks to the kernel itself.
//!
//! ```no_run
//! use std::process::Command;
//! use std::time::Duration;
//! use netns_harness::{Inside, Isolate, Lab, SwitchOptions};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     netns_harness::isolate(&Isolate::new())?; // first thing, before any thread
//!     let lab = Lab::new("demo")?;
//!     let lan = lab.switch("lan", SwitchOptions::new().subnet("10.1.0.0/24".parse::<ipnet::IpNet>()?))?;
//!     let hosts = lab.hosts(&["h1", "h2", "h3"])?;
//!     lab.plug(&lan, &hosts)?; // eth0 with 10.1.0.1, .2, .3
//!     hosts[0].ping("10.1.0.2".parse()?, Duration::from_secs(1))?;
//!     lab.partition(&[&[&hosts[0]], &[&hosts[1], &hosts[2]]])?;
//!     hosts[0].ping("10.1.0.2".parse()?, Duration::from_secs(1)).unwrap_err();
//!     lab.heal()?;
//!     let finished = hosts[2].exec(&mut Command::new("hostname"), Duration::from_secs(5))?.success()?;
//!     assert_eq!(finished.stdout, "h3\n");
//!     lab.close()?; // fails if anything is left
//!     Ok(())
//! }
//! ```
//!
//! `examples/three_hosts.rs` is a longer tour, `examples/hundred_hosts.rs` measures how fast hosts come up.
//!
//! # Ways in
//!
//! * A program calls [`isolate()`] first thing in `main`. What follows runs as root in namespaces of its own.
//! * A program with threads starts another one (or itself) by [`spawn_isolated`].
//! * A test calls [`isolated`].
//! * Root may also make a [`Lab`] without any of these, but then nothing cleans up processes if it is killed.
//! * Another process of the same user gets into a host by [`enter_and_exec`] with the [`EnterSpec`] of that host.
//!
//! # What holds a lab
//!
//! Descriptors of one process, nothing else: no names, no helper processes. When the process dies, however it dies, the
//! kernel ends the PID namespace of [`isolate()`] with everything in it. [`left_behind`] checks that from outside.
//!
//! # Limits
//!
//! Links have no delay or loss yet. `/sys` inside shows the machine's devices. A host shares the lab's PID namespace: its
//! processes are told apart by the namespaces they are in, so one that leaves network, mount and UTS namespace of its host all at
//! once escapes a crash of that host (not the end of the lab).
#![warn(missing_docs)]

mod audit;
mod capture;
mod enter;
mod error;
mod fabric;
mod host;
mod isolate;
mod lab;
mod mounts;
mod namespaces;
mod ping;
mod process;
mod sandbox;
mod supervise;
mod switch;
mod sys;
mod testing;
mod wait;

pub use audit::{Footprint, Snapshot, left_behind};
pub use capture::{Capture, CaptureOptions, Seen};
pub use enter::{EnterError, EnterSpec, NamespacePath, enter_and_exec};
pub use error::LabError;
pub use host::Host;
pub use isolate::{
    Isolate, IsolateError, Isolation, Step, Switch as IsolationSwitch, UserNamespace, isolate, spawn_isolated,
};
pub use lab::{Lab, Plug};
pub use namespaces::{Inside, Namespaces};
pub use nix::sys::signal::Signal;
pub use process::{Finished, Output, Process};
pub use sandbox::Sandbox;
pub use switch::{Interface, Switch, SwitchOptions};
pub use testing::{isolated, isolated_with};
pub use wait::{TimedOut, eventually};
