//! Who may look and who may change things: real users and groups, by number or as a host's own `/etc/group` has them.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    process::Command,
};

use netns_harness::{Inside as _, Output};
use weft_tests::weft_binary;

use super::{
    bed::{Bed, COMMAND, Node, alone, has_root, items, soon},
    node::Ended,
};

/// An ordinary user that no list of users has.
const USER: &str = "4001";
const SOCKET: &str = "/run/weft/weft.sock";
const READING: &str = "/run/weft/weft-read.sock";

/// `weft` as that user with these groups beside its own, and the process it was.
fn weft_as(node: &Node, groups: &str, line: &str) -> (Ended, u32) {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        USER,
        "--regid",
        USER,
        "--bounding-set=-all",
        "--no-new-privs",
    ]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.args(["--groups", groups]),
    };
    command.arg(weft_binary()).args(line.split_whitespace());
    let process = node.host.spawn(&mut command, Output::Keep).unwrap();
    let code = process.wait(COMMAND).unwrap().code().unwrap_or(-1);
    let (stdout, stderr) = soon("its last words", || {
        let said = (process.stdout(), process.stderr());
        let ended = said.0.is_empty() && said.1.is_empty();
        if ended { Err("nothing") } else { Ok(said) }
    });
    (Ended { code, stdout, stderr }, process.pid())
}

/// Mode, user and group of a socket.
fn owner(node: &Node, path: &str) -> (u32, u32, u32) {
    let found = node.host.run(|| fs::metadata(path)).unwrap().unwrap();
    (found.mode() & 0o7777, found.uid(), found.gid())
}

fn networks(node: &Node) -> usize {
    items(&node.json("network ls")).count()
}

#[test]
fn a_group_may_change_things_another_one_may_look_and_who_did_what_is_in_the_log() {
    if !has_root() {
        return;
    }
    alone(|| {
        let bed = Bed::cluster(&["h1"]);
        let h1 = &bed["h1"];

        // Without groups of these names everything is root's.
        for socket in [SOCKET, READING] {
            assert_eq!(owner(h1, socket), (0o660, 0, 0), "{socket}");
        }
        let (refused, _) = weft_as(h1, "", "status");
        assert_eq!(refused.code, 5, "{refused:?}");
        assert!(refused.stderr.contains("--read-group"), "{refused:?}");

        // The usual ones. The host has an `/etc/group` of its own.
        h1.end_agent();
        h1.host
            .run(|| {
                let groups = fs::read_to_string("/etc/group")?;
                fs::write("/etc/group", format!("{groups}weft:x:4100:\nweft-read:x:4200:\n"))
            })
            .unwrap()
            .unwrap();
        h1.start_agent_with(
            h1.agent_command()
                .args(["--docker-plugin", "/run/plugins/weft.sock"]),
        );
        h1.await_agent();
        assert_eq!(owner(h1, SOCKET), (0o660, 0, 4100));
        assert_eq!(owner(h1, READING), (0o660, 0, 4200));
        // dockerd is root. Its socket comes after the API's.
        let plugin = "/run/plugins/weft.sock";
        soon("Docker's driver", || {
            match h1.host.run(|| Path::new(plugin).exists()) {
                Ok(true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert_eq!(owner(h1, plugin), (0o660, 0, 0));

        let (stranger, _) = weft_as(h1, "4300", "network ls");
        assert_eq!(stranger.code, 5, "{stranger:?}");
        for group in ["`weft`", "`weft-read`"] {
            assert!(stranger.stderr.contains(group), "{stranger:?}");
        }

        for line in [
            "status",
            "network ls",
            "node ls",
            "service ls",
            "node inspect h1",
            "token ls",
        ] {
            let (seen, _) = weft_as(h1, "4200", &format!("{line} --format json"));
            assert_eq!((seen.code, seen.stderr.as_str()), (0, ""), "{line}");
        }
        let (refused, reader) = weft_as(h1, "4200", "network create app");
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("for looking only"), "{refused:?}");
        assert!(refused.stderr.contains("usermod -aG weft "), "{refused:?}");
        for line in ["leave", "token create", "doctor", "node drain h1"] {
            let (refused, _) = weft_as(h1, "4200", line);
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(refused.stderr.contains("for looking only"), "{refused:?}");
        }
        assert_eq!(networks(h1), 0);

        let (made, writer) = weft_as(h1, "4300,4100", "network create app");
        assert_eq!(made.code, 0, "{made:?}");
        assert_eq!(networks(h1), 1);
        let log = h1.log_tail();
        let line = |what: &str, pid: u32| {
            format!("{what} method=POST path=\"/v1/networks\" uid={USER} gid={USER} pid={pid}")
        };
        for expected in [
            line("a change is refused", reader),
            line("a change is asked for", writer),
        ] {
            assert!(log.contains(&expected), "no {expected} in\n{log}");
        }
        assert!(!log.contains("a change is asked for method=GET"), "{log}");

        // Who may look keeps nobody from changing things.
        let crowd = || {
            (0..200)
                .map(|_| UnixStream::connect(READING))
                .collect::<io::Result<Vec<_>>>()
        };
        let crowd = h1.host.run(crowd).unwrap().unwrap();
        h1.weft("network create --internal back");
        h1.weft("network rm back");
        drop(crowd);
        assert_eq!(weft_as(h1, "4200", "network ls").0.code, 0);

        // By number, and a name that is nobody's is said to be.
        h1.end_agent();
        assert!(
            !h1.host
                .run(|| Path::new(SOCKET).exists() || Path::new(READING).exists())
                .unwrap()
        );
        h1.start_agent_with(
            h1.agent_command()
                .args(["--socket-group", "4301", "--read-group", "4302"]),
        );
        h1.await_agent();
        assert_eq!((owner(h1, SOCKET).2, owner(h1, READING).2), (4301, 4302));
        assert_eq!(weft_as(h1, "4100", "network ls").0.code, 5);
        assert_eq!(weft_as(h1, "4302", "network ls").0.code, 0);
        assert_eq!(weft_as(h1, "4301", "network rm app").0.code, 0);
        h1.end_agent();
        let mut wrong = h1.agent_command();
        let ended = h1
            .host
            .exec(wrong.args(["--socket-group", "nosuch"]), COMMAND)
            .unwrap();
        assert!(!ended.status.success());
        assert!(
            ended.stderr.contains("groupadd --system nosuch"),
            "{}",
            ended.stderr
        );
        h1.restart_agent();
        bed.close();
    });
}
