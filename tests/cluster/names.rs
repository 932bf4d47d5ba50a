//! What agents are told about names beside those of their networks.

use std::{net::IpAddr, process::Command};

use netns_harness::{Host, Inside, Output};

use super::{
    bed::{Bed, COMMAND, Node, alone, soon},
    services::Upstream,
};

const HOST_NAMES: &str = "127.53.53.53";

pub fn dig(from: &impl Inside, server: &str, words: &str) -> String {
    let mut command = Command::new("dig");
    command
        .args(["+time=2", "+tries=3", &format!("@{server}")])
        .args(words.split_whitespace());
    let finished = from.exec(&mut command, COMMAND).unwrap();
    finished.stdout
}

fn address(host: &Host) -> IpAddr {
    host.interface("eth0").unwrap().addresses().unwrap()[0].addr()
}

/// The agent of a host, told more.
fn restart_with(node: &Node, args: &[&str]) {
    node.kill_agent();
    node.start_agent_with(node.agent_command().args(args));
    node.await_agent();
}

#[test]
fn names_of_a_split_domain_are_asked_of_its_servers_and_told_to_nobody_else() {
    alone(|| {
        let bed = Bed::cluster(&["h1"]);
        let h1 = &bed["h1"];
        let [usual, corp] = ["usual", "corp"].map(|name| bed.outsider(name));
        let resolver = Upstream::start(&usual, "example.test", "192.0.2.80");
        let of_corp = Upstream::start(&corp, "corp.test", "192.0.2.81");
        h1.host
            .set_resolv_conf(&format!("nameserver {}\n", address(&usual)))
            .unwrap();
        restart_with(h1, &["--dns-forward", &format!("corp.test={}", address(&corp))]);
        h1.weft("network create app");
        let client = h1.connected("c", "app", "");
        let dig = |words: &str| dig(&client.sandbox, "169.254.53.53", words);

        assert_eq!(dig("+short www.net.example.test"), "192.0.2.80\n");
        assert_eq!(dig("+short www.net.corp.test"), "192.0.2.81\n");
        assert_eq!((resolver.asked(), of_corp.asked()), (1, 1));
        let status = h1.weft("status");
        let says = format!("corp.test asked of {}:53 only", address(&corp));
        assert!(status.contains(&says), "{status}");
        // Its server is gone: nobody else hears of its names.
        drop(of_corp);
        let shown = dig("+time=6 +tries=1 other.net.corp.test");
        assert!(shown.contains("SERVFAIL"), "{shown}");
        assert_eq!(resolver.asked(), 1);
        drop((resolver, client));
        bed.close();
    });
}

#[test]
fn programs_of_the_host_resolve_names_when_it_was_asked_to() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let [h1, h2] = [&bed["h1"], &bed["h2"]];
        let outside = bed.outsider("outside");
        let resolver = Upstream::start(&outside, "example.test", "192.0.2.80");
        h1.weft("network create app");
        h1.weft("network create far");
        h1.weft("service create --network app web");
        let web = h1.replica("web-1", "app", "--service web");
        let db = h2.connected("db", "far", "");
        let vip = h1.vip("web").to_string();

        let silent = dig(&h1.host, HOST_NAMES, "+time=1 +tries=1 web.app.weft.internal");
        assert!(
            silent.contains("no servers could be reached") || silent.contains("refused"),
            "not asked to: {silent}"
        );
        restart_with(h1, &["--dns-host", HOST_NAMES]);
        soon("the service by name", || {
            match dig(&h1.host, HOST_NAMES, "+short web.app.weft.internal") {
                found if found == format!("{vip}\n") => Ok(()),
                found => Err(found),
            }
        });
        let pointer = dig(&h1.host, HOST_NAMES, &format!("+short +tcp -x {}", web.address()));
        assert_eq!(pointer, "web-1.app.weft.internal.\n");
        for (words, code) in [
            ("nosuch.app.weft.internal", "NXDOMAIN"),
            // On the other host alone.
            ("db.far.weft.internal", "NXDOMAIN"),
            ("www.net.example.test", "REFUSED"),
            ("web", "REFUSED"),
        ] {
            let shown = dig(&h1.host, HOST_NAMES, words);
            assert!(shown.contains(&format!("status: {code}")), "{words}: {shown}");
        }
        assert_eq!(resolver.asked(), 0);
        // As --help has it: the C library's resolver with two servers, and dnsmasq.
        h1.host
            .set_resolv_conf(&format!(
                "nameserver {HOST_NAMES}\nnameserver {}\n",
                address(&outside)
            ))
            .unwrap();
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--user=root",
                "--group=",
            ])
            .args([
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
                "--listen-address=127.0.0.99",
            ])
            .arg(format!("--server=/weft.internal/{HOST_NAMES}"))
            .arg(format!("--server={}", address(&outside)));
        let dnsmasq = h1.host.spawn(&mut command, Output::Keep).unwrap();
        for (name, expected) in [
            ("web.app.weft.internal", vip.as_str()),
            ("www.net.example.test", "192.0.2.80"),
        ] {
            let mut getent = Command::new("getent");
            getent.args(["ahostsv4", name]);
            let found = h1
                .host
                .exec(&mut getent, COMMAND)
                .unwrap()
                .success()
                .unwrap()
                .stdout;
            assert!(found.starts_with(expected), "{name}: {found}");
            soon(format!("{name} from dnsmasq"), || {
                match dig(&h1.host, "127.0.0.99", &format!("+short {name}")) {
                    found if found == format!("{expected}\n") => Ok(()),
                    found => Err(found),
                }
            });
        }
        // Nobody else: not an endpoint, whose loopback is another, and not a program elsewhere.
        for other in [
            dig(&web.sandbox, HOST_NAMES, "+time=1 +tries=1 web.app.weft.internal"),
            {
                let at = h1.address().to_string();
                dig(&outside, &at, "+time=1 +tries=1 web.app.weft.internal")
            },
        ] {
            assert!(!other.contains(&vip), "{other}");
        }
        // Only what was named, wherever its endpoints are.
        restart_with(h1, &["--dns-host", HOST_NAMES, "--dns-host-network", "far"]);
        soon("a name of the network that was named", || {
            let found = dig(&h1.host, HOST_NAMES, "+short db.far.weft.internal");
            if found.is_empty() { Err("nothing") } else { Ok(()) }
        });
        let hidden = dig(&h1.host, HOST_NAMES, "web.app.weft.internal");
        assert!(hidden.contains("NXDOMAIN"), "{hidden}");
        let status = h1.weft("status");
        assert!(status.contains("of far, at 127.53.53.53:53"), "{status}");
        drop((resolver, dnsmasq, web, db));
        bed.close();
    });
}
