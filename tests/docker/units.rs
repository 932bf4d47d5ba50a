//! `packaging/systemd`: what systemd makes of it.

use std::{fs, path::Path, process::Command};

#[test]
fn systemd_takes_the_units() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        return weft_netlink::testing::skip("it needs `systemd-analyze` of the package systemd");
    };
    assert!(version.status.success());
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let dir = tempfile::tempdir().unwrap();
    let mut copies = Vec::new();
    for unit in fs::read_dir(units).unwrap() {
        let unit = unit.unwrap();
        let text = fs::read_to_string(unit.path()).unwrap();
        // The program need not be installed where the test runs.
        let text = text.replace("/usr/local/bin/weft", "/bin/true");
        let copy = dir.path().join(unit.file_name());
        fs::write(&copy, text).unwrap();
        copies.push(copy);
    }
    assert_eq!(copies.len(), 4);
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
