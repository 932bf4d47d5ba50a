//! What came of a campaign.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::Write as _,
    time::{Duration, Instant},
};

use crate::{calls, faults, world::World};

/// What is told of each kind of fault.
#[derive(Default)]
struct Row {
    count: usize,
    lost: u64,
    /// Of datagrams: for how long none of a flow arrived.
    gap: Duration,
    /// Of each kind of client: what failed, and the longest time without a success.
    clients: BTreeMap<calls::Kind, (usize, Duration)>,
    settled: Duration,
}

pub struct Report {
    began: Instant,
    rows: BTreeMap<faults::Kind, Row>,
    pub violations: Vec<String>,
    log: Option<File>,
}

impl Report {
    /// What it says goes to a file too, if `WEFT_CAMPAIGN_LOG` names one: a test's output comes at its end.
    pub fn new() -> Self {
        let log = std::env::var_os("WEFT_CAMPAIGN_LOG").map(|path| File::create(path).unwrap());
        Self {
            began: Instant::now(),
            rows: BTreeMap::new(),
            violations: Vec::new(),
            log,
        }
    }

    pub fn say(&mut self, line: &str) {
        println!("{line}");
        if let Some(log) = &mut self.log {
            writeln!(log, "{:8.2} {line}", self.began.elapsed().as_secs_f64()).unwrap();
        }
    }

    pub fn violation(&mut self, fault: &str, what: String) {
        self.say(&format!("    VIOLATION {what}"));
        self.violations.push(format!("{fault}: {what}"));
    }

    pub fn fault(&mut self, kind: faults::Kind, settled: Duration) {
        let row = self.rows.entry(kind).or_default();
        row.count += 1;
        row.settled = row.settled.max(settled);
    }

    pub fn loss(&mut self, kind: faults::Kind, lost: u64, gap: Duration) {
        let row = self.rows.entry(kind).or_default();
        row.lost += lost;
        row.gap = row.gap.max(gap);
    }

    pub fn client(&mut self, fault: faults::Kind, client: calls::Kind, failed: usize, gap: Duration) {
        let row = self.rows.entry(fault).or_default();
        let (failures, longest) = row.clients.entry(client).or_default();
        *failures += failed;
        *longest = (*longest).max(gap);
    }

    /// All of it as a table.
    pub fn tell(&mut self, world: &World) {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:24} {:>6} {:>9} {:>8} {:>8}  failed (longest without an answer): {}",
            "fault",
            "times",
            "lost",
            "gap ms",
            "well s",
            calls::Kind::ALL.map(calls::Kind::word).join(", ")
        );
        for (kind, row) in &self.rows {
            let clients = calls::Kind::ALL.map(|kind| {
                let (failed, gap) = row.clients.get(&kind).copied().unwrap_or_default();
                format!("{failed} ({} ms)", gap.as_millis())
            });
            let _ = writeln!(
                text,
                "{:24} {:>6} {:>9} {:>8} {:>8.1}  {}",
                kind.words(),
                row.count,
                row.lost,
                row.gap.as_millis(),
                row.settled.as_secs_f64(),
                clients.join(", ")
            );
        }
        let totals = world.ledger.totals();
        let took = self.began.elapsed().as_secs_f64();
        let _ = writeln!(
            text,
            "datagrams: {} sent ({} of them refused by the sender's host), {} received, {} late, {} twice",
            totals.sent, totals.refused, totals.received, totals.late, totals.twice
        );
        let mut all = totals.sent;
        for kind in calls::Kind::ALL {
            let of_kind = world.tracks.iter().filter(|track| track.kind == kind);
            let done: u64 = of_kind.map(|track| track.done()).sum();
            all += 2 * done;
            let _ = writeln!(text, "{}: {done} answered", kind.word());
        }
        let faults: usize = self.rows.values().map(|row| row.count).sum();
        let _ = write!(
            text,
            "{faults} faults on {} hosts in {took:.0} s; {:.0} datagrams, questions and answers a second; {} violations",
            world.hosts(),
            all as f64 / took,
            self.violations.len()
        );
        self.say(&text);
    }
}
