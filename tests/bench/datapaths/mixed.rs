//! Short requests among long ones: what a scheduler is for.
//!
//! Four backends that each work on four requests at a time, first come, first served. They sleep instead of working, so
//! that what is measured is waiting and not the machine. Requests come at random (Poisson), each on a connection of its
//! own; one in twenty takes 200 ms, the others 5 ms. Measured is how long the short ones take.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use weft_lb::Scheduler;
use weft_netlink::netns::Netns;

use crate::{
    Args,
    bed::{BACKENDS, Bed, PORT, Way, backend},
    table::{Matrix, Unit},
};

const WORKERS: usize = 4;
const SHORT: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_millis(200);
const LONG_SHARE: f64 = 0.05;
/// Of what all backends together can do.
const LOAD: f64 = 0.8;
/// How much slower the slow one is.
const SLOWNESS: u32 = 4;

pub fn measure(args: &Args, table: &mut Matrix) -> Result<()> {
    for slow in [false, true] {
        let mut bed = Bed::new(&[Way::Haproxy, Way::Ebpf, Way::Nft])?;
        let _backends = Backends::start(&bed.server, slow)?;
        let (rr, lc) = (Scheduler::RoundRobin, Scheduler::LeastConnections);
        let runs = [
            ("haproxy leastconn", Way::Haproxy, lc),
            ("eBPF, lc", Way::Ebpf, lc),
            ("nft, lc", Way::Nft, lc),
            ("eBPF, rr", Way::Ebpf, rr),
            ("nft, rr", Way::Nft, rr),
        ];
        let what = if slow {
            "one backend 4 times slower"
        } else {
            "equal backends"
        };
        let mut series: Vec<Vec<f64>> = runs.iter().map(|_| Vec::new()).collect();
        for round in 0..args.rounds {
            eprintln!("{what}: round {} of {}", round + 1, args.rounds);
            for ((_, way, scheduler), series) in runs.iter().zip(&mut series) {
                bed.balance(*scheduler)?;
                // The same arrivals for all ways.
                let arrivals = Arrivals {
                    seed: round as u64,
                    slow,
                    seconds: 5 * args.seconds,
                };
                series.push(p99(bed.client(*way)?, Bed::target(*way), arrivals)?);
            }
        }
        table.compare(
            &format!("short requests, {what}, p99"),
            Unit::Time,
            &runs.map(|(name, ..)| name),
            &series,
        );
    }
    Ok(())
}

/// Servers that end with the value.
struct Backends(Option<oneshot::Sender<()>>, Option<std::thread::JoinHandle<()>>);

impl Backends {
    fn start(server: &Netns, slow: bool) -> Result<Self> {
        let server = server.try_clone()?;
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let served = server.run(|| runtime()?.block_on(serve(slow, &ready, stopped)));
            if let Err(error) = served.map_err(anyhow::Error::from).and_then(|served| served) {
                eprintln!("the backends ended: {error:#}");
            }
        });
        let backends = Self(Some(stop), Some(thread));
        is_ready.recv().context("the backends do not listen")?;
        Ok(backends)
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        drop(self.0.take());
        let _ = self.1.take().map(std::thread::JoinHandle::join);
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

async fn serve(slow: bool, ready: &mpsc::Sender<()>, stopped: oneshot::Receiver<()>) -> Result<()> {
    let mut accepting = JoinSet::new();
    for n in 0..BACKENDS {
        let listener = TcpListener::bind(SocketAddr::from((backend(n), PORT))).await?;
        let slowness = if slow && n == 0 { SLOWNESS } else { 1 };
        accepting.spawn(async move {
            let workers = Arc::new(Semaphore::new(WORKERS));
            while let Ok((mut stream, _)) = listener.accept().await {
                let workers = Arc::clone(&workers);
                tokio::spawn(async move {
                    // A byte says how many milliseconds the request takes: the backend is made of that time, nothing is waited for.
                    let work = stream.read_u8().await?;
                    let _worker = workers.acquire().await;
                    tokio::time::sleep(slowness * Duration::from_millis(work.into())).await;
                    stream.write_u8(work).await
                });
            }
        });
    }
    ready.send(())?;
    // Sent never: the other end is dropped.
    let _ = stopped.await;
    Ok(())
}

struct Arrivals {
    seed: u64,
    slow: bool,
    seconds: u64,
}

impl Arrivals {
    /// Requests per second.
    fn rate(&self) -> f64 {
        let mean = LONG_SHARE * LONG.as_secs_f64() + (1.0 - LONG_SHARE) * SHORT.as_secs_f64();
        let slow = if self.slow {
            1.0 - 1.0 / f64::from(SLOWNESS)
        } else {
            0.0
        };
        LOAD * WORKERS as f64 * (f64::from(BACKENDS) - slow) / mean
    }
}

/// The 99th percentile of what short requests took.
fn p99(from: &Netns, to: Ipv4Addr, arrivals: Arrivals) -> Result<f64> {
    let took = from.run(|| runtime()?.block_on(call(SocketAddr::from((to, PORT)), arrivals)))??;
    let mut took: Vec<f64> = took.iter().map(Duration::as_secs_f64).collect();
    took.sort_by(f64::total_cmp);
    let place = (took.len() as f64 * 0.99) as usize;
    took.get(place).copied().context("nothing was asked")
}

async fn call(to: SocketAddr, arrivals: Arrivals) -> Result<Vec<Duration>> {
    let mut rng = ChaCha8Rng::seed_from_u64(arrivals.seed);
    let took = Arc::new(Mutex::new(Vec::new()));
    let mut calls = JoinSet::new();
    let started = Instant::now();
    let mut due = Duration::ZERO;
    while due < Duration::from_secs(arrivals.seconds) {
        due += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() / arrivals.rate());
        let work = if rng.random_bool(LONG_SHARE) { LONG } else { SHORT };
        tokio::time::sleep_until((started + due).into()).await;
        let took = Arc::clone(&took);
        calls.spawn(async move {
            let begin = Instant::now();
            let mut stream = TcpStream::connect(to).await?;
            stream.write_u8(work.as_millis() as u8).await?;
            stream.read_u8().await?;
            if work == SHORT
                && let Ok(mut took) = took.lock()
            {
                took.push(begin.elapsed());
            }
            anyhow::Ok(())
        });
    }
    let failed = calls.join_all().await.into_iter().filter(Result::is_err).count();
    if failed > 0 {
        bail!("{failed} calls of {to} failed");
    }
    let mut took = took.lock().map_err(|_| anyhow::anyhow!("a call panicked"))?;
    Ok(std::mem::take(&mut *took))
}
