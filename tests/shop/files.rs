//! Lab files and command lines that cannot be used: a sentence, where it is wrong, and an exit code.

use crate::bed::{User, path, shop_with};

#[test]
fn a_file_that_cannot_be_used_is_refused_with_line_and_column() {
    let me = User::me();
    let front = "networks: [front]\n    deploy: { replicas: 3 }";
    for (text, wrong) in [
        (String::new(), "1:1: the file is empty"),
        ("services: {}\n".to_owned(), "1:11: `services` is empty"),
        (
            "services:\n  web: [1,\n".to_owned(),
            "3:1: not YAML: while parsing a node, did not find expected node content",
        ),
        (
            "services:\n\tweb: {}\n".to_owned(),
            "2:2: not YAML: tabs disallowed within this context (block indentation)",
        ),
        (
            shop_with(front, "networks: [frnt]"),
            "8:16: service `web` is on network `frnt`, which the file does not define; did you mean `front`?",
        ),
        (
            shop_with(
                "replicas: 3 }\n    x-weft: { builtin: whoami, lb: rr",
                "replicas: many }\n    x-weft: { builtin: whoami",
            ),
            "9:25: `replicas` in `deploy` of service `web` must be a whole number from 0 to 1000, not `many`",
        ),
        (
            shop_with("lb: rr", "lb: fast"),
            "10:36: `lb` in `x-weft` of service `web` cannot be `fast`: expected rr, wrr, lc, maglev",
        ),
        (
            shop_with("  client:", "  web:"),
            "25:3: `web` is given twice; the first is at 7:3",
        ),
        (
            shop_with("hostname == h1", "hostname == h9"),
            "29:23: the lab has no host `h9`; did you mean `h1`?",
        ),
        (
            shop_with(
                "    driver: overlay\n    internal",
                "    driver: overly\n    internal",
            ),
            "37:13: `driver` of network `back` cannot be `overly`; did you mean `overlay`?",
        ),
        (
            shop_with("builtin: idle", "bultin: idle"),
            "30:15: unknown field `bultin` in `x-weft` of service `client`; did you mean `builtin`?",
        ),
    ] {
        let file = me.file("wrong.yaml", &text);
        for verb in ["up", "graph"] {
            let ended = me.run(&["lab", verb, path(&file)]);
            assert_eq!(
                ended.stderr,
                format!("error: {}:{wrong}\n", file.display()),
                "{text}"
            );
            assert_eq!(ended.code, 2);
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let me = User::me();
    let missing = me.dir.path().join("missing.yaml");
    let latin = me.dir.path().join("latin.yaml");
    std::fs::write(&latin, b"name: caf\xe9\n").unwrap();
    for (file, code, why) in [
        (missing.as_path(), 3, "No such file or directory"),
        (me.dir.path(), 2, "Is a directory"),
        (&latin, 2, "not contain valid UTF-8"),
    ] {
        for verb in ["up", "graph"] {
            let ended = me.run(&["lab", verb, path(file)]);
            assert_eq!(ended.code, code, "{ended:?}");
            assert!(
                ended.stderr.contains(path(file)) && ended.stderr.contains(why),
                "{ended:?}"
            );
        }
    }
}

#[test]
fn names_that_cannot_be_are_refused_with_a_way_out() {
    let me = User::me();
    let file = me.file("my shop.yaml", "services: { a: { x-weft: { builtin: idle } } }\n");
    let long = "x".repeat(64);
    for name in ["", "a b", "../up", "a/b", ".", "-x", "ä", &long] {
        let ended = me.run(&["lab", "up", path(&file), &format!("--name={name}")]);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(
            ended.stderr.contains("cannot be the name of a lab") && ended.stderr.contains("help:"),
            "{ended:?}"
        );
        assert_eq!(me.run(&["lab", "down", "--", name]).code, 2);
    }
    // Where the name came from the file's name, that is said.
    let ended = me.run(&["lab", "up", path(&file)]);
    assert!(ended.code == 2 && ended.stderr.contains("--name"), "{ended:?}");

    for args in [
        &["lab", "down", "no-such-lab"][..],
        &["lab", "inspect", "no-such-lab"],
        &["lab", "kill", "no-such-lab", "h1"],
    ] {
        let ended = me.run(args);
        assert!(
            ended.code == 3 && ended.stderr.contains("weft lab ls"),
            "{ended:?}"
        );
    }
}

#[test]
fn a_lab_says_what_it_does_not_have_and_passes_exit_codes_on() {
    let me = User::me();
    let file = me.file(
        "tiny.yaml",
        "services: { a: { x-weft: { builtin: whoami } } }\nx-weft: { hosts: [h1] }\n",
    );
    let lab = me.up(&file);
    for (ended, code, said) in [
        (lab.exec("a-2", &["true"]), 3, "has no host or replica `a-2`"),
        (lab.lab("kill", &["a-1"]), 3, "has no host `a-1`"),
        (
            lab.exec("a-1", &["no-such-program"]),
            127,
            "could not execute no-such-program in sandbox a-1 on host h1",
        ),
        (lab.exec("a-1", &["/etc/passwd"]), 126, "Permission denied"),
        (
            lab.exec("a-1", &["weft", "status"]),
            3,
            "help: ask a host: weft lab exec",
        ),
        (lab.exec("a-1", &["weft", "--version"]), 0, ""),
        (lab.exec("a-1", &["sh", "-c", "exit 42"]), 42, ""),
        (lab.exec("h1", &["sh", "-c", "kill -9 $$"]), 137, ""),
        (
            lab.exec("h1", &["sh", "-c", "weft status >&2"]),
            0,
            "1 of 1 nodes alive",
        ),
        (
            lab.lab("call", &["a-1", "http://b/"]),
            1,
            "1 of 1 calls to http://b/ had no answer",
        ),
        (
            lab.lab("call", &["a-1", "http://a:81/", "--timeout", "1s"]),
            1,
            "had no answer",
        ),
        (lab.lab("call", &["a-1", "https://a/"]), 2, "only http://"),
        (
            lab.lab("call", &["a-1", "http://a/", "--timeout", "0s"]),
            2,
            "500ms",
        ),
        (
            lab.lab("call", &["a-1", "http://a/", "--times", "0"]),
            2,
            "--times <N>",
        ),
    ] {
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
    lab.down();
}
