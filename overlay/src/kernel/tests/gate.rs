//! Beside the firewall that dockerd makes.

use std::process::Command;

use super::bed::*;
use crate::plan::Gate;

/// What dockerd has there, as far as it matters.
const DOCKERS: &str = "
    table ip filter {
        chain DOCKER-USER { counter return; }
        chain FORWARD {
            type filter hook forward priority 0; policy drop;
            counter jump DOCKER-USER
        }
    }";

/// What `nft` does in the host's namespace; `None` without the program.
fn nft(host: &TestHost, words: &[&str]) -> Option<String> {
    let run = || Command::new("nft").arg("-s").args(words).output();
    let output = match host.netns.run(run).unwrap() {
        Ok(output) => output,
        Err(error) => {
            weft_netlink::testing::skip(format_args!("nft: {error}"));
            return None;
        }
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_goes_in_and_out_is_let_through_while_there_is_a_network() {
    let Some(mut lab) = Lab::new(1) else { return };
    let mut shown = Vec::new();
    if nft(&lab.hosts[0], &[DOCKERS]).is_none() {
        return;
    }
    let mut show = |lab: &Lab| shown.extend(nft(&lab.hosts[0], &["list", "table", "ip", "filter"]));
    show(&lab);
    lab.attach(0, APP, 21, 21, false);
    let host = &mut lab.hosts[0];
    let report = host.kernel.reconcile(&host.desired).unwrap();
    assert!(report.errors.is_empty());
    // Known before it is looked at again: who asks now is a container that is being attached.
    assert_eq!(host.kernel.docker(), Some(Gate::Open));
    host.assert_unchanged();
    show(&lab);
    // Somebody begins anew.
    nft(&lab.hosts[0], &["flush", "chain", "ip", "filter", "DOCKER-USER"]).unwrap();
    lab.hosts[0].kernel.resync();
    lab.reconcile();
    lab.hosts[0].assert_unchanged();
    nft(
        &lab.hosts[0],
        &["add", "rule", "ip", "filter", "DOCKER-USER", "counter", "return"],
    )
    .unwrap();
    lab.hosts[0].desired.networks.clear();
    lab.reconcile();
    show(&lab);
    let [before, during, after] = &shown[..] else {
        unreachable!()
    };
    assert_eq!(before, after);
    let ours: Vec<_> = during
        .lines()
        .filter(|line| !before.contains(line))
        .map(str::trim)
        .collect();
    assert_eq!(
        ours,
        [
            r#"iifname "weft-*" oifname "docker*" counter return comment "weft: as Docker likes, to docker*""#,
            r#"iifname "weft-*" oifname "br-*" counter return comment "weft: as Docker likes, to br-*""#,
            r#"oifname "weft-*" counter accept comment "weft: into networks""#,
            r#"iifname "weft-*" counter accept comment "weft: out of networks""#,
        ]
    );
    assert!(
        during.find("out of networks") < during.find("\t\tcounter return"),
        "{during}"
    );
}
