//! The arrows of ARCHITECTURE.md point down only: this reads `cargo metadata` and fails on any other.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// What each crate of the workspace may depend on, apart from tests.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("weft-types", &[] as &[_]),
        ("weft-netlink", &["weft-types"]),
        ("weft-ipam", &[]),
        ("weft-gossip", &["weft-types"]),
        ("weft-overlay", &["weft-types", "weft-netlink"]),
        ("weft-lb", &["weft-types", "weft-netlink"]),
        ("weft-dns", &["weft-types", "weft-netlink"]),
        ("weft-wireguard", &["weft-types", "weft-netlink"]),
        ("netns-harness", &["weft-types", "weft-netlink"]),
        (
            "weft",
            &[
                "weft-types",
                "weft-netlink",
                "weft-ipam",
                "weft-gossip",
                "weft-overlay",
                "weft-lb",
                "weft-dns",
                "weft-wireguard",
                "netns-harness",
            ],
        ),
        // Tests may use everything, benchmarks these; nothing may use tests.
        (
            "weft-tests",
            &[
                "weft-types",
                "weft-netlink",
                "weft-dns",
                "weft-wireguard",
                "netns-harness",
            ],
        ),
    ])
}

fn workspace() -> Vec<Package> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    metadata.workspace_packages().into_iter().cloned().collect()
}

#[test]
fn no_crate_depends_upwards_or_sideways() {
    let packages = workspace();
    let names: BTreeSet<String> = packages.iter().map(|package| package.name.to_string()).collect();
    let allowed = allowed();
    let mut wrong = Vec::new();
    for package in &packages {
        let Some(may) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in the table of layers", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Development || !names.contains(&dependency.name) {
                continue;
            }
            if !may.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Crates that do I/O. A core that needs one of them has grown an edge.
const IO_CRATES: [&str; 4] = ["tokio", "rtnetlink", "netlink-sys", "redb"];

#[test]
fn the_address_core_has_no_way_to_do_io() {
    for package in workspace()
        .iter()
        .filter(|package| package.name.as_str() == "weft-ipam")
    {
        for dependency in &package.dependencies {
            let normal = dependency.kind == DependencyKind::Normal;
            assert!(
                !(normal && IO_CRATES.contains(&dependency.name.as_str())),
                "weft-ipam uses {}",
                dependency.name
            );
        }
    }
}
