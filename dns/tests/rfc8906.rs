//! RFC 8906, section 8: what every name server has to get right, asked by the real `dig`.

mod support;

use support::{nobody, start};

#[tokio::test]
async fn the_server_passes_the_checks_of_rfc_8906() {
    let running = start(nobody());
    let name = "one.front.weft.internal";
    for (section, args, expected, unexpected) in [
        (
            "8.1.1 is it up",
            "+noedns +noad +norec weft.internal SOA",
            &["NOERROR", "qr aa", "SOA", "ANSWER: 1,"][..],
            &["OPT"][..],
        ),
        (
            "8.1.2 unknown type",
            "+noedns +noad +norec weft.internal TYPE1000",
            &["NOERROR", "ANSWER: 0,"],
            &["OPT"],
        ),
        (
            "8.1.3.1 flags",
            "+noedns +noad +norec +cdflag weft.internal SOA",
            &["NOERROR", "ANSWER: 1,"],
            &["OPT"],
        ),
        (
            "8.1.3.2 reserved flag",
            "+noedns +noad +norec +zflag weft.internal SOA",
            &["NOERROR", "ANSWER: 1,"],
            &["MBZ", "OPT"],
        ),
        (
            "8.1.3.3 recursion",
            "+noedns +noad +rec weft.internal SOA",
            &["NOERROR", " rd", "ANSWER: 1,"],
            &["OPT"],
        ),
        (
            "8.1.4 unknown opcode",
            "+noedns +noad +opcode=15 +norec +header-only",
            &["NOTIMP", "QUERY: 0,"],
            &["OPT"],
        ),
        (
            "8.1.5 TCP",
            "+noedns +noad +norec +tcp weft.internal SOA",
            &["NOERROR", "ANSWER: 1,"],
            &["OPT"],
        ),
        (
            "8.2.1 EDNS",
            "+edns=0 +noad +norec weft.internal SOA",
            &["NOERROR", "EDNS: version: 0", "ANSWER: 1,"],
            &[],
        ),
        (
            "8.2.2 EDNS version 1",
            "+edns=1 +noednsneg +noad +norec weft.internal SOA",
            &["BADVERS", "EDNS: version: 0", "ANSWER: 0,"],
            &[],
        ),
        (
            "8.2.3 unknown option",
            "+edns=0 +noad +norec +ednsopt=100 weft.internal SOA",
            &["NOERROR", "EDNS: version: 0", "ANSWER: 1,"],
            &["OPT=100"],
        ),
        (
            "8.2.4 unknown EDNS flag",
            "+edns=0 +noad +norec +ednsflags=0x40 weft.internal SOA",
            &["NOERROR", "EDNS: version: 0", "ANSWER: 1,"],
            &["MBZ"],
        ),
        (
            "8.2.5 version 1 and a flag",
            "+edns=1 +noednsneg +noad +norec +ednsflags=0x40 weft.internal SOA",
            &["BADVERS", "EDNS: version: 0"],
            &["MBZ"],
        ),
        (
            "8.2.6 version 1 and an option",
            "+edns=1 +noednsneg +noad +norec +ednsopt=100 weft.internal SOA",
            &["BADVERS", "EDNS: version: 0"],
            &["OPT=100"],
        ),
        (
            "8.2.7 truncated",
            "+edns=0 +noad +norec +dnssec +bufsize=512 +ignore tasks.web.front.weft.internal",
            &["NOERROR", " tc", "EDNS: version: 0", "flags: do"],
            &[],
        ),
        (
            "8.2.8 DO",
            "+edns=0 +noad +norec +dnssec weft.internal SOA",
            &["NOERROR", "flags: do", "ANSWER: 1,"],
            &[],
        ),
        (
            "8.2.9 version 1 and DO",
            "+edns=1 +noednsneg +noad +norec +dnssec weft.internal SOA",
            &["BADVERS", "EDNS: version: 0"],
            &[],
        ),
        (
            "8.2.10 several options",
            "+edns=0 +noad +norec +cookie +nsid +expire +subnet=0.0.0.0/0 weft.internal SOA",
            &["NOERROR", "EDNS: version: 0", "ANSWER: 1,"],
            &["NSID", "EXPIRE"],
        ),
        (
            "no class but IN",
            "+noedns CH TXT version.bind",
            &["REFUSED"],
            &[],
        ),
        ("an answer after all this", name, &["10.32.0.11"], &[]),
    ] {
        let shown = running.dig(args).await;
        for text in expected {
            assert!(shown.contains(text), "{section}: no `{text}` in\n{shown}");
        }
        for text in unexpected {
            assert!(!shown.contains(text), "{section}: `{text}` in\n{shown}");
        }
    }
}
