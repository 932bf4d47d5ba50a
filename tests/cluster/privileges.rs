//! What the processes may do: with the capabilities that the units leave them, they do all that agents do.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use netns_harness::{Inside as _, Output};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use weft_tests::slower;

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, has_ebpf, has_root, items, soon, text},
    leftovers::back_to,
    secret::{has_tap, process_of, tunnels},
    traffic::{PORT, Server, answering, call, call_at},
};

const PUBLISHED: u16 = 8080;
const HOST_NAMES: &str = "127.53.53.53";
/// A user of whom the machine knows nothing.
const USER: u32 = 4001;

/// The capabilities that systemd leaves a unit, as `setpriv` calls them.
pub fn capabilities_of(unit: &str) -> Vec<String> {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let text = fs::read_to_string(units.join(unit)).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap_or_else(|| panic!("{unit} bounds no capabilities"));
    let names = line.split_whitespace();
    names
        .map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase())
        .collect()
}

/// The same command with the capabilities of a unit, and `NoNewPrivileges`.
fn as_unit(unit: &str, command: &Command) -> Command {
    let capabilities = capabilities_of(unit);
    let set = capabilities
        .iter()
        .fold("-all".to_owned(), |set, name| set + ",+" + name);
    let mut limited = Command::new("setpriv");
    limited
        .arg(format!("--bounding-set={set}"))
        .args(["--inh-caps=-all", "--no-new-privs"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap());
    }
    limited
}

fn dig(node: &Node, server: &str, name: &str) -> String {
    let mut dig = Command::new("dig");
    dig.args(["+short", &format!("@{server}"), name]);
    node.host.exec(&mut dig, COMMAND).unwrap().stdout
}

/// Shows a namespace where only another user can go, as rootless container engines do, until the closure is done.
fn below_another_user<T>(node: &Node, name: &str, work: impl FnOnce(&str) -> T) -> T {
    let dir = format!("/run/user-{USER}");
    let path = format!("{dir}/{name}");
    node.host
        .run(|| {
            fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
            fs::write(&path, "").unwrap();
            let from = format!("/run/netns/{name}");
            mount(
                Some(from.as_str()),
                path.as_str(),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .unwrap();
            chown(&dir, Some(USER), Some(USER)).unwrap();
        })
        .unwrap();
    let done = work(&path);
    node.host
        .run(|| {
            umount2(path.as_str(), MntFlags::MNT_DETACH).unwrap();
            fs::remove_dir_all(&dir).unwrap();
        })
        .unwrap();
    done
}

fn serving(mut endpoint: Endpoint, name: &str) -> Endpoint {
    endpoint.server = Some(Server::start(&endpoint.sandbox, name));
    endpoint
}

/// Everything that takes privileges: made, used and removed.
fn everything(datapath: &'static str, start: impl Fn(&mut Command) -> Command) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2"]);
    let place = tempfile::tempdir().unwrap();
    for node in bed.nodes() {
        node.end_agent();
        let mut command = node.agent_command();
        command.args(["--health-commands", "--dns-host", HOST_NAMES]);
        node.start_agent_with(&mut start(&mut command));
    }
    bed.nodes().for_each(Node::await_agent);
    bed.all_well();
    let (h1, h2) = (&bed["h1"], &bed["h2"]);
    assert_eq!(h1.json("status")["datapath"]["name"], datapath);
    let [client, web, safe] = ["client", "web-1", "safe-1"].map(|name| h1.host.sandbox(name).unwrap());
    let [far, hidden] = ["web-2", "safe-2"].map(|name| h2.host.sandbox(name).unwrap());
    let before = [h1.traces(), h2.traces()];

    // A check that says what it may do, in the endpoint's namespace.
    let check = place.path().join("check");
    let said = place.path().join("said");
    let text_of = format!(
        "#!/bin/sh\ngrep -E '^(CapPrm|NoNewPrivs)' /proc/self/status > {}\nip -o address show | grep -q 'inet 10\\.1\\.' && exit 3\nexit 0\n",
        said.display()
    );
    fs::write(&check, text_of).unwrap();
    fs::set_permissions(&check, fs::Permissions::from_mode(0o755)).unwrap();

    h1.weft("network create --ipv6 app");
    h2.weft("network create --opt encrypted secret");
    h1.weft(&format!(
        "service create --network app --port {PORT} --publish {PUBLISHED}:{PORT} --health cmd={} --interval 100ms --timeout \
         {}s --retries 1 web",
        check.display(),
        slower(Duration::from_secs(2)).as_secs()
    ));
    bed.everywhere("networks and service", |node| {
        let counts = ["network ls", "service ls"].map(|list| items(&node.json(list)).count());
        if counts == [2, 1] {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    });

    let client = h1.connect(client, "app", "");
    let conf = text(&client.said["dns"]["resolv_conf"]);
    let conf = conf.to_owned();
    assert!(h1.host.run(|| Path::new(&conf).exists()).unwrap());
    // By a process that may do more than the agent.
    let mut sleep = Command::new("sleep");
    let process = web.spawn(sleep.arg("1000"), Output::Discard).unwrap();
    let pid = format!("pid:{}", process.pid());
    let attached = h1.json(&format!("network connect app {pid} --name web-1 --service web"));
    let server = Server::start(&web, "web-1");
    let near = items(&attached["addresses"]).next().map(text).unwrap();
    let near = near.parse::<ipnet::IpNet>().unwrap().addr();
    let far = serving(h2.connect(far, "app", "--service web"), "web-2");
    let vip = h1.vip("web");
    answering(&client.sandbox, vip, 2);
    assert_eq!(call(&client.sandbox, near).unwrap().answer.name, "web-1");

    let may = soon("what the check may do", || match fs::read_to_string(&said) {
        Ok(text) if text.is_empty() => Err("nothing yet".to_owned()),
        read => read.map_err(|error| error.to_string()),
    });
    let ping = bits(&["net_raw".to_owned()]);
    assert_eq!(may, format!("CapPrm:\t{ping:016x}\nNoNewPrivs:\t1\n"));

    // From outside, from the host, and by names at low ports.
    let outside = bed.outsider("outside");
    soon("a published port", || call_at(&outside, h2.address(), PUBLISHED));
    h1.weft("network connect app host");
    soon("from the host", || call_at(&h1.host, vip, PORT));
    soon("a name", || match dig(h1, HOST_NAMES, "web.app.weft.internal") {
        found if found.lines().any(|line| line == vip.to_string()) => Ok(()),
        found => Err(found),
    });

    // Encrypted, with one end below another user's directory.
    let safe = serving(h1.connect(safe, "secret", ""), "safe-1");
    below_another_user(h2, "safe-2", |path| {
        h2.weft(&format!("network connect secret {path} --name safe-2"));
        soon("through a tunnel", || call(&hidden, safe.address()));
        tunnels(h1, 1);
        h2.weft("network disconnect secret safe-2");
    });

    for node in bed.nodes() {
        let doctor = node.try_weft("doctor");
        assert_eq!(doctor.code, 0, "{doctor:?}");
    }
    h1.weft("why web from client");
    for node in [h1, h2] {
        assert_eq!(limits_of(node.agent_pid()), (agents(datapath), false));
    }
    let encrypts = process_of(h1).unwrap().as_raw().cast_unsigned();
    assert_eq!(
        limits_of(encrypts),
        (bits(&capabilities_of("weft-tunnels.service")), false)
    );

    // And all of it goes.
    for line in ["app host", &format!("app {pid}"), "app client", "secret safe-1"] {
        h1.weft(&format!("network disconnect {line}"));
    }
    drop((process, server));
    h2.weft("network disconnect app web-2");
    drop((far, safe));
    h1.weft("service rm web");
    h1.weft("network rm app secret");
    for (name, before) in ["h1", "h2"].into_iter().zip(&before) {
        back_to(&bed, name, before);
    }
    bed.all_well();
    bed.close();
}

/// What an agent keeps, whoever started it.
pub fn agents(datapath: &str) -> u64 {
    let all = capabilities_of("weft.service");
    let at_start = ["chown", "setpcap"];
    let of_broker = ["sys_admin", "sys_ptrace", "dac_read_search", "net_raw"];
    let of_ebpf = ["bpf", "perfmon"];
    let kept = all.into_iter().filter(|name| {
        let name = name.as_str();
        !at_start.contains(&name)
            && !of_broker.contains(&name)
            && (datapath != "nft" || !of_ebpf.contains(&name))
    });
    bits(&kept.collect::<Vec<_>>())
}

/// As the kernel writes them (`linux/capability.h`).
pub fn bits(capabilities: &[String]) -> u64 {
    let bit = |name: &String| match name.as_str() {
        "chown" => 0,
        "dac_read_search" => 2,
        "setpcap" => 8,
        "net_bind_service" => 10,
        "net_admin" => 12,
        "net_raw" => 13,
        "sys_ptrace" => 19,
        "sys_admin" => 21,
        "perfmon" => 38,
        "bpf" => 39,
        other => panic!("which one is {other}?"),
    };
    capabilities.iter().map(|name| 1 << bit(name)).sum()
}

/// What the threads of a process may do at most, and whether programs they run may do more.
pub fn limits_of(pid: u32) -> (u64, bool) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let each = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let of = |status: &str, field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    each.map(|status| {
        let permitted = u64::from_str_radix(&of(&status, "CapPrm"), 16).unwrap();
        (permitted, of(&status, "NoNewPrivs") == "0")
    })
    .reduce(|one, other| (one.0 | other.0, one.1 | other.1))
    .unwrap()
}

#[test]
fn with_the_capabilities_of_its_unit_an_agent_does_everything_on_nft() {
    if has_root() && has_tap() {
        alone(|| everything("nft", |command| as_unit("weft.service", command)));
    }
}

#[test]
fn with_the_capabilities_of_its_unit_an_agent_does_everything_on_ebpf() {
    if has_ebpf() && has_tap() {
        alone(|| everything("ebpf", |command| as_unit("weft.service", command)));
    }
}
