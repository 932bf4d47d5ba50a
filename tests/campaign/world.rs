//! The hosts of a campaign, and all that goes on between them.

use std::{fs, net::IpAddr, sync::Arc, thread::JoinHandle};

use netns_harness::Sandbox;

use crate::{
    bed::{Bed, Node, soon},
    calls::{Client, Kind, Track},
    flows::{Ledger, MOVER, Speaker},
    http::HttpServer,
    secret::end,
    traffic::Server,
};

pub const NETWORK: &str = "app";
const SUBNET: &str = "10.9.0.0/16";
/// Room for an agent's durable state, in bytes.
const DISK: u32 = 8 << 20;
/// The address that moves from host to host.
const MOVES: [u8; 4] = [10, 9, 1, 1];

pub struct World {
    pub bed: Bed,
    pub names: Vec<String>,
    pub ledger: Arc<Ledger>,
    pub tracks: Vec<Arc<Track>>,
    /// By host; nothing while the host is down.
    places: Vec<Option<Place>>,
    pub mover: Mover,
    vips: Vips,
    ending: Vec<JoinHandle<()>>,
    /// What each host had that Weft could leave behind.
    before: Vec<Vec<String>>,
}

/// What runs on a host beside the agent.
struct Place {
    speaker: Speaker,
    server: Server,
    http: HttpServer,
    clients: Vec<Client>,
}

/// The endpoint that moves.
#[derive(Default)]
pub struct Mover {
    pub host: usize,
    pub incarnation: u32,
    at: Option<(Sandbox, Speaker)>,
}

struct Vips {
    echo: IpAddr,
    web: IpAddr,
}

fn address(host: usize) -> IpAddr {
    [10, 9, 0, 11 + host as u8].into()
}

impl World {
    pub fn new(hosts: usize, is_encrypted: bool) -> Self {
        let names: Vec<String> = (1..=hosts).map(|n| format!("h{n}")).collect();
        let words: Vec<&str> = names.iter().map(String::as_str).collect();
        let bed = Bed::cluster_on_disks(DISK, &words);
        bed.all_well();
        let before = bed.nodes().map(Node::traces).collect();
        let encrypted = if is_encrypted { "--opt encrypted" } else { "" };
        bed["h1"].weft(&format!("network create --subnet {SUBNET} {encrypted} {NETWORK}"));
        for service in ["echo", "web"] {
            bed["h1"].weft(&format!("service create --network {NETWORK} {service}"));
        }
        let vips = Vips {
            echo: bed["h1"].vip("echo"),
            web: bed["h1"].vip("web"),
        };
        let addresses = (0..hosts).map(address).chain([MOVES.into()]).collect();
        let tracks = (0..hosts).flat_map(|host| Kind::ALL.map(|kind| Track::new(kind, host)));
        let mut world = Self {
            bed,
            names,
            ledger: Ledger::new(addresses, is_encrypted),
            tracks: tracks.collect(),
            places: (0..hosts).map(|_| None).collect(),
            mover: Mover::default(),
            vips,
            ending: Vec::new(),
            before,
        };
        // Those who are called first, so that nobody is called before.
        let servers: Vec<_> = (0..hosts).map(|host| world.serve(host)).collect();
        for (host, server) in servers.into_iter().enumerate() {
            world.inhabit(host, server);
        }
        world.place_mover(0);
        world
    }

    pub fn hosts(&self) -> usize {
        self.names.len()
    }

    pub fn node(&self, host: usize) -> &Node {
        &self.bed[&self.names[host]]
    }

    /// A namespace on the network, once whatever holds its name or address has let go of it.
    pub fn connect(&self, host: usize, name: &str, network: &str, flags: &str) -> Sandbox {
        let node = self.node(host);
        let sandbox = node.host.sandbox(name).unwrap();
        soon(format!("{name} on {network}"), || {
            match node.try_weft(&format!("network connect {network} {name} {flags}")) {
                ended if ended.code == 0 => Ok(()),
                ended => Err(ended.stderr),
            }
        });
        sandbox
    }

    fn serve(&self, host: usize) -> (Sandbox, Speaker, Server, HttpServer) {
        let name = &self.names[host];
        let connect = |kind: &str, flags: &str| {
            let flags = format!("--name {kind}-{name} {flags}");
            self.connect(host, &format!("{kind}-{name}"), NETWORK, &flags)
        };
        let flow = connect("f", &format!("--service echo --ip {}", address(host)));
        let web = connect("w", "--service web");
        let speaker = Speaker::start(&flow, host as u32, &self.ledger);
        let server = Server::start(&flow, &format!("f-{name}"));
        let http = HttpServer::start(&web, &format!("w-{name}"));
        (flow, speaker, server, http)
    }

    fn inhabit(
        &mut self,
        host: usize,
        (flow, speaker, server, http): (Sandbox, Speaker, Server, HttpServer),
    ) {
        let peer = (host + 1) % self.hosts();
        let names = (0..self.hosts()).map(|n| (format!("f-h{}.{NETWORK}", n + 1), address(n), Some(n)));
        let services = [("web", self.vips.web), ("echo", self.vips.echo)];
        let services = services.map(|(name, vip)| (format!("{name}.{NETWORK}.weft.internal"), vip, None));
        let names = names.chain(services).collect();
        let track = |kind: Kind| &self.tracks[host * Kind::ALL.len() + kind as usize];
        let clients = vec![
            Client::stream(track(Kind::Stream), &flow, address(peer), Some(peer)),
            Client::stream(track(Kind::StreamByVip), &flow, self.vips.echo, None),
            Client::requests(track(Kind::Request), &flow, self.vips.web),
            Client::names(track(Kind::Name), &flow, names),
        ];
        self.places[host] = Some(Place {
            speaker,
            server,
            http,
            clients,
        });
    }

    /// Takes the endpoint that moves to a host, where it is another one with the same address.
    pub fn place_mover(&mut self, host: usize) {
        let incarnation = MOVER + 1 + self.mover.incarnation;
        let name = format!("m-{incarnation}");
        let flags = format!("--name m --ip {}", IpAddr::from(MOVES));
        let sandbox = self.connect(host, &name, NETWORK, &flags);
        let speaker = Speaker::start(&sandbox, incarnation, &self.ledger);
        self.mover.at = Some((sandbox, speaker));
        self.mover.host = host;
        self.mover.incarnation += 1;
        self.ledger.resume_mover(incarnation);
    }

    /// Detaches it; what is left hears what is sent to it still.
    pub fn lift_mover(&mut self) -> (Sandbox, Speaker) {
        self.ledger.pause_mover();
        let left = self.mover.at.take().expect("it is somewhere");
        self.node(self.mover.host)
            .weft(&format!("network disconnect {NETWORK} m"));
        left
    }

    /// A power cut.
    pub fn crash(&mut self, host: usize) {
        if self.mover.host == host {
            self.ledger.pause_mover();
        }
        self.node(host).host.crash().unwrap();
        self.abandon(host);
    }

    /// Ends what runs on a host beside the agent.
    fn abandon(&mut self, host: usize) {
        let place = self.places[host].take().expect("it is up");
        self.ending.extend(place.clients.into_iter().map(Client::retire));
        drop((place.speaker, place.server, place.http));
        if self.mover.host == host {
            self.mover.at = None;
        }
    }

    /// The host is switched on again, with its disk, and what ran on it is started anew.
    pub fn boot(&mut self, host: usize) {
        self.node(host).boot();
        self.settle_in(host);
    }

    /// It is not heard of any more, by the word of another, and what it owned is somebody else's.
    pub fn remove(&self, host: usize, by: usize) {
        let line = format!("node rm {}", self.names[host]);
        soon(&line, || match self.node(by).try_weft(&line) {
            // Others may believe it alive for a while.
            ended if ended.code == 0 => Ok(()),
            ended => Err(ended.stderr),
        });
        for other in (0..self.hosts()).filter(|other| *other != host) {
            soon(
                format!("all to be well on {}", self.names[other]),
                || match self.node(other).problems() {
                    problems if problems.is_empty() => Ok(()),
                    problems => Err(problems.join("; ")),
                },
            );
        }
    }

    /// A removed host is switched on again, and hears of it if it has its disk still.
    pub fn boot_removed(&self, host: usize, has_disk: bool) {
        let node = self.node(host);
        if !has_disk {
            for entry in fs::read_dir(node.data_dir()).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => fs::remove_dir_all(path),
                    false => fs::remove_file(path),
                }
                .unwrap();
            }
        }
        node.boot();
        soon(format!("{} in no cluster", self.names[host]), || {
            match node.try_weft("node ls") {
                ended if ended.stderr.contains("in no cluster") => Ok(()),
                ended => Err(format!("{ended:?}")),
            }
        });
    }

    /// A host says good-bye while all goes on, and what ran on it ends.
    pub fn leave(&mut self, host: usize) {
        if self.mover.host == host {
            self.ledger.pause_mover();
        }
        self.node(host).weft("leave");
        self.abandon(host);
        for sandbox in self.node(host).host.sandboxes() {
            sandbox.remove().unwrap();
        }
    }

    /// A host that is in no cluster joins this one.
    pub fn join(&mut self, host: usize, by: usize) {
        self.node(host).weft(&self.node(by).join_command(""));
        self.settle_in(host);
    }

    /// What runs on a host is started anew.
    fn settle_in(&mut self, host: usize) {
        let served = self.serve(host);
        self.inhabit(host, served);
        if self.mover.host == host {
            self.place_mover(host);
        }
    }

    /// Takes everything apart by commands, and finds every host as it was before there was a network.
    pub fn close(mut self) {
        let mut sandboxes: Vec<Sandbox> = Vec::new();
        self.ledger.pause_mover();
        for place in self.places.drain(..).flatten() {
            self.ending.extend(place.clients.into_iter().map(Client::retire));
            drop((place.speaker, place.server, place.http));
        }
        self.mover.at = None;
        for thread in self.ending.drain(..) {
            thread.join().unwrap();
        }
        for node in self.bed.nodes() {
            for sandbox in node.host.sandboxes() {
                node.weft(&format!("network disconnect {NETWORK} {}", sandbox.name()));
                sandboxes.push(sandbox);
            }
        }
        for sandbox in sandboxes {
            sandbox.remove().unwrap();
        }
        for line in ["service rm echo web", &format!("network rm {NETWORK}")] {
            soon(line, || match self.bed["h1"].try_weft(line) {
                ended if ended.code == 0 => Ok(()),
                ended => Err(ended.stderr),
            });
        }
        for (node, before) in self.bed.nodes().zip(&self.before) {
            soon(format!("{} as it was", node.host.name()), || {
                let now = node.traces();
                let more: Vec<_> = now.iter().filter(|trace| !before.contains(trace)).collect();
                let less: Vec<_> = before.iter().filter(|trace| !now.contains(trace)).collect();
                match more.is_empty() && less.is_empty() {
                    true => Ok(()),
                    false => Err(format!("more: {more:?}, less: {less:?}")),
                }
            });
        }
        end(self.bed);
    }
}
