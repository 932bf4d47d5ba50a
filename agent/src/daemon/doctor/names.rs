//! What names resolve to, as an endpoint of this host is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, UdpSocket},
    time::Instant,
};

use hickory_proto::{
    op::{Message, Query},
    rr::RecordType,
};
use weft_dns::MAX_RECORDS;
use weft_netlink::{broker::SocketKind, netns::Netns};

use super::PATIENCE;
use crate::{
    api::types::{DoctorCheck, DoctorTopic},
    control::doctor::NetworkView,
    daemon::host::sentence,
};

/// How many wrong answers are named.
const MAX_NAMED: usize = 16;

/// What each server said a name has, `None` where it said nothing.
pub(super) type Found = BTreeMap<IpAddr, BTreeMap<String, Option<BTreeSet<IpAddr>>>>;

/// Asks every server for every name.
pub(super) fn probe(network: &NetworkView, netns: &Netns) -> Result<Found, String> {
    let mut found = Found::new();
    for server in &network.dns {
        let answers = ask(netns, *server, network.names.keys());
        found.insert(*server, answers.map_err(|error| sentence(&error))?);
    }
    Ok(found)
}

pub(in crate::daemon) fn ask<'a>(
    netns: &Netns,
    server: IpAddr,
    names: impl Iterator<Item = &'a String>,
) -> io::Result<BTreeMap<String, Option<BTreeSet<IpAddr>>>> {
    let ipv4 = server.is_ipv4();
    let socket = UdpSocket::from(netns.socket(SocketKind::Udp { ipv4 })?);
    socket.connect((server, 53))?;
    let kinds = [RecordType::A, RecordType::AAAA];
    let names: Vec<&String> = names.collect();
    let questions = names.iter().flat_map(|name| kinds.map(|kind| (*name, kind)));
    let mut open: BTreeMap<u16, (&String, Vec<u8>)> = BTreeMap::new();
    for (name, kind) in questions {
        let Ok(owner) = format!("{name}.").parse() else {
            continue;
        };
        let mut message = Message::query();
        message.metadata.id = open.len() as u16;
        message.add_query(Query::query(owner, kind));
        let bytes = message.to_vec().map_err(io::Error::other)?;
        open.insert(open.len() as u16, (name, bytes));
    }
    let mut answers: BTreeMap<String, Option<BTreeSet<IpAddr>>> =
        names.into_iter().map(|name| (name.clone(), None)).collect();
    let begun = Instant::now();
    for until in [begun + PATIENCE / 2, begun + PATIENCE] {
        for (_, question) in open.values() {
            // A full buffer or a refusal of an earlier one: the second time comes, and silence tells.
            let _ = socket.send(question);
        }
        while !open.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            let Ok(length) = socket.recv(&mut buffer) else {
                continue;
            };
            let Ok(message) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            if let Some((name, _)) = open.remove(&message.metadata.id) {
                let addresses = message.answers.iter().filter_map(|record| record.data.ip_addr());
                let known = answers.entry(name.clone()).or_default();
                known.get_or_insert_default().extend(addresses);
            }
        }
    }
    Ok(answers)
}

pub(super) fn judge(network: &NetworkView, found: &Found) -> Vec<DoctorCheck> {
    let mut checks = Vec::new();
    for (server, answers) in found {
        let wrong = |sentence: String| DoctorCheck::wrong(DoctorTopic::Names, &network.name, sentence);
        if !answers.is_empty() && answers.values().all(Option::is_none) {
            let check = wrong(format!("{server} answers no question"));
            checks.push(
                check
                    .because("a firewall within the endpoint drops UDP port 53, or the agent is overloaded")
                    .with_help("see the agent's log, and the rules within the endpoint"),
            );
            continue;
        }
        let differs = answers
            .iter()
            .filter(|(name, told)| !is_right(network.names.get(*name), told.as_ref()));
        let differs: Vec<_> = differs.collect();
        let right = answers.len() - differs.len();
        if right > 0 || differs.is_empty() {
            let sentence = format!("{server} answers {right} name(s) as the records say");
            checks.push(DoctorCheck::ok(DoctorTopic::Names, &network.name, sentence));
        }
        for (name, told) in differs.into_iter().take(MAX_NAMED) {
            let list = |addresses: Option<&BTreeSet<IpAddr>>| match addresses {
                None => "no answer".to_owned(),
                Some(addresses) if addresses.is_empty() => "no address".to_owned(),
                Some(addresses) => addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            };
            let should = network.names.get(name);
            let sentence = format!(
                "{server} gives {} for {name}, and the records {}",
                list(told.as_ref()),
                list(should)
            );
            checks.push(
                wrong(sentence)
                    .because("something changed in between, or something else answers at that address")
                    .with_help("run it again; if it stays so, see the agent's log"),
            );
        }
    }
    checks
}

/// Of very many addresses only some are told.
fn is_right(should: Option<&BTreeSet<IpAddr>>, told: Option<&BTreeSet<IpAddr>>) -> bool {
    match (should, told) {
        (Some(should), Some(told)) if should.len() >= MAX_RECORDS => !told.is_empty(),
        (should, told) => should == told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::types::DoctorVerdict, daemon::doctor::fixtures};

    #[test]
    fn answers_are_held_to_the_records() {
        let addresses = |last: &[u8]| -> BTreeSet<IpAddr> {
            last.iter().map(|last| IpAddr::from([10, 9, 0, *last])).collect()
        };
        let names = [("a", addresses(&[1])), ("b", addresses(&[2]))];
        let names = names.map(|(name, addresses)| (name.to_owned(), addresses));
        let network = NetworkView {
            names: names.into(),
            ..fixtures::network()
        };
        let server = IpAddr::from([169, 254, 53, 53]);
        let judged = |a: Option<&[u8]>, b: Option<&[u8]>| -> Vec<(DoctorVerdict, String)> {
            let told = [("a", a), ("b", b)].map(|(name, told)| (name.to_owned(), told.map(addresses)));
            let checks = judge(&network, &[(server, told.into())].into());
            checks
                .into_iter()
                .map(|check| (check.verdict, check.sentence))
                .collect()
        };
        let ok = |n| {
            (
                DoctorVerdict::Ok,
                format!("169.254.53.53 answers {n} name(s) as the records say"),
            )
        };
        let wrong = |text: &str| (DoctorVerdict::Wrong, text.to_owned());
        assert_eq!(judged(Some(&[1]), Some(&[2])), [ok(2)]);
        assert_eq!(
            judged(Some(&[1]), Some(&[2, 3])),
            [
                ok(1),
                wrong("169.254.53.53 gives 10.9.0.2, 10.9.0.3 for b, and the records 10.9.0.2")
            ]
        );
        assert_eq!(
            judged(Some(&[1]), None)[1],
            wrong("169.254.53.53 gives no answer for b, and the records 10.9.0.2")
        );
        assert_eq!(judged(None, None), [wrong("169.254.53.53 answers no question")]);
    }
}
