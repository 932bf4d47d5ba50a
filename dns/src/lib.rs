//! Names on overlay networks: a pure answer over a snapshot, and the server that gives it.
//!
//! [`answer()`] is the core. It takes a question, who asks and a [`Zone`], and touches nothing else: no
//! socket, no clock, and chance only through the generator it is given. What resolves to what is in
//! `docs/names.md`, and one test of `answer` per paragraph of it.
//!
//! ```
//! use weft_dns::{Answer, Asker, Endpoint, NetworkZone, Query, Zone, answer};
//! use weft_types::{EndpointId, NetworkId};
//!
//! let app = NetworkId([7; 16]);
//! let mut network = NetworkZone::new("app", false, vec!["10.32.0.0/24".parse()?]);
//! let names = vec!["web-1".into(), "web".into()];
//! network.set_endpoint(EndpointId([1; 16]), Endpoint { names, addresses: vec!["10.32.0.5".parse()?] });
//! let mut zone = Zone::new("weft.internal")?;
//! zone.set_network(app, network);
//!
//! let question = Query::query("WEB.app.weft.internal.".parse()?, "A".parse()?);
//! let asker = Asker::on(vec![app]);
//! let Answer::Records(records) = answer(&question, &asker, &zone, &mut rand::rng()) else { panic!() };
//! assert_eq!(records[0].data.to_string(), "10.32.0.5");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Changing a zone
//!
//! The agent owns a `Zone`. For a change it copies it, which copies a pointer per network, changes the
//! copy through [`Zone::network_mut`], which copies about a hundredth of that network's names, and stores
//! it in the `ArcSwap` the servers read from. Names are never added to an answer or taken out of it one by
//! one: a network's lists are made from what its endpoints and services are, so that nothing stays behind.
//!
//! # Serving it
//!
//! [`Server::spawn`] takes sockets that are bound already, because they live in a network's namespace, and
//! a function that tells who has an address. Datagrams are taken, answered and sent by up to 64 at a time in one
//! task, since an answer takes a microsecond and a datagram of its own several in the kernel; only forwarding
//! waits, in tasks of its own. Everything is bounded:
//!
//! | what | bound | beyond it |
//! | --- | --- | --- |
//! | addresses for a name, for `tasks.SERVICE` | [`MAX_RECORDS`], [`MAX_TASKS`] | a random choice |
//! | a datagram | 512 bytes, with EDNS up to 1,232 | truncated, asked again over TCP |
//! | a message over TCP | 64 KiB: about 1,100 AAAA records of `tasks.web` | a random choice |
//! | a question | 4,096 bytes | the connection is closed, the datagram is malformed |
//! | datagrams of one address while the queue is never empty | 128 of 1,024 | dropped and counted |
//! | TCP connections of a server | 128 | the oldest idle one is closed and counted |
//! | TCP connections of one address | 8 | closed at once and counted |
//! | one question or reply on a connection | 5 s | closed |
//! | forwarded questions on their way, of one client | 1,024, 256 ([`ForwarderConfig`]) | SERVFAIL |
//! | one resolver, all of them | 1.5 s, 4.5 s | the next one, SERVFAIL |
//! | answers of others that are kept | 2,048 of each of four kinds, 4 KiB each, 1 h, negative ones 5 min | asked again |
//!
//! # What is hickory's, and what is not
//!
//! Messages are read, written and handled through hickory-server: its `Request`, `RequestHandler`,
//! `MessageResponseBuilder` and `ResponseHandler`. Questions for others go through the client streams below
//! hickory-resolver and its `ResponseCache`. Our own are
//!
//! - the two loops that accept datagrams and connections. Those of hickory-server's `Server` (0.26.3) start a
//!   task for each datagram and each connection without any bound, spin while the process is out of file
//!   descriptors, and log every question at `info`;
//! - the writer of plain replies to datagrams, addresses and negative answers: with hickory's encoder such a
//!   question costs about a quarter more (figures in `docs/dependencies.md`);
//! - a look at the header before a message is parsed, and at what fits before it is written: the parser makes
//!   room for as many questions as the header claims, and the encoder drops OPT from a full message and
//!   writes names in full from the 121st on;
//! - the order in which resolvers are asked: the resolver's pool lets a silent one use up all the time, and
//!   loses the flags of negative answers.
//!
//! Tests show these faults, and fail when a new version has them no more.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod reverse;
mod server;
mod shards;
mod zone;

pub use answer::{Answer, Asker, MAX_RECORDS, MAX_TASKS, TTL_SECS, answer};
pub use hickory_proto::op::Query;
pub use server::{
    Counts, FindAsker, Forwarder, ForwarderConfig, Server, SpawnError, SplitDomain, SplitDomainError,
    Upstreams,
};
pub use zone::{DomainError, Endpoint, EndpointMode, NetworkZone, Port, Protocol, Service, Zone};
