//! Nothing is left: after `down`, after Ctrl-C, after a failure, after a crash. These tests run on a machine of their own
//! (namespaces), where whatever is new is the lab's.

use std::{collections::BTreeSet, fs, os::unix::process::CommandExt as _, path::Path, time::Duration};

use netns_harness::{Snapshot, eventually, isolated};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::bed::{Lab, Running, User, each, path, shop_with, shop_yaml, start};
use weft_tests::weft_binary;

/// The kernel takes namespaces apart in the background.
const SOON: Duration = Duration::from_secs(10);

/// All that a lab could leave.
struct Machine {
    kernel: Snapshot,
    files: BTreeSet<String>,
}

impl Machine {
    fn now() -> Self {
        let mut files = BTreeSet::new();
        // `/run` is this machine's own, and with it every runtime directory.
        list(Path::new("/run"), &mut files);
        Self {
            kernel: Snapshot::take().unwrap(),
            files,
        }
    }

    fn new_since(&self, before: &Self) -> Vec<String> {
        let mut changes = self.kernel.changes_since(&before.kernel);
        changes.extend(self.files.difference(&before.files).cloned());
        changes
    }

    fn finds_nothing_new(&self, after: &str) {
        gone(&format!("whatever is new after {after}"), || {
            Self::now().new_since(self)
        });
    }
}

/// Waits until a look finds nothing.
fn gone(what: &str, look: impl Fn() -> Vec<String>) {
    let looked = eventually(
        format!("the end of {what}"),
        SOON,
        Duration::from_millis(5),
        || match look() {
            left if left.is_empty() => Ok(()),
            left => Err(left.join("; ")),
        },
    );
    looked.unwrap();
}

/// Kills the process that holds a lab, and waits until the lab is known to be dead.
fn kill_holder(lab: &Lab<'_>) {
    kill(holder(lab), Signal::SIGKILL).unwrap();
    gone(&lab.name, || {
        let listed = lab.user().run(&["lab", "ls"]).good();
        let alive = !listed.contains("dead");
        alive.then_some(listed).into_iter().collect()
    });
}

fn list(directory: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        files.insert(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), files);
        }
    }
}

#[test]
fn down_leaves_no_namespace_link_rule_mount_process_or_file() {
    weft_binary();
    isolated(|| {
        let me = User::me();
        let before = Machine::now();
        let shop = me.shop();
        let meanwhile = Machine::now();
        let kernel = &meanwhile.kernel;
        assert!(
            kernel.processes.len() >= before.kernel.processes.len() + 10,
            "{:?}",
            kernel.processes
        );
        // The machine's own network is not touched even while the lab is up.
        assert_eq!(
            (&kernel.links, &kernel.tables),
            (&before.kernel.links, &before.kernel.tables)
        );
        assert_eq!(kernel.mounts, before.kernel.mounts);
        assert_eq!(
            shop.calls("client-1", "http://web/", 3),
            each(&["web-1", "web-2", "web-3"], 1)
        );
        // A shell that somebody left open in a replica ends with it.
        let shell = start(&mut shop.exec_command("client-1", &["sleep", "1000"]));
        shop.lab("kill", &["h2"]).good();
        shop.down();
        assert_ne!(shell.end().code, 0);
        before.finds_nothing_new("down");
    });
}

#[test]
fn ctrl_c_in_the_middle_of_up_leaves_nothing() {
    weft_binary();
    isolated(|| {
        let me = User::me();
        let before = Machine::now();
        for (step, signal, code) in [
            ("lab it", Signal::SIGINT, 130),
            ("  hosts ", Signal::SIGINT, 130),
            ("  agents ", Signal::SIGTERM, 143),
            ("  cluster ", Signal::SIGINT, 130),
            ("  networks ", Signal::SIGHUP, 129),
        ] {
            let lab = me.claim();
            let mut up = me.weft(&["lab", "up", path(&shop_yaml()), "--name", &lab.name]);
            // As a terminal does it: to the whole process group.
            let up = start(up.process_group(0));
            eventually(format!("the step {step}"), SOON, Duration::from_millis(1), || {
                if up.stdout().contains(step) {
                    Ok(())
                } else {
                    Err(up.stdout())
                }
            })
            .unwrap();
            kill(Pid::from_raw(-up.id().as_raw()), signal).unwrap();
            let ended = up.end();
            assert_eq!(ended.code, code, "{signal} after {step}: {ended:?}");
            assert!(ended.stderr.contains("nothing of it is left"), "{ended:?}");
            before.finds_nothing_new(&format!("{signal} after {step}"));
        }
    });
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing_and_says_why() {
    weft_binary();
    isolated(|| {
        let me = User::me();
        let before = Machine::now();
        let idle = "x-weft: { builtin: idle }";
        for (text, why) in [
            (shop_with(idle, "command: [/no/such/program]"), "/no/such/program"),
            (
                shop_with(
                    "  back:\n",
                    "  back:\n    ipam: { config: [{ subnet: 10.9.0.0/30 }] }\n",
                ),
                "10.9.0.0/30",
            ),
        ] {
            let lab = me.claim();
            let file = me.file("lab.yaml", &text);
            let ended = me.run(&["lab", "up", path(&file), "--name", &lab.name]);
            assert_eq!(ended.code, 1, "{ended:?}");
            assert!(
                ended.stderr.contains(why) && ended.stderr.contains("taken down again"),
                "{ended:?}"
            );
            fs::remove_file(file).unwrap();
            before.finds_nothing_new(why);
        }
    });
}

/// The process that holds the lab, as `lab.json` has it.
fn holder(lab: &Lab<'_>) -> Pid {
    let base = if nix::unistd::geteuid().is_root() {
        Path::new("/run/weft-labs").to_owned()
    } else {
        lab.user().dir.path().join("weft-labs")
    };
    let text = fs::read_to_string(base.join(&lab.name).join("lab.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    Pid::from_raw(record["holder"].as_i64().unwrap().try_into().unwrap())
}

#[test]
fn a_lab_whose_holder_was_killed_is_dead_and_only_its_files_are_left() {
    weft_binary();
    isolated(|| {
        let me = User::me();
        let before = Machine::now();
        let shop = me.shop();
        kill_holder(&shop);
        gone("its processes", || {
            Machine::now().kernel.changes_since(&before.kernel)
        });
        for ended in [
            shop.lab("inspect", &[]),
            shop.exec("client-1", &["true"]),
            shop.lab("kill", &["h1"]),
        ] {
            assert_ne!(ended.code, 0);
            assert!(
                ended.stderr.contains("is dead") && ended.stderr.contains("lab down"),
                "{ended:?}"
            );
        }
        // Another one of its name may take its place, even as the only lab there is.
        me.run(&["lab", "up", path(&shop_yaml()), "--name", &shop.name])
            .good();
        kill_holder(&shop);
        let down = shop.lab("down", &[]).good();
        assert!(down.contains("was dead already"), "{down}");
        before.finds_nothing_new("the death of the holder");
    });
}

#[test]
fn of_two_who_build_a_lab_of_one_name_one_is_refused() {
    weft_binary();
    isolated(|| {
        let me = User::me();
        let before = Machine::now();
        let file = me.file(
            "tiny.yaml",
            "services: { a: { x-weft: { builtin: idle } } }\nx-weft: { hosts: [h1] }\n",
        );
        let lab = me.claim();
        let ups: Vec<_> = (0..4)
            .map(|_| start(&mut me.weft(&["lab", "up", path(&file), "--name", &lab.name])))
            .collect();
        let mut ended: Vec<_> = ups.into_iter().map(Running::end).collect();
        ended.sort_by_key(|one| one.code);
        assert_eq!(
            ended.iter().map(|one| one.code).collect::<Vec<_>>(),
            [0, 4, 4, 4],
            "{ended:?}"
        );
        lab.exec("a-1", &["true"]).good();
        lab.down();
        fs::remove_file(file).unwrap();
        before.finds_nothing_new("four at once");
    });
}
