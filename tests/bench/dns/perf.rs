//! What dnsperf says.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netns_harness::{Inside as _, Sandbox};

use crate::tools::{command, number_after};

/// Runs it at a server to the end, and returns what it wrote.
pub fn dnsperf(client: &Sandbox, port: u16, questions: &Path, limit: &str) -> Result<String> {
    let line = format!(
        "dnsperf -s {} -p {port} {limit} -t 1 -d {}",
        super::SERVER,
        questions.display()
    );
    let finished = client
        .exec(&mut command(&line), Duration::from_secs(60))?
        .success()?;
    Ok(finished.stdout)
}

/// Questions answered, per second; all of them.
pub fn rate(text: &str) -> Result<f64> {
    let answered = number_after(text, "Queries completed:")?;
    let found = number_after(text, "NOERROR").unwrap_or_default();
    ensure!(
        answered > 0.0 && found >= answered,
        "not every name was answered: {text}"
    );
    number_after(text, "Queries per second:")
}

/// Those that were answered, per second, where not every question has to be. How many were not is said.
pub fn answered(text: &str, port: u16) -> Result<f64> {
    let [found, asked] = [
        number_after(text, "NOERROR")?,
        number_after(text, "Queries completed:")?,
    ];
    if found < asked {
        eprintln!(
            "  {} of {asked} questions to port {port} had an error for an answer",
            asked - found
        );
    }
    Ok(found / asked * number_after(text, "Queries per second:")?)
}

/// Within which time, in seconds, 99 of 100 were answered. A question without an answer took for ever.
pub fn p99(text: &str) -> Result<f64> {
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("> "))
        .map(|line| {
            let time = line.rsplit(' ').next().and_then(|word| word.parse().ok());
            time.filter(|_| line.starts_with("NOERROR"))
                .unwrap_or(f64::INFINITY)
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    let place = (times.len() * 99).div_ceil(100).checked_sub(1);
    let place = place.with_context(|| format!("dnsperf asked nothing: {text}"))?;
    Ok(times[place])
}
