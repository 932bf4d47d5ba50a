//! `packaging/systemd`: what systemd makes of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What `systemd-analyze security` may find at most, in tenths: 100 is a service that is kept from nothing. The agent needs what
/// weighs most there, and can have no mounts of its own.
const EXPOSED: [(&str, u8); 3] = [
    ("weft.service", 57),
    ("weft-tunnels.service", 46),
    ("weft-docker-proxy.service", 16),
];

/// The units, with a program that is there: ours need not be installed where the test runs.
fn units() -> Option<(tempfile::TempDir, Vec<PathBuf>)> {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        weft_netlink::testing::skip("it needs `systemd-analyze` of the package systemd");
        return None;
    };
    assert!(version.status.success());
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let dir = tempfile::tempdir().unwrap();
    let mut copies = Vec::new();
    for unit in fs::read_dir(units).unwrap() {
        let unit = unit.unwrap();
        let text = fs::read_to_string(unit.path()).unwrap();
        let copy = dir.path().join(unit.file_name());
        fs::write(&copy, text.replace("/usr/local/bin/weft", "/bin/true")).unwrap();
        copies.push(copy);
    }
    assert_eq!(copies.len(), 4);
    Some((dir, copies))
}

#[test]
fn systemd_takes_the_units() {
    let Some((_dir, copies)) = units() else { return };
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .args(&copies)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // Other units of the machine are read too, and their faults are none of ours.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("weft")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn systemd_finds_the_services_as_little_exposed_as_they_can_be() {
    let Some((dir, _)) = units() else { return };
    for (unit, exposed) in EXPOSED {
        let judged = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager"])
            .arg(format!("--threshold={exposed}"))
            .arg(dir.path().join(unit))
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&judged.stdout);
        let said = String::from_utf8_lossy(&judged.stderr);
        assert!(found.contains("Overall exposure level"), "{unit}: {said}");
        assert!(judged.status.success(), "{unit}: {found}{said}");
    }
}
