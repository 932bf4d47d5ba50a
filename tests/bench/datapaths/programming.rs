//! How long the kernel takes to be told.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc, time::Instant};

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
    let [mut ebpf, mut nft] = [const { (Vec::new(), Vec::new()) }; 2];
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
    table.compare(
        "10,000 services of 10 backends",
        Unit::Time,
        &ways,
        &[ebpf.0, nft.0],
    );
    table.compare("one of them changed", Unit::Time, &ways, &[ebpf.1, nft.1]);
    Ok(())
}

fn program(datapath: &dyn Datapath, (all, one): &mut (Vec<f64>, Vec<f64>)) -> Result<()> {
    let client = Netns::create()?;
    let mut tables = tables();
    let started = Instant::now();
    let written = datapath.sync("client", &client, &tables)?;
    all.push(started.elapsed().as_secs_f64());
    ensure!(written.changed == usize::from(SERVICES), "{written:?}");
    for service in (0..CHANGES).map(|n| 500 * n) {
        let mut services = tables[0].services.to_vec();
        Arc::make_mut(&mut services[service]).backends.truncate(9);
        tables[0].services = services.into();
        let started = Instant::now();
        let written = datapath.sync("client", &client, &tables)?;
        one.push(started.elapsed().as_secs_f64());
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
