use std::time::Duration;

use crate::{
    api::types::{EncryptionStatus, TunnelStatus},
    cli::table::{Facts, Table},
};

/// How this host encrypts, in one line.
pub(super) fn add_encryption(facts: &mut Facts, encryption: Option<&EncryptionStatus>) {
    let Some(encryption) = encryption else { return };
    let state = if encryption.running { "" } else { ", not running" };
    facts.add(
        "encryption",
        format!(
            "{}{state}, at {} inside the tunnels, UDP port {}, key {}, {} packets refused",
            encryption.datapath,
            encryption.address,
            encryption.port,
            short(&encryption.fingerprint),
            encryption.refused,
        ),
    );
}

/// The columns of every list of tunnels.
pub(super) fn tunnel_table(tunnels: &[TunnelStatus]) -> Table<8> {
    let mut table = Table::new([
        "NODE",
        "ADDRESS",
        "UNDERLAY ADDRESS",
        "KEY",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
        "LOST",
    ]);
    for tunnel in tunnels {
        table.row([
            tunnel.node_name.clone(),
            tunnel.address.to_string(),
            match tunnel.path_mtu {
                Some(mtu) => format!("{} (path MTU {mtu})", tunnel.underlay_address),
                None => tunnel.underlay_address.to_string(),
            },
            short(&tunnel.fingerprint).to_owned(),
            handshake(tunnel),
            bytes(tunnel.received_bytes),
            bytes(tunnel.sent_bytes),
            tunnel.lost.to_string(),
        ]);
    }
    table
}

/// The tunnel to a node, for `node inspect`.
pub(super) fn add_tunnel(facts: &mut Facts, tunnel: Option<&TunnelStatus>) {
    let Some(tunnel) = tunnel else { return };
    let segments = match tunnel.segmentation {
        true => "",
        false => ", one packet to a system call",
    };
    facts
        .add(
            "tunnel",
            format!(
                "{} at {}, handshake {}",
                tunnel.address,
                tunnel.underlay_address,
                handshake(tunnel)
            ),
        )
        .add(
            "carried",
            format!(
                "{} received, {} sent, {} frames lost{segments}{}",
                bytes(tunnel.received_bytes),
                bytes(tunnel.sent_bytes),
                tunnel.lost,
                tunnel
                    .path_mtu
                    .map(|mtu| format!(", path MTU {mtu}"))
                    .unwrap_or_default(),
            ),
        );
}

fn handshake(tunnel: &TunnelStatus) -> String {
    match tunnel.handshake_ms_ago {
        Some(age) => format!(
            "{} ago",
            humantime::format_duration(Duration::from_secs(Duration::from_millis(age).as_secs()))
        ),
        None => "none".to_owned(),
    }
}

/// Enough of a fingerprint to tell keys apart; JSON has all of it.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..19).unwrap_or(fingerprint)
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}
