//! How long the kernel takes to be told.

use std::{
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use weft_lb::{
    Backend, BackendState, ClientTable, Datapath, PortMap, Protocol, Scheduler, Service,
    kernel::{EbpfDatapath, NftDatapath},
};
use weft_netlink::{
    netns::Netns,
    nft::{
        Chain, Datum, Element, Expr, Kind, Load, Nft, NftError, Reg, Rule, Set, SetData, Table, Transaction,
    },
};
use weft_types::{EndpointId, NetworkId, ServiceId};

use crate::{
    Args,
    table::{Matrix, Unit},
};

/// Each has ten backends.
const SERVICES: [u16; 3] = [10, 1_000, 10_000];
/// So many of them are changed one after the other.
const CHANGES: u16 = 20;

pub fn measure(args: &Args, table: &mut Matrix) -> Result<()> {
    for services in SERVICES {
        let [mut ebpf, mut nft] = [Taken::default(), Taken::default()];
        let mut floor = Floor::default();
        for round in 0..args.rounds {
            eprintln!("programming {services}: round {} of {}", round + 1, args.rounds);
            let dir = tempfile::tempdir()?;
            let pins = dir.path().join("bpf");
            let done = program(&EbpfDatapath::open(&pins)?, services, &mut ebpf, |_| Ok(()));
            EbpfDatapath::clear(&pins)?;
            done?;
            let mut kernels: Option<Kernels> = None;
            program(&NftDatapath::new()?, services, &mut nft, |client| {
                let kernels = match &mut kernels {
                    Some(kernels) => kernels,
                    empty @ None => empty.insert(Kernels::new(client)?),
                };
                kernels.take(&mut floor)
            })?;
        }
        let all = format!("{services} services of 10 backends");
        compare(table, &all, [("eBPF", ebpf.all), ("nft", nft.all)]);
        let one = [
            ("a rule that looks up", floor.look),
            ("one that counts", floor.count),
            ("an element", floor.element),
            ("Weft, nft", nft.one),
            ("Weft, eBPF", ebpf.one),
        ];
        compare(table, &format!("one of {services} changed"), one);
    }
    Ok(())
}

fn compare<const N: usize>(table: &mut Matrix, what: &str, ways: [(&str, Samples); N]) {
    let names = ways.each_ref().map(|(name, _)| *name);
    let (times, processor): (Vec<_>, Vec<_>) = ways
        .into_iter()
        .map(|(_, samples)| (samples.time, samples.processor))
        .unzip();
    table.compare(what, Unit::Time, &names, &times);
    table.compare(&format!("{what}, processor time"), Unit::Time, &names, &processor);
}

/// What the kernel takes at least, for changes in the same table that lead nowhere.
#[derive(Default)]
struct Floor {
    /// Of an element of a set that no rule names.
    element: Samples,
    /// Of a rule in place of another, with nothing in it that the kernel would check beyond the rule.
    count: Samples,
    /// The same with a lookup, for which it checks all that a table's rules lead to.
    look: Samples,
}

/// A set and a chain that nothing leads to, beside those of the datapath.
struct Kernels {
    nft: Nft,
    table: Table,
    changes: u16,
}

impl Kernels {
    const NAME: &str = "floor";

    fn new(client: &Netns) -> Result<Self> {
        let nft = Nft::open_in(client)?;
        let table = nft.tables("weft-")?.pop().context("there is no table")?;
        let mut change = Transaction::new();
        change
            .add_chain(&table, Chain::regular(Self::NAME))
            .add_set(&table, Set::new(Self::NAME, [Kind::Port], SetData::None));
        nft.commit(&change)?;
        Ok(Self {
            nft,
            table,
            changes: 0,
        })
    }

    fn take(&mut self, floor: &mut Floor) -> Result<()> {
        self.changes += 1;
        let mut change = Transaction::new();
        let element = Element::key([Datum::Port(self.changes)]);
        change.add_elements(&self.table, Self::NAME, vec![element]);
        floor.element.take(|| self.nft.commit(&change))?;
        let count = Expr::Numgen {
            modulus: u32::from(self.changes) + 1,
            first: 0,
            to: Reg(0),
        };
        let rule = Rule::new().then(count);
        floor.count.take(|| self.replace(rule.clone()))?;
        let rule = rule.then(Expr::Load(Load::Dport, Reg(0))).then(Expr::Lookup {
            set: Self::NAME.into(),
            key: Reg(0),
            to: None,
            invert: false,
        });
        floor.look.take(|| self.replace(rule))
    }

    fn replace(&self, rule: Rule) -> Result<(), NftError> {
        let mut change = Transaction::new();
        change
            .flush_chain(&self.table, Self::NAME)
            .add_rule(&self.table, Self::NAME, rule);
        self.nft.commit(&change)
    }
}

/// What it took to install all services, and to change one.
#[derive(Default)]
struct Taken {
    all: Samples,
    one: Samples,
}

/// In seconds.
#[derive(Default)]
struct Samples {
    time: Vec<f64>,
    /// Of this thread, the kernel's work for it included: says something on a busy machine too.
    processor: Vec<f64>,
}

impl Samples {
    fn take<T, E>(&mut self, work: impl FnOnce() -> Result<T, E>) -> Result<T>
    where
        anyhow::Error: From<E>,
    {
        let (started, before) = (Instant::now(), processor_time()?);
        let done = work()?;
        self.time.push(started.elapsed().as_secs_f64());
        self.processor.push(processor_time()? - before);
        Ok(done)
    }
}

fn processor_time() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(time).as_secs_f64())
}

/// `beside` is called before each change.
fn program(
    datapath: &dyn Datapath,
    services: u16,
    taken: &mut Taken,
    mut beside: impl FnMut(&Netns) -> Result<()>,
) -> Result<()> {
    let client = Netns::create()?;
    let mut tables = tables(services);
    let written = taken.all.take(|| datapath.sync("client", &client, &tables))?;
    ensure!(written.changed == usize::from(services), "{written:?}");
    for service in (0..CHANGES).map(|n| n * (services / CHANGES).max(1) % services) {
        beside(&client)?;
        let mut services = tables[0].services.to_vec();
        let backends = &mut Arc::make_mut(&mut services[usize::from(service)]).backends;
        match backends.len() {
            10 => backends.truncate(9),
            _ => *backends = all_backends(),
        }
        tables[0].services = services.into();
        let written = taken.one.take(|| datapath.sync("client", &client, &tables))?;
        ensure!(written.changed == 1, "{written:?}");
    }
    datapath.remove("client", Some(&client))?;
    Ok(())
}

fn all_backends() -> Vec<Backend> {
    let backends = (0..10).map(|n| Backend {
        endpoint: EndpointId([n + 1; 16]),
        addrs: vec![IpAddr::from([10, 9, 0, 11 + n])],
        weight: NonZeroU16::MIN,
        state: BackendState::Active,
    });
    backends.collect()
}

/// Services of ten backends each.
fn tables(services: u16) -> Vec<ClientTable> {
    let backends = all_backends();
    let port = PortMap {
        port: nonzero(80),
        target: nonzero(8000),
        protocol: Protocol::Tcp,
        count: NonZeroU16::MIN,
    };
    let service = |n: u16| {
        let [high, low] = n.to_be_bytes();
        let mut id = [0; 16];
        id[..2].copy_from_slice(&[high, low]);
        Service {
            id: ServiceId(id),
            vips: vec![IpAddr::from([10, 10, high, low])],
            ports: vec![port.clone()],
            scheduler: Scheduler::RoundRobin,
            idle_timeout: None,
            is_watched: false,
            backends: backends.clone(),
        }
    };
    vec![ClientTable::new(NetworkId([1; 16]), (0..services).map(service))]
}

fn nonzero(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN)
}
