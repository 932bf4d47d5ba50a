//! Every failure is a sentence with a way out, and has the exit code that the manual says.

use std::{
    fmt::Write as _,
    net::{TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
};

use netns_harness::{Inside as _, Isolation, Output};
use weft_tests::weft_binary;

use super::{
    bed::{Bed, COMMAND, Node, alone, items, soon, text},
    node::Ended,
};

/// What was typed and what came back.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    fn about(&mut self, what: &str) {
        let _ = writeln!(self.0, "## {what}\n");
    }

    fn note(&mut self, prompt: &str, line: &str, ended: &Ended) {
        // What takes its time is announced, which depends on the machine.
        let said = ended.stderr.lines().filter(|line| !line.contains(" …"));
        let said: String = said.map(|line| format!("{line}\n")).collect();
        let _ = writeln!(
            self.0,
            "{prompt} weft {line}\n{}{said}[{}]\n",
            ended.stdout, ended.code
        );
        assert_ne!(ended.code, 0, "{line}");
    }

    fn refused(&mut self, node: &Node, line: &str) {
        self.note(&format!("{}#", node.host.name()), line, &node.try_weft(line));
    }

    /// The same of a command that is given whole.
    fn fails(&mut self, node: &Node, line: &str, command: &mut Command) {
        let process = node
            .host
            .spawn(command.env("WEFT_LOG", "off"), Output::Keep)
            .unwrap();
        let status = process.wait(COMMAND).unwrap();
        let ended = soon("its last words", || {
            let (stdout, stderr) = (process.stdout(), process.stderr());
            if stderr.is_empty() {
                return Err("nothing");
            }
            Ok(Ended {
                code: status.code().unwrap_or(-1),
                stdout,
                stderr,
            })
        });
        self.note(&format!("{}#", node.host.name()), line, &ended);
    }
}

/// Replaces what differs from run to run: tokens, ids, VNIs, inodes, folders.
fn masked(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_/.".contains(c);
    let mut masked = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let (between, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        masked.push_str(between);
        let is_id = matches!(word.len(), 12 | 32 | 64) && word.bytes().all(|b| b.is_ascii_hexdigit());
        masked.push_str(match word {
            _ if word.starts_with("weft1-") && word.len() > 20 => "TOKEN",
            _ if word.starts_with("/tmp/") || word.starts_with("/dev/shm/") => "FOLDER",
            _ if is_id => "ID",
            // A node's name is forgotten when its good-bye has arrived.
            "h3" if after.starts_with("` has joined") => "ID",
            // VNIs are from one block, and inode numbers of namespaces are the largest numbers here.
            _ if word.parse().is_ok_and(|n: u64| n >> 20 == 1 || n >> 31 == 1) => "NUMBER",
            _ => word,
        });
        rest = after;
    }
    masked + rest
}

fn check(name: &str, said: &Transcript) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, masked(&said.0)));
}

#[test]
fn every_refusal_is_a_sentence_with_a_way_out() {
    alone(|| {
        let mut bed = Bed::cluster(&["h1", "h2"]);
        bed.add_hosts(&["h3", "h4"]);
        let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|name| &bed[name]);
        let mut said = Transcript::default();

        said.about("in no cluster");
        said.refused(h3, "network ls");
        said.refused(h3, "network create app");
        said.refused(h3, "leave");

        said.about("joining");
        let token =
            |node: &Node, flags: &str| text(&node.json(&format!("token create {flags}"))["token"]).to_owned();
        h4.weft("init");
        let (good, foreign) = (token(h1, ""), token(h4, ""));
        said.refused(h3, "join --token SWMTKN-1-x 10.1.0.1:7946");
        said.refused(
            h3,
            &format!("join --token {} 10.1.0.1:7946", &good[..good.len() - 3]),
        );
        said.refused(h3, &format!("join --token {foreign} 10.1.0.1:7946"));
        said.refused(h3, &format!("join --token {good} 10.1.0.4:7946"));
        said.refused(h3, &format!("join --token {good} 10.1.0.1:9"));
        said.refused(h3, &format!("join --token {good} nowhere.invalid:7946"));
        let short = h1.json("token create --ttl 1s");
        soon("the end of a token", || {
            let all = h1.json("token ls");
            let is_there = items(&all).any(|token| token["id"] == short["id"]);
            if is_there { Err(all) } else { Ok(()) }
        });
        let short = text(&short["token"]);
        said.refused(h3, &format!("join --token {short} 10.1.0.1:7946"));
        said.refused(h2, &format!("join --token {good} 10.1.0.1:7946"));
        said.refused(h2, "init");
        let listener = h3
            .host
            .run(|| TcpListener::bind("10.1.0.3:7946"))
            .unwrap()
            .unwrap();
        said.refused(h3, &format!("join --token {good} 10.1.0.1:7946"));
        said.refused(h3, "init");
        drop(listener);
        h3.weft(&format!("join --token {good} 10.1.0.1:7946"));
        h3.weft("leave");
        said.refused(h3, &format!("join --token {good} 10.1.0.1:7946"));

        said.about("networks");
        h1.weft("network create --subnet 10.7.0.0/24 --aux-address printer=10.7.0.9 app");
        h1.weft("network create --subnet 10.8.0.0/30 tiny");
        bed.on(&["h1", "h2"], "both networks", |node| {
            match items(&node.json("network ls")).count() {
                2 => Ok(()),
                count => Err(count),
            }
        });
        said.refused(h2, "network create app");
        said.refused(h1, "network create --subnet 10.7.0.128/25 other");
        said.refused(h4, "network create --subnet 10.1.0.0/16 other");
        said.refused(h1, "network create --subnet 10.9.0.0/31 other");
        said.refused(h1, "network create --subnet 10.9.0.7/24 other");
        said.refused(
            h1,
            "network create --subnet 10.9.0.0/24 --gateway 10.10.0.1 other",
        );
        said.refused(
            h1,
            "network create --subnet 10.9.0.0/24 --ip-range 10.9.1.0/25 other",
        );
        said.refused(h1, "network create --opt mtu=9000 other");
        said.refused(h1, "network create --opt colour=red other");
        said.refused(h1, "network create under_score.and.dots");
        said.refused(h2, "network update --subnet-add 10.9.0.0/24 app");
        said.refused(h1, "network update --subnet-add 10.7.0.0/25 app");
        said.refused(h1, "network update --subnet-add fd09::/64 app");
        said.refused(h1, "network inspect nothing");
        said.refused(h1, "network rm nothing");

        said.about("endpoints");
        let _a = h1.connected("a", "app", "--ip 10.7.0.20");
        let _b = h1.connected("b", "tiny", "");
        for node in [h1, h2] {
            node.host.sandbox("free").unwrap();
        }
        bed.on(&["h1", "h2"], "the endpoint", |node| {
            match items(&node.json("network inspect tiny")["endpoints"]).count() {
                1 => Ok(()),
                count => Err(count),
            }
        });
        said.refused(h1, "network connect tiny free");
        said.refused(h2, "network connect tiny free");
        said.refused(h1, "network connect app free --ip 10.7.0.20");
        said.refused(h2, "network connect app free --ip 10.7.0.20");
        said.refused(h1, "network connect app free --ip 10.7.0.1");
        said.refused(h1, "network connect app free --ip 10.7.0.9");
        said.refused(h1, "network connect app free --ip 10.7.0.255");
        said.refused(h1, "network connect app free --ip 10.8.0.2");
        said.refused(h1, "network connect app free --ip6 fd00::9");
        said.refused(h1, "network connect app free --mac 01:00:5e:00:00:01");
        said.refused(h1, "network connect app nowhere");
        said.refused(h1, "network connect app pid:99999999");
        said.refused(h1, "network connect app /etc/passwd");
        said.refused(h1, "network connect app a");
        said.refused(h1, "network connect app free --name a");
        said.refused(h1, "network connect app free --service web");
        said.refused(h1, "network connect nothing free");
        said.refused(h1, "network disconnect app free");
        said.refused(h2, "network disconnect app a");
        said.refused(h1, "network rm app");

        said.about("services");
        h1.weft("service create --network app --port 80 web");
        said.refused(h1, "service create --network app web");
        said.refused(h1, "service create --network nothing web");
        said.refused(h1, "service create --network app --port 80 --port 80:8080 twice");
        said.refused(h1, "service update --lb best web");
        said.refused(h1, "service inspect nothing");
        h1.weft("network disconnect app a");
        said.refused(h1, "network rm app");

        said.about("nodes");
        said.refused(h1, "node rm h2");
        said.refused(h1, "node rm h1");
        said.refused(h1, "node inspect nothing");

        said.about("agents that do not start");
        let agent = |line: &str| {
            let mut command = Command::new(weft_binary());
            command.args(line.split_whitespace());
            command
        };
        let line = "agent --data-dir /run/other";
        said.fails(h1, line, &mut agent(line));
        let data = h1.data_dir().display().to_string();
        let line = format!("agent --socket /run/other.sock --data-dir {data}");
        said.fails(h1, &line, &mut agent(&line));
        let fourth = h4.host.run(|| UdpSocket::bind("0.0.0.0:4789")).unwrap().unwrap();
        h4.weft("network create app");
        h4.host.sandbox("free").unwrap();
        said.refused(h4, "network connect app free");
        drop(fourth);

        said.about("agents that are not there");
        said.refused(h1, "--host unix:///run/nothing.sock status");
        h4.kill_agent();
        said.refused(h4, "status");
        let taken = h4.host.run(|| UdpSocket::bind("10.1.0.4:7946")).unwrap().unwrap();
        said.fails(h4, "agent --data-dir DATA", &mut h4.agent_command());
        drop(taken);

        check("refusals", &said);

        if Isolation::current().is_some_and(|isolation| isolation.user_namespace) {
            println!("there is nobody but root in this user namespace: permissions are not tested");
        } else {
            let mut said = Transcript::default();
            // Nobody may not even look into the folder where the program is built.
            let dir = tempfile::tempdir().unwrap();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
            let program = dir.path().join("weft");
            std::fs::copy(weft_binary(), &program).unwrap();
            let nobody = |line: &str| {
                let mut command = Command::new(&program);
                command.args(line.split_whitespace()).uid(65_534).gid(65_534);
                command
            };
            said.fails(h1, "status", &mut nobody("status"));
            let place = dir.path().join("nobody").display().to_string();
            let line = format!("agent --data-dir {place} --run-dir {place} --advertise 10.1.0.1");
            said.fails(h1, &line, &mut nobody(&line));
            check("refusals_to_nobody", &said);
        }
        bed.close();
    });
}
