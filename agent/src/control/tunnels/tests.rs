use data_encoding::BASE64_NOPAD;
use weft_wireguard::PairStatus;

use super::*;
use crate::{
    api::types::{NetworkCreateRequest, NodeRemoveQuery},
    control::{
        Command, HostFacts,
        records::{CLUSTER, Kind, encode},
        world::World,
    },
};

fn create(world: &mut World, name: &str, encrypted: bool) {
    let mut request = NetworkCreateRequest::new(name);
    request
        .options
        .insert("encrypted".to_owned(), encrypted.to_string());
    world.done(0, |to| Command::NetworkCreate(request, to));
}

fn connect(world: &mut World, node: usize, network: &str, name: &str) -> Mac {
    let made = world.connect(node, network, name, None).unwrap();
    world.pass(Duration::from_secs(1));
    made.mac
}

fn told(world: &World, node: usize) -> Option<Desired> {
    world.nodes[node].control.tunnels()
}

fn address(world: &World, node: usize) -> Ipv4Addr {
    world.nodes[node].control.tunnel_address()
}

fn knows(desired: &Desired, key: &[u8; 32]) -> bool {
    let mut pairs = desired.peers.iter().flat_map(|peer| &peer.pairs);
    pairs.any(|pair| pair.public_key == *key)
}

fn key(node: u8) -> [u8; 32] {
    Secret32::new([node; 32]).public_key()
}

#[test]
fn the_process_is_told_of_encrypted_networks_here_and_of_nodes_that_share_them() {
    let mut world = World::of(3);
    create(&mut world, "secret", true);
    create(&mut world, "plain", false);
    assert_eq!(told(&world, 0), None);
    connect(&mut world, 0, "plain", "p");
    connect(&mut world, 1, "plain", "q");
    assert_eq!(told(&world, 0), None);

    let a = connect(&mut world, 0, "secret", "a");
    let alone = told(&world, 0).unwrap();
    assert_eq!((alone.networks.len(), alone.peers.len()), (1, 0));
    assert_eq!(told(&world, 1), None);
    let b = connect(&mut world, 1, "secret", "b");
    let (one, other) = (told(&world, 0).unwrap(), told(&world, 1).unwrap());
    assert_eq!(told(&world, 2), None);

    assert_eq!((one.vtep, other.vtep), (address(&world, 0), address(&world, 1)));
    assert_eq!(one.private_keys[0].public_key(), key(1));
    assert_eq!(one.peers.len(), 1);
    assert_eq!(
        (one.peers[0].pairs[0].public_key, one.peers[0].vtep),
        (key(2), address(&world, 1))
    );
    assert_eq!(one.peers[0].endpoint, "192.0.2.2:51820".parse().unwrap());
    assert_eq!(
        one.peers[0].pairs[0].preshared_key,
        other.peers[0].pairs[0].preshared_key
    );
    let network = &one.networks[0];
    assert_eq!(network.members, [address(&world, 1)]);
    assert_eq!(network.fdb, [(b, address(&world, 1))]);
    assert_eq!(other.networks[0].fdb, [(a, address(&world, 0))]);
    assert_eq!(network.tap, "vx0");
    assert!(network.netns.starts_with("/run/weft/netns"));

    // The kernel gets a TAP for the one and VXLAN for the other.
    let now = Now {
        instant: Instant::now(),
        unix_millis: 0,
    };
    let overlay = world.nodes[0].control.host_state(now).overlay;
    let kinds: BTreeMap<_, _> = overlay
        .networks
        .values()
        .map(|network| (network.name.as_str(), (network.encryption, network.mtu)))
        .collect();
    assert_eq!(
        kinds,
        BTreeMap::from([
            ("plain", (None, 1450)),
            ("secret", (Some(Encryption::Process), 1370))
        ])
    );
    assert_eq!(overlay.guarded, [4789].into());
}

#[test]
fn in_the_kernels_wireguard_vxlan_is_between_the_addresses_inside_the_tunnels() {
    let mut world = World::of(2);
    create(&mut world, "secret", true);
    create(&mut world, "plain", false);
    for node in 0..2 {
        connect(&mut world, node, "secret", &format!("s{node}"));
        connect(&mut world, node, "plain", &format!("p{node}"));
    }
    let addresses = [0, 1].map(|node| IpAddr::from(address(&world, node)));
    let control = &mut world.nodes[0].control;
    control.settings.encrypter.kind = Encryption::Kernel;
    control.host_changed();
    let now = Now {
        instant: Instant::now(),
        unix_millis: 0,
    };
    let state = control.host_state(now);
    assert_eq!(state.tunnel_mtu, 1420);
    let network = |name: &str| {
        let mut networks = state.overlay.networks.values();
        networks.find(|network| network.name == name).unwrap()
    };
    let (secret, plain) = (network("secret"), network("plain"));
    assert_eq!(secret.encryption, Some(Encryption::Kernel));
    assert_eq!(secret.vtep, addresses[0]);
    assert!(secret.remotes.values().all(|remote| remote.vtep == addresses[1]));
    assert_eq!((secret.remotes.len(), plain.remotes.len()), (1, 1));
    assert_eq!(plain.vtep, IpAddr::from([192, 0, 2, 1]));
    let status = control.encryption(None, now).unwrap();
    assert_eq!(status.datapath, "kernel");
}

#[test]
fn who_is_removed_or_leaves_is_told_of_no_more() {
    let mut world = World::of(3);
    create(&mut world, "secret", true);
    for node in 0..3 {
        connect(&mut world, node, "secret", &format!("e{node}"));
    }
    for node in 0..3 {
        let desired = told(&world, node).unwrap();
        assert_eq!((desired.peers.len(), desired.networks[0].members.len()), (2, 2));
    }
    world.nodes[2].is_cut_off = true;
    let query = NodeRemoveQuery { force: true };
    world.ask(0, |to| Command::NodeRemove("h3".to_owned(), query, to));
    // At once on the node that was asked, and within a second on the others.
    for node in 0..2 {
        world.until(Duration::from_secs(1), |world| {
            let desired = told(world, node).unwrap();
            !knows(&desired, &key(3)) && desired.networks[0].fdb.len() == 1
        });
    }
    world.ask(1, Command::Leave);
    world.until(Duration::from_secs(2), |world| {
        told(world, 0).unwrap().peers.is_empty()
    });
}

#[test]
fn an_address_that_two_nodes_have_is_the_ones_whose_id_points_to_it_and_the_other_picks_again() {
    let mut world = World::of(3);
    create(&mut world, "secret", true);
    for node in 0..3 {
        connect(&mut world, node, "secret", &format!("e{node}"));
    }
    let addresses: BTreeSet<_> = (0..3).map(|node| address(&world, node)).collect();
    assert_eq!(addresses.len(), 3);
    let ids: Vec<NodeId> = world.nodes.iter().map(|node| node.control.me).collect();
    let mut order = [0, 1, 2];
    order.sort_by_key(|node| ids[*node]);
    let [low, middle, high] = order;

    // The highest says that it has the address of the lowest.
    let stolen = address(&world, low);
    let fact = |control: &Control, address: Ipv4Addr| {
        let mut fact = control.catalogue.node(control.me).unwrap().fact.clone().unwrap();
        fact.tunnel.address = address;
        fact
    };
    let control = &world.nodes[high].control;
    let (thief, said) = (control.me, fact(control, stolen));
    // As it looks to the others before the thief has thought better of it.
    for node in [low, middle] {
        let control = &mut world.nodes[node].control;
        let key = Kind::Node.key(CLUSTER, Vec::new());
        control.catalogue.apply(thief, &key, Some(&encode(&said)));
        let desired = control.tunnels().unwrap();
        assert!(!knows(&desired, &said.tunnel.key));
        assert!(desired.networks[0].fdb.iter().all(|(_, to)| *to != stolen) || node != low);
        assert_eq!(control.tunnel_address(), address_of(&desired));
    }
    // The one to which its id points it keeps, whoever says that it has it.
    let control = &mut world.nodes[high].control;
    let own = control.tunnel_address();
    let lower = fact(&world.nodes[low].control, own);
    let control = &mut world.nodes[high].control;
    let key = Kind::Node.key(CLUSTER, Vec::new());
    control.catalogue.apply(ids[low], &key, Some(&encode(&lower)));
    assert_eq!(control.tunnel_address(), own);
    // Any other one belongs to the lower of two that say they have it.
    let other = choose(ids[high], |address| address == own);
    let (mine, lower) = (fact(control, other), fact(&world.nodes[low].control, other));
    let control = &mut world.nodes[high].control;
    control.catalogue.apply(ids[high], &key, Some(&encode(&mine)));
    assert_eq!(control.tunnel_address(), other);
    control.catalogue.apply(ids[low], &key, Some(&encode(&lower)));
    let again = control.tunnel_address();
    assert!(again != other && ADDRESSES.contains(&again));
}

fn address_of(desired: &Desired) -> Ipv4Addr {
    desired.vtep
}

#[test]
fn an_address_is_found_wherever_the_id_points_and_none_is_a_networks_own() {
    let node = NodeId([7; 32]);
    let first = choose(node, |_| false);
    assert_eq!(choose(node, |_| false), first);
    let next = choose(node, |address| address == first);
    assert_eq!(next.to_bits(), first.to_bits() + 1);
    for n in 0..=255 {
        let address = choose(NodeId([n; 32]), |_| false);
        assert!(ADDRESSES.contains(&address) && address != ADDRESSES.network());
        assert_ne!(address, ADDRESSES.broadcast());
    }
}

#[test]
fn a_pair_of_nodes_makes_one_key_and_every_other_pair_another() {
    let secret = Secret32::new([1; 32]);
    let (a, b, c) = (key(1), key(2), key(3));
    let ab = preshared_key(&secret, &a, &b);
    assert_eq!(ab, preshared_key(&secret, &b, &a));
    let others = [
        preshared_key(&secret, &a, &c),
        preshared_key(&secret, &b, &c),
        preshared_key(&Secret32::new([2; 32]), &a, &b),
    ];
    assert!(others.iter().all(|other| *other != ab));
    // RFC 5869 with an empty salt, computed with another implementation.
    assert_eq!(
        BASE64_NOPAD.encode(ab.expose()),
        "CxGJmrbZaRpoLs+Evz3TBNqjisD+aVnC6SwgPo5eDlo"
    );
}

#[test]
fn what_is_wrong_with_tunnels_is_said_and_what_they_carry_is_shown() {
    let mut world = World::of(2);
    create(&mut world, "secret", true);
    for node in 0..2 {
        connect(&mut world, node, "secret", &format!("e{node}"));
    }
    let other = world.nodes[1].control.me;
    let control = &mut world.nodes[0].control;
    let begin = Now {
        instant: Instant::now() + Duration::from_secs(3600),
        unix_millis: 0,
    };
    control.host_state(begin);
    // Old words count for nothing.
    let problems = control.tunnel_problems(begin);
    assert!(problems[0].contains("has not answered"), "{problems:?}");
    let said = |status: Result<Status, String>| TunnelReport {
        status,
        failed: Vec::new(),
    };
    control.handle_tunnels(said(Err("it was started and did not stay".to_owned())), begin);
    let problems = control.tunnel_problems(begin);
    assert!(problems[0].contains("did not stay"), "{problems:?}");
    assert!(!control.encryption(None, begin).unwrap().running);

    let vtep = control
        .catalogue
        .node(other)
        .unwrap()
        .fact
        .as_ref()
        .unwrap()
        .tunnel
        .address;
    let peer = PeerStatus {
        received_bytes: 1,
        sent_bytes: 2,
        lost: 3,
        ..PeerStatus::new(vtep, "192.0.2.77:51820".parse().unwrap())
    };
    let status = |peer: &PeerStatus| Status {
        generation: 1,
        peers: vec![peer.clone()],
        ..Status::default()
    };
    control.handle_tunnels(said(Ok(status(&peer))), begin);
    let problems = control.tunnel_problems(begin);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("there is no tunnel to node `h2`"),
        "{problems:?}"
    );

    let well = PeerStatus {
        pairs: vec![PairStatus {
            own: key(1),
            public_key: key(2),
            is_used: true,
            last_handshake: Some(Duration::from_secs(30)),
            last_heard: None,
        }],
        ..peer
    };
    control.handle_tunnels(said(Ok(status(&well))), begin);
    assert_eq!(control.tunnel_problems(begin), Vec::<String>::new());
    let later = Now {
        instant: begin.instant + Duration::from_secs(2),
        ..begin
    };
    let tunnel = control.node_detail("h2", later).unwrap().tunnel.unwrap();
    assert_eq!(tunnel.handshake_ms_ago, Some(32_000));
    assert_eq!((tunnel.received_bytes, tunnel.sent_bytes, tunnel.lost), (1, 2, 3));
    assert_eq!(tunnel.underlay_address, "192.0.2.77:51820".parse().unwrap());
    let detail = control.network_detail("secret", later).unwrap();
    assert!(detail.summary.encrypted && detail.encryption.unwrap().tunnels.len() == 1);

    let narrow = PeerStatus {
        path_mtu: Some(1400),
        ..well
    };
    control.handle_tunnels(said(Ok(status(&narrow))), begin);
    let problems = control.tunnel_problems(begin);
    assert!(
        problems[0].contains("takes packets of 1400 bytes"),
        "{problems:?}"
    );
    let facts = HostFacts {
        datapath: crate::api::contract::sample("DatapathStatus"),
        names: crate::api::contract::sample("NamesStatus"),
    };
    assert!(
        control
            .status(facts, begin)
            .problems
            .iter()
            .any(|problem| problem.contains("1400"))
    );
}

#[test]
fn a_network_is_encrypted_unless_told_otherwise_where_that_is_the_default() {
    let mut world = World::of(1);
    world.nodes[0].control.settings.encrypt = true;
    let made = world.done(0, |to| {
        Command::NetworkCreate(NetworkCreateRequest::new("app"), to)
    });
    assert!(made.encrypted && made.mtu == 1370);
    create(&mut world, "plain", false);
    let now = Now {
        instant: Instant::now(),
        unix_millis: 0,
    };
    let plain = world.nodes[0].control.network_detail("plain", now).unwrap();
    assert!(!plain.summary.encrypted && plain.summary.mtu == 1450 && plain.encryption.is_none());
    let mut large = NetworkCreateRequest::new("large");
    large.options.insert("mtu".to_owned(), "1400".to_owned());
    let refused = world.nodes[0].control.check_new_network(&large).unwrap_err();
    assert!(refused.message.contains("larger than 1370"), "{refused}");
}
