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
            "{} ({}){state}, at {} inside the tunnels, UDP port {}, key {} (number {}), {} packets refused",
            encryption.datapath,
            encryption.reason,
            encryption.address,
            encryption.port,
            short(&encryption.fingerprint),
            encryption.epoch,
            encryption.refused,
        ),
    );
    if let Some(change) = &encryption.change {
        let left = humantime::format_duration(Duration::from_secs(change.at_most_ms / 1000));
        let late = match &change.waiting_for[..] {
            [] => "used by all".to_owned(),
            late => format!("not used by {}", late.join(", ")),
        };
        facts.add(
            "key change",
            format!(
                "to {} (number {}): {late}; the old key goes in {left} at most",
                short(&change.fingerprint),
                change.epoch
            ),
        );
    }
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
                Some(mtu) => format!("{} (path MTU {mtu}{})", tunnel.underlay_address, silent(tunnel)),
                None => tunnel.underlay_address.to_string(),
            },
            format!("{} (number {})", short(&tunnel.fingerprint), tunnel.epoch),
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
                "{} at {}, by its key number {} and this host's number {}, handshake {}",
                tunnel.address,
                tunnel.underlay_address,
                tunnel.epoch,
                tunnel.own_epoch,
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
                    .map(|mtu| format!(", path MTU {mtu}{}", silent(tunnel)))
                    .unwrap_or_default(),
            ),
        );
}

/// Where the path keeps to itself what it takes.
fn silent(tunnel: &TunnelStatus) -> &'static str {
    if tunnel.path_silent {
        ", longer packets are dropped in silence"
    } else {
        ""
    }
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

/// A key, and which of a host's keys it is.
pub(super) fn numbered(fingerprint: Option<&str>, epoch: Option<u32>) -> String {
    match (fingerprint, epoch) {
        (Some(fingerprint), Some(epoch)) => format!("{fingerprint} (number {epoch})"),
        (fingerprint, _) => fingerprint.unwrap_or_default().to_owned(),
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
