//! TCP throughput between endpoints on two hosts, beside a VXLAN made by hand and the underlay itself.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use netns_harness::{Inside, Output, Process};
use serde_json::{Value, json};

use crate::{
    Effort,
    cluster::{Cluster, await_ping},
    handmade::HandMade,
    table::{Table, Unit},
    tools::{command, output},
};

pub fn measure(cluster: &Cluster, effort: Effort, table: &mut Table) -> Result<()> {
    let [h1, h2] = &cluster.nodes;
    cluster.network("tcp")?;
    let client = h1.endpoint("tcp", "tcp-c", json!({}))?;
    let server = h2.endpoint("tcp", "tcp-s", json!({}))?;
    let hand = HandMade::build(&cluster.nodes)?;
    await_ping(&client.sandbox, server.address)?;
    await_ping(&hand.client, hand.address)?;
    let _servers = [
        serve(&server.sandbox, server.address)?,
        serve(&hand.server, hand.address)?,
        serve(&h2.host, h2.underlay)?,
    ];

    let streams: &[usize] = if effort.quick { &[1] } else { &[1, 4] };
    for &streams in streams {
        let what = format!("TCP, {streams} stream{}", if streams == 1 { "" } else { "s" });
        let [mut ours, mut by_hand, mut underlay] = [const { Vec::new() }; 3];
        for round in 0..effort.rounds {
            effort.progress(&what, round);
            ours.push(throughput(&client.sandbox, server.address, streams, effort)?);
            by_hand.push(throughput(&hand.client, hand.address, streams, effort)?);
            underlay.push(throughput(&h1.host, h2.underlay, streams, effort)?);
        }
        let others = [("VXLAN by hand", &by_hand[..]), ("bare underlay", &underlay)];
        table.compare(&what, Unit::Bits, &ours, &others);
    }
    Ok(())
}

fn serve(place: &impl Inside, address: IpAddr) -> Result<Process> {
    let server = place.spawn(
        &mut command(&format!("iperf3 --server --bind {address} --forceflush")),
        Output::Keep,
    )?;
    server.wait_for_line(std::time::Duration::from_secs(5), |line| {
        line.contains("listening")
    })?;
    Ok(server)
}

/// Bits that arrived, per second.
fn throughput(place: &impl Inside, server: IpAddr, streams: usize, effort: Effort) -> Result<f64> {
    let seconds = effort.length.as_secs();
    let text = output(
        place,
        &format!("iperf3 --json --client {server} --time {seconds} --parallel {streams}"),
    )?;
    let result: Value = serde_json::from_str(&text)?;
    let bits = result["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.with_context(|| format!("iperf3 did not say how fast it was: {text}"))
}
