use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::Query,
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{HINFO, PTR, SOA, SRV},
    },
};
use ipnet::IpNet;
use rand::{Rng, seq::SliceRandom};
use weft_types::NetworkId;

use crate::{
    reverse::{Reverse, zone_labels},
    zone::{Addresses, Found, Located, NetworkZone, Zone},
};

/// For how long an answer or a refusal may be kept: addresses come and go, so hardly at all.
pub const TTL_SECS: u32 = 1;

/// At most this many addresses are given for the name of a service or an endpoint. Whoever wants to
/// connect needs one or two; shuffling makes all of them turn up.
pub const MAX_RECORDS: usize = 64;

/// At most this many addresses are given for `tasks.SERVICE`, where all are wanted. This many fit into
/// a message over TCP in both families.
pub const MAX_TASKS: usize = 2_000;

/// An SRV record has an owner that is compressed, a fixed part, and a name.
const SRV_WITHOUT_NAME: usize = 18;
/// Room in a message over TCP, which is about a thousand targets.
const MAX_SRV_BYTES: usize = 60_000;

/// Who asks; by default somebody who is on no network, and is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    networks: Vec<NetworkId>,
    is_host: bool,
}

impl Asker {
    /// An endpoint on these networks, the one it asks through first. Names are looked for in this order.
    pub fn on(networks: Vec<NetworkId>) -> Self {
        Self {
            networks,
            is_host: false,
        }
    }

    /// A program of the host, which is shown these networks. It has resolvers of its own for all other names, so it
    /// is answered for names under the domain and of addresses in subnets, and is refused anything else.
    pub fn host(networks: Vec<NetworkId>) -> Self {
        Self {
            networks,
            is_host: true,
        }
    }
}

/// What to reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// NOERROR with these records, at least one.
    Records(Vec<Record>),
    /// NOERROR with SRV records, at least one, and the addresses of their targets.
    Located {
        /// The SRV records.
        records: Vec<Record>,
        /// What the asker would ask next; left out as far as it does not fit.
        addresses: Vec<Record>,
    },
    /// NOERROR without records: the name exists, but has nothing of the type asked for (RFC 2308).
    NoData {
        /// Says for how long this may be remembered.
        soa: Box<Record>,
    },
    /// The name does not exist, as far as the asker may know.
    NxDomain {
        /// Says for how long this may be remembered.
        soa: Box<Record>,
    },
    /// The name is not ours: ask the host's resolvers.
    Forward,
    /// The asker is on none of our networks, or asks for what is never answered.
    Refused,
}

/// Answers a question from a snapshot.
///
/// `rng` shuffles addresses, so that clients which take the first one spread over all of them.
pub fn answer(query: &Query, asker: &Asker, zone: &Zone, rng: &mut impl Rng) -> Answer {
    if query.query_class() != DNSClass::IN || is_meta(query.query_type()) {
        return Answer::Refused;
    }
    let question = Question { query, asker, zone };
    if question.networks().next().is_none() && !asker.is_host {
        return Answer::Refused;
    }
    let mut text = [0; Name::MAX_LENGTH];
    match lower_case(query.name(), &mut text) {
        Some("") => question.outside(),
        Some(name) => question.answer(name, rng),
        None => question.unspeakable(),
    }
}

struct Question<'a> {
    query: &'a Query,
    asker: &'a Asker,
    zone: &'a Zone,
}

impl<'a> Question<'a> {
    fn networks(&self) -> impl Iterator<Item = &'a NetworkZone> {
        self.asker.networks.iter().filter_map(|id| self.zone.network(id))
    }

    fn answer(&self, name: &str, rng: &mut impl Rng) -> Answer {
        if let Some(rest) = strip(name, self.zone.domain()) {
            return self.under_domain(rest, rng);
        }
        if let Some(answer) = Reverse::parse(name).and_then(|reverse| self.reverse(&reverse)) {
            return answer;
        }
        self.short(name, rng)
    }

    /// `NAME.NETWORK` before the domain.
    fn under_domain(&self, name: &str, rng: &mut impl Rng) -> Answer {
        let domain = usize::from(self.zone.domain_name().num_labels());
        if name.is_empty() {
            return self.start(domain);
        }
        for network in self.networks() {
            match strip(name, network.name()) {
                Some("") => return self.no_data(domain),
                Some(name) => {
                    if let Some(found) = network.find(name) {
                        return self.found(found, network, domain, rng);
                    }
                }
                // Something is below `b` when a network is called `a.b` (RFC 8020).
                None if strip(network.name(), name).is_some() => return self.no_data(domain),
                None => {}
            }
        }
        self.nx_domain(domain)
    }

    /// Where a zone of ours starts.
    fn start(&self, zone_labels: usize) -> Answer {
        match self.query.query_type() {
            RecordType::SOA => Answer::Records(vec![self.soa(zone_labels)]),
            RecordType::ANY => Answer::Records(vec![self.minimal_any()]),
            _ => self.no_data(zone_labels),
        }
    }

    /// `NAME` or `NAME.NETWORK`, or a name that has nothing to do with us.
    fn short(&self, name: &str, rng: &mut impl Rng) -> Answer {
        if self.asker.is_host {
            return Answer::Refused;
        }
        // RFC 6761, section 6.3: always the loopback addresses, whatever others call themselves.
        if strip(name, "localhost").is_some() {
            return match self.query.query_type() {
                RecordType::A => Answer::Records(vec![self.record(RData::A(Ipv4Addr::LOCALHOST.into()))]),
                RecordType::AAAA => {
                    Answer::Records(vec![self.record(RData::AAAA(Ipv6Addr::LOCALHOST.into()))])
                }
                _ => self.no_data(0),
            };
        }
        for network in self.networks() {
            if let Some(found) = network.find(name) {
                return self.found(found, network, 0, rng);
            }
        }
        for network in self.networks() {
            if let Some(found) = strip(name, network.name()).and_then(|name| network.find(name)) {
                return self.found(found, network, network.name().split('.').count(), rng);
            }
        }
        // A validating resolver walks down from the root and asks for the keys of top-level domains.
        let is_about_a_zone = matches!(
            self.query.query_type(),
            RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY
        );
        // Networks may be called like top-level domains (`app`, `dev`), so what is not found in one is
        // not ours. A single label, though, is a name on our networks or a mistake, and never leaves
        // the host.
        if name.contains('.') || is_about_a_zone {
            return self.outside();
        }
        let has_names_below = self
            .networks()
            .any(|network| strip(network.name(), name).is_some());
        if has_names_below || strip(self.zone.domain(), name).is_some() {
            return self.no_data(0);
        }
        self.nx_domain(0)
    }

    /// `None` when the reverse name is not ours.
    fn reverse(&self, reverse: &Reverse) -> Option<Answer> {
        let net = reverse.net();
        let covers = |subnet: &&IpNet| subnet.contains(&net);
        // Subnets of networks the asker is not on are ours too: asking others about them would be wrong,
        // and saying that nothing is there tells nothing.
        let subnet = self
            .zone
            .networks()
            .find_map(|network| network.subnets().iter().find(covers))?;
        let labels = zone_labels(subnet).min(usize::from(self.query.name().num_labels()));
        match reverse {
            Reverse::Below(_) => Some(self.nx_domain(labels)),
            // Only the start of the subnet's own zone has as few labels as it.
            Reverse::Prefix(_) if zone_labels(subnet) == usize::from(self.query.name().num_labels()) => {
                Some(self.start(labels))
            }
            Reverse::Prefix(_) => Some(self.no_data(labels)),
            Reverse::Address(address) => Some(
                self.networks()
                    .find_map(|network| self.pointers(network, address, labels))
                    .unwrap_or_else(|| self.nx_domain(labels)),
            ),
        }
    }

    fn pointers(&self, network: &NetworkZone, address: &IpAddr, labels: usize) -> Option<Answer> {
        let mut pointers = network.pointers(address).peekable();
        pointers.peek()?;
        let records: Vec<Record> = match self.query.query_type() {
            RecordType::PTR => pointers
                .filter_map(|name| self.full_name(name, network))
                .map(|name| self.record(RData::PTR(PTR(name))))
                .collect(),
            RecordType::ANY => vec![self.minimal_any()],
            _ => Vec::new(),
        };
        Some(if records.is_empty() {
            self.no_data(labels)
        } else {
            Answer::Records(records)
        })
    }

    /// Everything that is not ours. What an asker on internal networks asks never leaves the host.
    fn outside(&self) -> Answer {
        if self.networks().any(|network| !network.is_internal()) && !self.asker.is_host {
            Answer::Forward
        } else if self.query.name().is_root() || self.asker.is_host {
            Answer::Refused
        } else {
            self.nx_domain(0)
        }
    }

    /// A name that is not text: nothing of ours is called so.
    fn unspeakable(&self) -> Answer {
        if self.zone.domain_name().zone_of(self.query.name()) {
            self.nx_domain(usize::from(self.zone.domain_name().num_labels()))
        } else if self.query.name().num_labels() == 1 && !self.asker.is_host {
            self.nx_domain(0)
        } else {
            self.outside()
        }
    }

    fn found(
        &self,
        found: Found<'_>,
        network: &NetworkZone,
        zone_labels: usize,
        rng: &mut impl Rng,
    ) -> Answer {
        let (addresses, limit) = match found {
            Found::Name(addresses) => (addresses, MAX_RECORDS),
            Found::Tasks(addresses) => (addresses, MAX_TASKS),
            Found::Port(located) => return self.located(&located, network, zone_labels, rng),
        };
        let Addresses { v4, v6 } = addresses;
        match self.query.query_type() {
            RecordType::A if !v4.is_empty() => {
                self.shuffled(v4, limit, rng, |address| RData::A(address.into()))
            }
            RecordType::AAAA if !v6.is_empty() => {
                self.shuffled(v6, limit, rng, |address| RData::AAAA(address.into()))
            }
            RecordType::ANY if !addresses.is_empty() => Answer::Records(vec![self.minimal_any()]),
            _ => self.no_data(zone_labels),
        }
    }

    /// Where a service is, and on which port. Each target is a name under our domain that has exactly
    /// the addresses meant, whatever else its endpoint is called.
    fn located(
        &self,
        located: &Located<'_>,
        network: &NetworkZone,
        zone_labels: usize,
        rng: &mut impl Rng,
    ) -> Answer {
        let is_any = self.query.query_type() == RecordType::ANY;
        if self.query.query_type() != RecordType::SRV && !is_any {
            return self.no_data(zone_labels);
        }
        let mut targets: Vec<(String, Vec<IpAddr>)> = match located.virtual_name {
            Some((name, vips)) => vec![(name.to_owned(), vips.to_vec())],
            None => network.backends(located).into_iter().collect(),
        };
        targets.shuffle(rng);
        let port = match located.virtual_name {
            Some(_) => located.port.port,
            None => located.port.target,
        };
        let (mut records, mut addresses, mut length) = (Vec::new(), Vec::new(), 0);
        for (name, of) in targets {
            let Some(target) = self.full_name(&name, network) else {
                continue;
            };
            // A name in a target is never compressed (RFC 2782), and all of them have to fit.
            length += target.len() + SRV_WITHOUT_NAME;
            if length > MAX_SRV_BYTES {
                break;
            }
            addresses.extend(of.into_iter().map(|address| {
                let data = match address {
                    IpAddr::V4(address) => RData::A(address.into()),
                    IpAddr::V6(address) => RData::AAAA(address.into()),
                };
                Record::from_rdata(target.clone(), TTL_SECS, data)
            }));
            records.push(self.record(RData::SRV(SRV::new(0, 0, port, target))));
        }
        if records.is_empty() {
            self.no_data(zone_labels)
        } else if is_any {
            Answer::Records(vec![self.minimal_any()])
        } else {
            Answer::Located { records, addresses }
        }
    }

    fn shuffled<A: Copy>(
        &self,
        addresses: &[A],
        limit: usize,
        rng: &mut impl Rng,
        data: impl Fn(A) -> RData,
    ) -> Answer {
        if let [address] = addresses {
            return Answer::Records(vec![self.record(data(*address))]);
        }
        let mut addresses = addresses.to_vec();
        let (chosen, _) = addresses.partial_shuffle(rng, limit);
        Answer::Records(chosen.iter().map(|address| self.record(data(*address))).collect())
    }

    /// RFC 8482, section 4.2: one record that says that this question is not answered.
    fn minimal_any(&self) -> Record {
        self.record(RData::HINFO(HINFO::new("RFC8482".into(), String::new())))
    }

    /// A record of the name asked for, spelt as it was asked: resolvers that mix upper and lower case
    /// to tell real replies from forged ones compare the spelling.
    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.query.name().clone(), TTL_SECS, data)
    }

    fn no_data(&self, zone_labels: usize) -> Answer {
        Answer::NoData {
            soa: Box::new(self.soa(zone_labels)),
        }
    }

    fn nx_domain(&self, zone_labels: usize) -> Answer {
        Answer::NxDomain {
            soa: Box::new(self.soa(zone_labels)),
        }
    }

    /// The start of the zone that the last `zone_labels` labels of the name make. A cache believes a
    /// negative answer only if its SOA is at or above the name.
    fn soa(&self, zone_labels: usize) -> Record {
        let zone = match zone_labels {
            0 => Name::root(),
            labels => self.query.name().trim_to(labels),
        };
        let domain = self.zone.domain_name();
        let below = |label: &str| domain.prepend_label(label).unwrap_or_else(|_| domain.clone());
        let ttl = TTL_SECS as i32;
        let soa = SOA::new(below("ns"), below("hostmaster"), 1, ttl, ttl, ttl, TTL_SECS);
        Record::from_rdata(zone, TTL_SECS, RData::SOA(soa))
    }

    fn full_name(&self, name: &str, network: &NetworkZone) -> Option<Name> {
        let labels = [name, network.name(), self.zone.domain()]
            .into_iter()
            .flat_map(|part| part.split('.'));
        Name::from_labels(labels.map(str::as_bytes)).ok()
    }
}

/// What comes before `suffix` in `name`, both in lower case: nothing if they are equal.
fn strip<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let rest = name.strip_suffix(suffix)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_suffix('.')
    }
}

/// Writes a name as lower-case text without the dot at its end; `None` when a label has a byte in it
/// that no name of ours has, above all a dot.
fn lower_case<'t>(name: &Name, text: &'t mut [u8; Name::MAX_LENGTH]) -> Option<&'t str> {
    let mut length = 0;
    for label in name.iter() {
        if length > 0 {
            *text.get_mut(length)? = b'.';
            length += 1;
        }
        if label.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'.') {
            return None;
        }
        let place = text.get_mut(length..length + label.len())?;
        place.copy_from_slice(label);
        place.make_ascii_lowercase();
        length += label.len();
    }
    std::str::from_utf8(&text[..length]).ok()
}

/// Types that are about the connection or the server rather than a name.
fn is_meta(qtype: RecordType) -> bool {
    match u16::from(qtype) {
        // ANY is handled with the name.
        255 => false,
        // OPT and RFC 6895, section 3.1: TKEY, TSIG, IXFR, AXFR, MAILB, MAILA and their neighbours.
        41 | 128..=254 => true,
        _ => false,
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
