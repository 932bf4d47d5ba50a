use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    checkout,
    faults::{Suite, all},
};

#[test]
fn each_fault_finds_its_place() {
    let mut wrong = Vec::new();
    for fault in all() {
        let source = fs::read_to_string(checkout().join(fault.file)).unwrap_or_default();
        let places = source.matches(fault.right).count();
        if places != 1 || fault.right == fault.wrong {
            wrong.push(format!(
                "{}: {} has {places} places for it",
                fault.name, fault.file
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let names: BTreeSet<_> = all().map(|fault| fault.name).collect();
    assert_eq!(names.len(), all().count(), "two faults have one name");
}

#[test]
fn each_fault_has_a_test() {
    for fault in all() {
        let of = |package: &str| package.strip_prefix("weft-").unwrap_or("agent").to_owned();
        let folder = match fault.suite {
            Suite::Unit(package) => of(package) + "/src",
            Suite::Crate(package, _) => of(package) + "/tests",
            Suite::Workspace(name) => format!("tests/{name}"),
        };
        let name = fault.caught_by.rsplit("::").next().unwrap_or_default();
        assert!(
            has_test(&checkout().join(&folder), &format!("fn {name}(")),
            "{}: no test `{name}` in {folder}",
            fault.name
        );
    }
}

fn has_test(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.filter_map(Result::ok).any(|entry| match entry.path() {
            path if path.is_dir() => has_test(&path, name),
            path => fs::read_to_string(path).is_ok_and(|text| text.contains(name)),
        })
    })
}
