//! How long the kernel takes to be told.

use std::{fs, net::IpAddr, num::NonZeroU16, sync::Arc, time::Instant};

use anyhow::{Result, ensure};
use weft_lb::{
    Backend, BackendState, ClientTable, Datapath, PortMap, Protocol, Scheduler, Service,
    kernel::{EbpfDatapath, NftDatapath},
};
use weft_netlink::netns::Netns;
use weft_types::{EndpointId, NetworkId, ServiceId};

use crate::{
    Args,
    table::{Matrix, Unit},
};

const SERVICES: u16 = 10_000;
/// So many of them are changed one after the other.
const CHANGES: usize = 20;

pub fn measure(args: &Args, table: &mut Matrix) -> Result<()> {
    let [mut ebpf, mut nft] = [Taken::default(), Taken::default()];
    for round in 0..args.rounds {
        eprintln!("programming: round {} of {}", round + 1, args.rounds);
        let dir = tempfile::tempdir()?;
        let pins = dir.path().join("bpf");
        let done = program(&EbpfDatapath::open(&pins)?, &mut ebpf);
        EbpfDatapath::clear(&pins)?;
        done?;
        program(&NftDatapath::new()?, &mut nft)?;
    }
    let ways = ["eBPF", "nft"];
    let rows = [
        ("10,000 services of 10 backends", ebpf.all, nft.all),
        ("one of them changed", ebpf.one, nft.one),
    ];
    for (what, ebpf, nft) in rows {
        table.compare(what, Unit::Time, &ways, &[ebpf.time, nft.time]);
        let what = format!("{what}, processor time");
        table.compare(&what, Unit::Time, &ways, &[ebpf.processor, nft.processor]);
    }
    Ok(())
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
    let line = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = line.split(' ').next().unwrap_or_default().parse::<f64>()?;
    Ok(nanoseconds / 1e9)
}

fn program(datapath: &dyn Datapath, taken: &mut Taken) -> Result<()> {
    let client = Netns::create()?;
    let mut tables = tables();
    let written = taken.all.take(|| datapath.sync("client", &client, &tables))?;
    ensure!(written.changed == usize::from(SERVICES), "{written:?}");
    for service in (0..CHANGES).map(|n| 500 * n) {
        let mut services = tables[0].services.to_vec();
        Arc::make_mut(&mut services[service]).backends.truncate(9);
        tables[0].services = services.into();
        let written = taken.one.take(|| datapath.sync("client", &client, &tables))?;
        ensure!(written.changed == 1, "{written:?}");
    }
    datapath.remove("client", Some(&client))?;
    Ok(())
}

/// 10,000 services of ten backends each.
fn tables() -> Vec<ClientTable> {
    let backends = (0..10).map(|n| Backend {
        endpoint: EndpointId([n + 1; 16]),
        addrs: vec![IpAddr::from([10, 9, 0, 11 + n])],
        weight: NonZeroU16::MIN,
        state: BackendState::Active,
    });
    let backends: Vec<Backend> = backends.collect();
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
            backends: backends.clone(),
        }
    };
    vec![ClientTable::new(NetworkId([1; 16]), (0..SERVICES).map(service))]
}

fn nonzero(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN)
}
