//! The programs that measure, and the machine they run on.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use netns_harness::Inside;

/// Which Debian package a program comes in.
fn package(program: &str) -> &str {
    match program {
        "ip" | "bridge" => "iproute2",
        "dnsmasq" => "dnsmasq-base",
        "dockerd" | "docker" => "docker.io",
        "busybox" => "busybox-static",
        other => other,
    }
}

/// A sentence that names the packages to install; empty if all programs are here.
pub fn missing<'a>(programs: impl Iterator<Item = &'a str>) -> String {
    let mut packages: Vec<&str> = programs
        .filter(|program| find(program).is_none())
        .map(package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return String::new();
    }
    let packages = packages.join(" ");
    format!(
        "programs to measure with are missing: apt-get install --no-install-recommends {packages} (or leave them out with --only)"
    )
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A program with its arguments in one string, without quotes.
pub fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.args(words);
    command
}

/// Runs it inside to its end and returns what it wrote.
pub fn output(place: &impl Inside, line: &str) -> Result<String> {
    let finished = place.exec(&mut command(line), Duration::from_secs(60))?.success();
    Ok(finished.with_context(|| format!("`{line}`"))?.stdout)
}

/// The number that follows a label, on any line.
pub fn number_after(text: &str, label: &str) -> Result<f64> {
    let rest = text.split_once(label).map(|(_, rest)| rest.trim_start());
    let number = rest.and_then(|rest| {
        rest.split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .next()?
            .parse()
            .ok()
    });
    number.with_context(|| format!("there is no `{label}` in: {text}"))
}

/// One line about where this was measured, and what.
pub fn machine(weft: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{cores} cores ({}), Linux {}, load {}; measured: {}\n",
        model.map_or("unknown", |(_, name)| name),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        weft.display(),
    )
}
