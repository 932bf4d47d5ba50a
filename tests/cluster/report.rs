//! `weft report` has what the other commands show, and nothing that is nobody's business.

use std::{collections::BTreeMap, path::Path, process::Command};

use super::bed::{Bed, alone, soon};

/// The texts of an archive's files.
fn unpacked(archive: &Path) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let unpack = Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("--strip-components=1")
        .current_dir(dir.path())
        .status();
    assert!(unpack.unwrap().success());
    let files = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
    files
        .map(|file| {
            let name = file.file_name().into_string().unwrap();
            (name, std::fs::read_to_string(file.path()).unwrap())
        })
        .collect()
}

#[test]
fn a_report_has_everything_but_secrets_even_without_an_agent() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        for node in bed.nodes() {
            node.kill_agent();
            node.start_agent_with(node.agent_command().arg("--health-commands"));
            node.await_agent();
        }
        let h1 = &bed["h1"];
        // An agent that has just started hears that another is alive before it hears what that one is called.
        soon("both by name", || {
            let nodes = h1.weft("node ls");
            match nodes.contains("h1") && nodes.contains("h2") {
                true => Ok(()),
                false => Err(nodes),
            }
        });
        h1.weft("network create --label owner=somebody-secret app");
        h1.weft("service create --network app --port 80 --health cmd=curl-with-a-password web");
        let client = h1.connected("client", "app", "");
        let token = h1.join_command("");
        let dir = tempfile::tempdir().unwrap();
        let report = |name: &str| {
            let path = dir.path().join(name);
            let ended = h1.try_weft(&format!("report --passive -o {}", path.display()));
            assert_eq!(ended.code, 0, "{ended:?}");
            unpacked(&path)
        };
        let files = report("well.tar.gz");
        for name in [
            "README",
            "host.json",
            "version.json",
            "status.json",
            "nodes.json",
            "networks.json",
        ] {
            assert!(files.contains_key(name), "{name}: {:?}", files.keys());
        }
        assert!(!files.contains_key("errors.txt"), "{}", files["errors.txt"]);
        let all: String = files.values().map(String::as_str).collect();
        for known in [
            "\"app\"",
            "\"web\"",
            "\"client\"",
            "\"h2\"",
            "cmd=removed",
            "network.created",
        ] {
            assert!(all.contains(known), "{known}");
        }
        let token = token.split_whitespace().find(|word| word.len() > 40).unwrap();
        for secret in ["somebody-secret", "curl-with-a-password", token] {
            assert!(!all.contains(secret), "{secret}");
        }
        // What is there is not written over.
        let again = h1.try_weft(&format!("report -o {}", dir.path().join("well.tar.gz").display()));
        assert_eq!(again.code, 1, "{again:?}");
        assert!(again.stderr.contains("-o FILE"), "{again:?}");
        h1.kill_agent();
        let files = report("dead.tar.gz");
        assert!(
            files["errors.txt"].contains("status: "),
            "{}",
            files["errors.txt"]
        );
        assert!(files["host.json"].contains("kernel"));
        h1.start_agent();
        h1.await_agent();
        drop(client);
        bed.close();
    });
}
