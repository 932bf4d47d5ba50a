//! `weft report`: everything that helps whoever looks into a fault, in one archive, without what is nobody's business.

mod redact;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::Args;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use serde_json::Value;

use self::redact::Redaction;
use crate::{
    api::{
        Timestamp,
        client::{Client, ClientError},
        types::{DoctorRequest, EventsQuery},
    },
    cli::{failure::Failure, progress::announce, session::Session},
};

/// Events of a node that has run for long; the last ones matter.
const MAX_EVENTS: usize = 10_000;

/// What `weft report` takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{CONTAINS}"))]
pub(in crate::cli) struct ReportArgs {
    /// Where to write the archive; `-` for standard output [default: weft-report-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Send no packet to hosts and endpoints, as in `weft doctor --passive`
    #[arg(long)]
    passive: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft report
  weft report -o - | tar -tz
  weft report -o - | ssh helpdesk 'cat > report.tar.gz'";

const CONTAINS: &str = "\
The archive has a README and, as JSON, what these show on this host: version, status, node ls and inspect, network ls and
inspect, service ls and inspect, doctor, events; and the kernel, distribution and settings of the host.

Left out: keys and tokens, which no command shows; values of labels; commands of health checks. Public addresses have numbers
in their place, the same one everywhere. Names of hosts, networks, containers and services, and private addresses, are there:
look before you send it to somebody. A host whose agent does not answer has a report too, which says so.";

const README: &str = "\
What `weft report` saw on one host. A file per question; `errors.txt` has what could not be asked.

Values of labels and commands of health checks are left out (\"removed\"). Public addresses have numbers in their place
(\"public-1\"), the same one in every file.
";

/// Files of the archive, by name.
#[derive(Default)]
struct Report {
    files: Vec<(String, String)>,
    errors: String,
    redaction: Redaction,
}

impl Report {
    /// Takes down an answer, or why there is none.
    fn answer<T: Serialize>(&mut self, name: &str, answer: Result<T, ClientError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                let value = serde_json::to_value(&answer).unwrap_or(Value::Null);
                self.value(name, value);
                Some(answer)
            }
            Err(error) => {
                self.errors += &self.redaction.text(&format!("{name}: {error}\n"));
                None
            }
        }
    }

    fn value(&mut self, name: &str, mut value: Value) {
        self.redaction.value(&mut value);
        self.files.push((format!("{name}.json"), format!("{value:#}\n")));
    }

    /// The archive; all its files are in one directory.
    fn pack(mut self, to: impl Write, directory: &str, at: Timestamp) -> io::Result<()> {
        self.files.push(("README".to_owned(), README.to_owned()));
        if !self.errors.is_empty() {
            self.files.push(("errors.txt".to_owned(), self.errors));
        }
        let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        for (name, text) in self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(at.unix_millis() / 1000);
            archive.append_data(&mut header, format!("{directory}/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()?.flush()
    }
}

pub(in crate::cli) fn report(session: &Session, args: ReportArgs) -> Result<(), Failure> {
    let at = Timestamp::from(SystemTime::now());
    let directory = directory(at);
    let path = args
        .output
        .unwrap_or_else(|| PathBuf::from(format!("{directory}.tar.gz")));
    let report = session.run(async |client| {
        let work = gather(client, args.passive);
        Ok(announce("asking the agent and looking at the host", work).await)
    })?;
    let errors = report.errors.clone();
    let failed = |error: io::Error| {
        Failure::new(format!("{} cannot be written: {error}", path.display())).with_help(
            "name a file that is not there yet with `-o FILE`, or write to standard output with `-o -`",
        )
    };
    if path == Path::new("-") {
        report.pack(io::stdout().lock(), &directory, at).map_err(failed)?;
    } else {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        report.pack(file, &directory, at).map_err(failed)?;
        println!("{}", path.display());
        eprintln!("Names and private addresses are in it: look before you send it to somebody.");
    }
    for error in errors.lines() {
        eprintln!("not in it: {error}");
    }
    Ok(())
}

/// What the archive unpacks to: `weft-report-20261122T054500Z`.
fn directory(at: Timestamp) -> String {
    let mut time = at.to_string().replace(['-', ':'], "");
    time.truncate("20261122T054500".len());
    format!("weft-report-{time}Z")
}

async fn gather(client: &Client, passive: bool) -> Report {
    let mut report = Report::default();
    report.value("host", host());
    report.answer("version", client.version().await);
    report.answer("status", client.status().await);
    for node in report.answer("nodes", client.nodes().await).into_iter().flatten() {
        let id = node.id.to_string();
        report.answer(&format!("node-{}", node.id.short()), client.node(&id).await);
    }
    let networks = report.answer("networks", client.networks().await);
    for network in networks.into_iter().flatten() {
        let id = network.id.to_string();
        let name = format!("network-{}", network.id.short());
        report.answer(&name, client.network(&id).await);
    }
    let services = report.answer("services", client.services(None).await);
    for service in services.into_iter().flatten() {
        let id = service.id.to_string();
        let name = format!("service-{}", service.id.short());
        report.answer(&name, client.service(&id, None).await);
    }
    let request = DoctorRequest { fix: false, passive };
    report.answer("doctor", client.doctor(&request).await);
    report.answer("events", events(client).await);
    report
}

/// What has happened so far.
async fn events(client: &Client) -> Result<Vec<Value>, ClientError> {
    let query = EventsQuery {
        since: Some(Timestamp::from_unix_millis(0)),
        follow: false,
    };
    let mut stream = client.events(&query).await?;
    let mut events = std::collections::VecDeque::new();
    while let Some(event) = stream.next().await {
        events.push_back(serde_json::to_value(event?).unwrap_or(Value::Null));
        if events.len() > MAX_EVENTS {
            events.pop_front();
        }
    }
    Ok(events.into())
}

/// What of the host matters to a network.
fn host() -> Value {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let release = read("/etc/os-release").unwrap_or_default();
    let release = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let settings = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/bridge/bridge-nf-call-iptables",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
        "kernel/unprivileged_bpf_disabled",
    ];
    let settings = settings.map(|name| (name, read(&format!("/proc/sys/{name}"))));
    serde_json::json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "distribution": release.map(|name| name.trim_matches('"')),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": read("/proc/meminfo").and_then(|text| text.lines().next().map(str::to_owned)),
        "up_seconds": read("/proc/uptime"),
        "load": read("/proc/loadavg"),
        "settings": settings.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_named_for_its_time() {
        let at = Timestamp::from_unix_millis(1_795_326_300_250);
        assert_eq!(directory(at), "weft-report-20261122T054500Z");
    }

    #[test]
    fn the_archive_has_what_was_seen_and_why_the_rest_was_not() {
        let mut report = Report::default();
        report.value(
            "status",
            json!({"labels": {"a": "secret"}, "address": "203.0.113.9"}),
        );
        let failed = client_error();
        assert!(report.answer::<Value>("nodes", Err(failed)).is_none());
        let mut bytes = Vec::new();
        report
            .pack(&mut bytes, "weft-report-x", Timestamp::from_unix_millis(0))
            .unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let files: BTreeMap<String, String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["README", "errors.txt", "status.json"].map(|name| format!("weft-report-x/{name}"))
        );
        let status = &files["weft-report-x/status.json"];
        assert!(
            status.contains("public-1") && !status.contains("secret"),
            "{status}"
        );
        assert!(files["weft-report-x/errors.txt"].starts_with("nodes: "));
    }

    fn client_error() -> ClientError {
        let client = Client::new("/nowhere/weft.sock");
        let runtime = crate::cli::session::runtime().unwrap();
        runtime.block_on(client.status()).unwrap_err()
    }
}
