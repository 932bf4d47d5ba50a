//! What a new agent finds, however it looks.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use weft_netlink::{
    broker::SocketKind,
    look::{Along, Inside},
    route::{Address, Batch, BridgeFdb, RouteSocket},
};

use super::*;

/// Whom it showed what, and with how many sockets.
#[derive(Default)]
struct Witness(Mutex<Vec<(NetnsId, usize)>>);

impl Along for Witness {
    fn sockets(&self) -> &[SocketKind] {
        &[SocketKind::Netfilter]
    }

    fn look(&self, inside: Inside<'_>) {
        let sockets: Vec<OwnedFd> = inside.sockets;
        self.0.lock().unwrap().push((inside.netns.id(), sockets.len()));
    }
}

fn take_address(netns: &Netns) {
    let mut socket = RouteSocket::open(netns).unwrap();
    let addresses = socket.addresses().unwrap();
    let ours = |address: &&Address| address.net.addr().to_string().starts_with("10.9.");
    let mut batch = Batch::new();
    batch.add(addresses.iter().find(ours).map(|address| address.delete()));
    assert!(!batch.is_empty());
    socket.execute(batch).unwrap();
}

#[test]
fn sandboxes_that_were_looked_into_ahead_are_compared_and_others_are_looked_into_too() {
    let Some(mut lab) = Lab::new(1) else { return };
    for n in [11, 12, 13] {
        lab.attach(0, APP, n, n, false);
    }
    lab.reconcile();
    let path_of = |lab: &Lab, n| {
        let endpoint = &lab.hosts[0].desired.networks[&APP].endpoints[&endpoint(n)];
        endpoint.place.sandbox().unwrap().path.clone()
    };
    let ahead = vec![path_of(&lab, 11), PathBuf::from("/nowhere"), path_of(&lab, 13)];
    // While nobody was there: in one that is looked into ahead, and in one that is not.
    take_address(lab.netns(11));
    take_address(lab.netns(12));
    let all: BTreeSet<NetnsId> = [11, 12, 13].map(|n| lab.netns(n).id()).into();
    let host = &mut lab.hosts[0];
    host.restart();
    let witness = Arc::new(Witness::default());
    host.kernel
        .look_ahead(ahead, Arc::clone(&witness) as Arc<dyn Along + Send>);
    let report = host
        .kernel
        .reconcile_with(&host.desired, Some(&*witness))
        .unwrap();
    assert!(report.ops_done > 0 && report.errors.is_empty());
    host.assert_unchanged();
    let seen = std::mem::take(&mut *witness.0.lock().unwrap());
    assert!(seen.iter().all(|(_, sockets)| *sockets == 1));
    assert_eq!(seen.len(), all.len(), "each once");
    assert_eq!(seen.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>(), all);
    // What was seen ahead is not believed a second time.
    take_address(lab.netns(13));
    lab.hosts[0].kernel.resync();
    lab.reconcile();
}

#[test]
fn a_forwarding_entry_that_leads_to_another_port_or_is_gone_comes_back() {
    let Some(mut lab) = Lab::new(1) else { return };
    for n in [11, 12, 13] {
        lab.attach(0, APP, n, n, false);
    }
    lab.reconcile();
    let host = &mut lab.hosts[0];
    let space = host.kernel.namespace(APP).unwrap().unwrap();
    let mut socket = RouteSocket::open(&space).unwrap();
    let port_of = |socket: &mut RouteSocket, n| {
        let found = socket.fdb_of_bridge(BRIDGE, &[mac(n)]).unwrap();
        found[&mac(n)].link
    };
    const BRIDGE: u32 = names::BRIDGE_INDEX;
    let [first, second] = [11, 12].map(|n| port_of(&mut socket, n));
    let entry = |port, n| BridgeFdb { port, mac: mac(n) };
    let mut batch = Batch::new();
    batch
        .add(entry(first, 11).delete())
        .add(entry(first, 12).replace());
    socket.execute(batch).unwrap();
    assert_eq!(port_of(&mut socket, 12), first);
    host.restart();
    assert!(host.kernel.reconcile(&host.desired).unwrap().ops_done > 0);
    host.assert_unchanged();
    assert_ne!(port_of(&mut socket, 11), port_of(&mut socket, 12));
    assert_ne!(second, first);
    assert!(lab.soon_reaches(11, 12, "10.9.0.12") && lab.soon_reaches(13, 11, "10.9.0.11"));
}
