//! The proof that a lab works before it is called up: from every host, every service resolves and answers.

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::Result;
use futures_util::future::try_join_all;
use netns_harness::Inside as _;
use netns_harness::Output;

use super::{
    super::{
        model::Workload,
        resolve::{ReplicaPlan, ServicePlan},
    },
    build::{Broken, Site, until},
    running::Running,
};

/// Names and addresses are known everywhere within a second or so.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A look that hangs is asked again.
const LOOK_TIMEOUT_MS: u64 = 2000;

pub(super) async fn everything(site: &Site<'_>, running: &Running) -> Result<(), Broken> {
    let mut checks = Vec::new();
    for service in &site.topology.services {
        for observer in observers(site, service) {
            checks.push(check(running, service, observer));
        }
    }
    try_join_all(checks).await?;
    Ok(())
}

/// One replica on the service's network on each host.
fn observers<'s>(site: &'s Site<'_>, service: &ServicePlan) -> Vec<&'s ReplicaPlan> {
    let mut seen = BTreeSet::new();
    let on_network = |replica: &&ReplicaPlan| {
        replica
            .attachments
            .iter()
            .any(|one| one.network == service.network)
    };
    site.topology
        .replicas
        .iter()
        .filter(on_network)
        .filter(|replica| seen.insert(&replica.host))
        .collect()
}

async fn check(running: &Running, service: &ServicePlan, observer: &ReplicaPlan) -> Result<(), Broken> {
    let backend = running
        .topology
        .replicas
        .iter()
        .find(|replica| replica.service == service.name);
    // Without a replica there is nobody to answer; the name of a `dnsrr` service has no address then either.
    let Some(backend) = backend else { return Ok(()) };
    let name = format!("{}.{}", service.name, service.network);
    let (what, url) = match backend.workload {
        Workload::Whoami => ("answered", format!("http://{name}:{}/", backend.port)),
        // Only a builtin is known to listen.
        Workload::Idle | Workload::Command(_) => ("resolved", name.clone()),
    };
    let what = format!("that {name} is {what} as seen from {}", observer.name);
    let timeout = LOOK_TIMEOUT_MS.max(2 * backend.delay_ms).to_string();
    let sandbox = running
        .replicas
        .get(&observer.name)
        .map(|replica| &replica.sandbox);
    let looked = until(what, TIMEOUT, async || {
        let Some(sandbox) = sandbox else {
            return Err("its sandbox is gone".to_owned());
        };
        let mut command = Command::new("/proc/self/exe");
        command.args(["lab", "fetch", "--quiet", "--timeout-ms", &timeout, &url]);
        let process = sandbox
            .spawn(&mut command, Output::Keep)
            .map_err(|error| error.to_string())?;
        loop {
            match process.try_wait() {
                Some(status) if status.success() => return Ok(()),
                Some(_) => return Err(process.stderr().trim().replace('\n', "; ")),
                // It ends by itself: every one of its calls has a deadline.
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    });
    looked.await.map_err(|error| Broken::on(&observer.host, error))
}
