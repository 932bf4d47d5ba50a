//! Who answers for the addresses of a network: somebody may have taken one by hand, which no record tells of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use weft_netlink::{
    arp::{Holders, who_has},
    netns::Netns,
    route::RouteSocket,
};
use weft_types::Mac;

use crate::{
    api::types::{DoctorCheck, DoctorTopic},
    control::doctor::{Local, NetworkView},
    daemon::{host::sentence, target},
};

/// Addresses of endpoints that are asked for at most, of those on other hosts and of those here.
const MAX_ASKED: usize = 256;
/// Nobody is farther away than the bridge of this host.
const PATIENCE: Duration = Duration::from_millis(400);

/// Nobody hears itself, so that more than one has to ask.
const ASKERS: usize = 2;

/// Asks on the links of endpoints of this host. Other hosts are not asked: tunnels carry no broadcast.
pub(super) fn probe(network: &NetworkView) -> Result<Holders, String> {
    let askers = network
        .locals
        .iter()
        .filter(|local| target::still_there(&local.sandbox));
    let mut all = Holders::new();
    for asker in askers.take(ASKERS) {
        for (address, holders) in ask(network, asker)? {
            all.entry(address).or_default().extend(holders);
        }
    }
    Ok(all)
}

fn ask(network: &NetworkView, here: &Local) -> Result<Holders, String> {
    let netns = Netns::open(&here.sandbox.path).map_err(|error| sentence(&error))?;
    let links = RouteSocket::open(&netns)
        .map_err(|error| sentence(&error))?
        .links()
        .map_err(|error| sentence(&error))?;
    let link = links.iter().find(|link| link.mac == Some(here.mac));
    let link = link.ok_or_else(|| format!("`{}` has no link with the address {}", here.name, here.mac))?;
    let asked: Vec<IpAddr> = owners(network).into_keys().collect();
    let (mac, own) = (here.mac, &here.addresses);
    who_has(&netns, link.index, mac, own, &asked, PATIENCE).map_err(|error| sentence(&error))
}

/// What is said to have an address, and by which Ethernet address, if that is an endpoint's.
type Owner<'a> = (String, Option<Mac>);

fn owners(network: &NetworkView) -> BTreeMap<IpAddr, Owner<'_>> {
    let gateways = network.gateways.iter();
    let gateways = gateways.map(|gateway| (*gateway, ("the gateway".to_owned(), None)));
    let locals = network.locals.iter().take(MAX_ASKED);
    let locals = locals.flat_map(|local| {
        let owner = (format!("`{}`", local.name), Some(local.mac));
        local
            .addresses
            .iter()
            .map(move |address| (*address, owner.clone()))
    });
    let remotes = network.remotes.iter().take(MAX_ASKED);
    let remotes = remotes.flat_map(|remote| {
        let owner = (format!("`{}` on {}", remote.name, remote.node), Some(remote.mac));
        remote
            .addresses
            .iter()
            .map(move |address| (*address, owner.clone()))
    });
    remotes.chain(locals).chain(gateways).collect()
}

pub(super) fn judge(network: &NetworkView, found: &Holders) -> Vec<DoctorCheck> {
    let owners = owners(network);
    let locals = network.locals.iter().map(|local| (local.mac, &local.name));
    let remotes = network.remotes.iter().map(|remote| (remote.mac, &remote.name));
    let names: BTreeMap<Mac, &String> = remotes.chain(locals).collect();
    let mut checks = Vec::new();
    for (address, holders) in found {
        let Some((owner, mac)) = owners.get(address) else {
            continue;
        };
        for stranger in strangers(holders, *mac, &names) {
            let who = match names.get(&stranger) {
                Some(name) => format!("`{name}`"),
                None => format!("somebody with the Ethernet address {stranger}"),
            };
            let subject = format!("{}: {address}", network.name);
            let sentence = format!("{who} answers for {address} too, which is the address of {owner}");
            let check = DoctorCheck::wrong(DoctorTopic::Addresses, subject, sentence)
                .because(format!("the address was given to an interface by hand, or by a program in the namespace of {who}"))
                .with_help(format!("take it away there: `ip address del {address} dev …`; whoever has asked goes on sending there for up to a minute"));
            checks.push(check);
        }
    }
    if checks.is_empty() {
        let sentence = format!(
            "{} address(es) have one owner each, as far as this host hears",
            owners.len()
        );
        checks.push(DoctorCheck::ok(DoctorTopic::Addresses, &network.name, sentence));
    }
    checks
}

/// Those of the holders that should not answer.
fn strangers(holders: &BTreeSet<Mac>, owner: Option<Mac>, names: &BTreeMap<Mac, &String>) -> Vec<Mac> {
    let is_stranger = |holder: &&Mac| match owner {
        Some(owner) => **holder != owner,
        // A gateway is in the network's namespace, whose links all answer for it; which they are no record tells.
        None => names.contains_key(holder),
    };
    holders.iter().filter(is_stranger).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::doctor::Remote, daemon::doctor::fixtures};

    #[test]
    fn whoever_answers_for_anothers_address_is_named() {
        let [gateway, a, b] = [1, 2, 3].map(|n| IpAddr::from([10, 9, 0, n]));
        let [bridge, of_b, stranger] = [7, 8, 9].map(|n| Mac([2, 0, 0, 0, 0, n]));
        let mut network = fixtures::network();
        let here = Local {
            addresses: vec![a],
            ..fixtures::local()
        };
        network.gateways = vec![gateway];
        network.locals = vec![here.clone()];
        network.remotes = vec![Remote {
            name: "b".to_owned(),
            mac: of_b,
            node: "h2".to_owned(),
            addresses: vec![b],
            vtep: [10, 0, 0, 2].into(),
        }];
        let said = |found: &[(IpAddr, &[Mac])]| -> Vec<String> {
            let found = found
                .iter()
                .map(|(address, macs)| (*address, macs.iter().copied().collect()));
            let checks = judge(&network, &found.collect());
            checks.into_iter().map(|check| check.sentence).collect()
        };
        let fine = ["3 address(es) have one owner each, as far as this host hears"];
        assert_eq!(said(&[(gateway, &[bridge]), (b, &[of_b])]), fine);
        assert_eq!(said(&[]), fine);
        assert_eq!(
            said(&[
                (gateway, &[bridge, here.mac]),
                (a, &[stranger]),
                (b, &[of_b, here.mac])
            ]),
            [
                "`a` answers for 10.9.0.1 too, which is the address of the gateway",
                "somebody with the Ethernet address 02:00:00:00:00:09 answers for 10.9.0.2 too, which is the address of `a`",
                "`a` answers for 10.9.0.3 too, which is the address of `b` on h2",
            ]
        );
        assert_eq!(said(&[(gateway, &[bridge, stranger])]), fine);
        assert_eq!(
            said(&[(gateway, &[of_b])]),
            ["`b` answers for 10.9.0.1 too, which is the address of the gateway"]
        );
    }
}
