use super::*;
use crate::lab::{
    model::Workload,
    resolve::{Topology, resolve},
};

fn error(text: &str) -> String {
    match parse("lab.yaml", text) {
        Ok((lab, _)) => panic!("the file was accepted: {lab:?}"),
        Err(error) => error.to_string(),
    }
}

/// A file with one service, whose body is `body`.
fn service(body: &str) -> String {
    let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
    format!("services:\n  web:\n{body}")
}

fn notes(text: &str) -> Vec<String> {
    parse("lab.yaml", text)
        .expect("the file is right")
        .1
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn json(topology: &Topology) -> String {
    serde_json::to_string_pretty(topology).unwrap()
}

#[test]
fn the_example_resolves_as_documented() {
    let (lab, notes) = parse(
        "shop.yaml",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop.yaml")),
    )
    .unwrap();
    assert_eq!(notes, []);
    insta::assert_snapshot!("shop", json(&resolve(&lab, "shop")));
}

#[test]
fn every_feature_of_a_file_arrives() {
    let (lab, notes) = parse("full.yaml", include_str!("../testdata/full.yaml")).unwrap();
    insta::assert_snapshot!("full", json(&resolve(&lab, "full")));
    let notes: Vec<_> = notes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("full-notes", notes.join("\n"));
}

#[test]
fn an_unknown_field_names_its_place_and_the_likely_word() {
    assert_eq!(
        error(&service("comand: sleep 1\n")),
        "lab.yaml:3:5: unknown field `comand` in service `web`; did you mean `command`?"
    );
    assert_eq!(
        error(&service("command: sleep 1\ndeploy:\n  replica: 2\n")),
        "lab.yaml:5:7: unknown field `replica` in `deploy` of service `web`; did you mean `replicas`?"
    );
    assert_eq!(
        error("servces: {}\n"),
        "lab.yaml:1:1: unknown field `servces` in the lab file; did you mean `services`?"
    );
    assert_eq!(
        error(&service("x-wft: {}\n")),
        "lab.yaml:3:5: unknown field `x-wft` in service `web`; did you mean `x-weft`?"
    );
    assert_eq!(
        error(&service("zebra: 1\n")),
        "lab.yaml:3:5: unknown field `zebra` in service `web`"
    );
}

#[test]
fn what_is_not_built_is_refused_with_a_sentence() {
    for (body, expected) in [
        ("volumes: [x]", "`volumes` of service `web` is refused"),
        (
            "command: echo ${HOME}",
            "lab.yaml:3:14: `command` of service `web` uses a variable",
        ),
        (
            "command: x\ndeploy: { mode: global }",
            "`global` is not built yet",
        ),
        (
            "command: x\ndeploy: { placement: { constraints: [node.role == manager] } }",
            "only `node.hostname` is",
        ),
        (
            "image: nginx",
            "lab.yaml:2:3: service `web` has nothing to run: give it `command`",
        ),
    ] {
        let found = error(&service(body));
        assert!(found.contains(expected), "{body}: {found}");
    }
}

#[test]
fn wrong_values_are_refused_where_they_stand() {
    let whoami = "x-weft: { builtin: whoami }\n";
    for (text, expected) in [
        (service("command: [sleep, 5"), "not YAML"),
        (
            service("command: \"sleep '5\""),
            "lab.yaml:3:14: `command` of service `web` has a quote that does not end",
        ),
        (
            service("x-weft: { builtin: whoam }"),
            "cannot be `whoam`; did you mean `whoami`?",
        ),
        (
            service("x-weft: { builtin: whoami, lb: fastest }"),
            "cannot be `fastest`: expected rr, wrr, lc, maglev",
        ),
        (
            service(&format!("{whoami}command: x")),
            "has both a builtin and a command",
        ),
        (
            service(&format!("{whoami}networks: [front]")),
            "lab.yaml:4:16: service `web` is on network `front`, which the file does not define",
        ),
        (
            service(&format!("{whoami}deploy: {{ replicas: many }}")),
            "must be a whole number from 0 to 1000, not `many`",
        ),
        (
            service(&format!("{whoami}deploy: {{ replicas: 1001 }}")),
            "must be a whole number from 0 to 1000, not 1001",
        ),
        (
            service(&format!("{whoami}deploy: {{ replicas: 2 }}")) + "x-weft: { hosts: [h1, web-2] }\n",
            "service `web` has a replica `web-2`, and a host has that name",
        ),
        (
            service(whoami).replace("web", &"w".repeat(62)),
            "-1` would have more than 63 letters in its name",
        ),
        (
            service("x-weft: { builtin: whoami, hosts: [h9] }"),
            "the lab has no host `h9`; did you mean `h1`?",
        ),
        (
            service(&format!(
                "{whoami}deploy: {{ placement: {{ constraints: [node.hostname==h1, node.hostname!=h1] }} }}"
            )),
            "leaves service `web` no host to run on",
        ),
        ("services: {}\n".into(), "`services` is empty"),
        ("name: x\n".into(), "has no `services`"),
        (
            "name: a/b\nservices: { w: { command: x } }\n".into(),
            "lab.yaml:1:7: `a/b` cannot be the name of a lab",
        ),
        (
            "- services\n".into(),
            "the lab file must be a mapping, and here is a list",
        ),
    ] {
        let found = error(&text);
        assert!(found.contains(expected), "{text}: {found}");
    }
}

#[test]
fn ports_are_read_in_both_forms() {
    let publish = |body: &str| {
        let text = service(&format!("command: x\n{body}"));
        let lab = parse("lab.yaml", &text).map_err(|error| error.to_string())?.0;
        let shown = lab.services[0].publish.iter().map(ToString::to_string);
        Ok::<_, String>(shown.collect::<Vec<_>>())
    };
    let long = "{ target: 53, published: \"5353\", protocol: udp, mode: host, host_ip: ::1 }";
    assert_eq!(
        publish(&format!("ports: [\"8080:80\", 127.0.0.1:8443:443/tcp, {long}]")),
        Ok(vec![
            "8080:80/tcp".to_owned(),
            "127.0.0.1:8443:443/tcp".to_owned(),
            "[::1]:5353:53/udp,mode=host".to_owned()
        ])
    );
    for (body, why) in [
        (
            "ports: [80]",
            "lab.yaml:4:13: `ports` of service `web`: `80` does not say how to publish a port",
        ),
        ("ports: [8000-8010:80]", "ranges are not built yet"),
        ("ports: [{ target: 80 }]", "needs both `published` and `target`"),
        (
            "ports: [{ target: 80, published: 80, mode: hosts }]",
            "did you mean `host`?",
        ),
        ("ports: [{ targets: 80 }]", "did you mean `target`?"),
    ] {
        let error = publish(body).unwrap_err();
        assert!(error.contains(why), "{body}: {error}");
    }
    let inner = "services:\n  web:\n    command: x\n    ports: [8080:80]\n    networks: [in]\nnetworks:\n  in: { internal: true }\n";
    let error = parse("lab.yaml", inner).unwrap_err().to_string();
    assert!(
        error.contains("lab.yaml:4:12") && error.contains("are internal"),
        "{error}"
    );
}

#[test]
fn ports_lead_into_the_first_network_that_is_not_internal() {
    let text = "services:\n  web:\n    command: x\n    ports: [8080:80]\n    networks: [in, one, two]\n\
                networks:\n  in: { internal: true }\n  one:\n  two:\n";
    let plan = resolve(&parse("lab.yaml", text).unwrap().0, "lab");
    let publish: Vec<_> = plan
        .services
        .iter()
        .map(|one| (&*one.network, one.publish.len()))
        .collect();
    assert_eq!(publish, [("in", 0), ("one", 1), ("two", 0)]);
}

#[test]
fn a_healthcheck_is_composes_and_x_weft_says_what_else_is_tried() {
    let health = |body: &str| {
        let lab = parse("lab.yaml", &service(&format!("command: x\n{body}")))
            .unwrap()
            .0;
        lab.services[0].health.as_ref().map(ToString::to_string)
    };
    let times = "interval: 1m30s, timeout: 3s, retries: 5, start_period: 10s";
    let shown = "every 1m 30s, 3s at most, 5 failures in a row, not counted in its first 10s";
    for (body, expected) in [
        ("", None),
        ("healthcheck: {}", None),
        ("healthcheck: { disable: true, test: x }", None),
        ("healthcheck: { test: [NONE] }", None),
        (
            "healthcheck: { test: curl -f http://localhost || exit 1 }",
            Some("cmd=curl -f http://localhost || exit 1, every 5s, 2s at most, 3 failures in a row".into()),
        ),
        (
            &format!("healthcheck: {{ test: [CMD-SHELL, 'a && b'], {times} }}"),
            Some(format!("cmd=a && b, {shown}")),
        ),
        (
            &format!("healthcheck: {{ test: [CMD, echo, 'a b'], {times} }}"),
            Some(format!("cmd=echo 'a b', {shown}")),
        ),
        (
            &format!("healthcheck: {{ test: [CMD, curl, x], {times} }}\nx-weft: {{ health: http=/ready }}"),
            Some(format!("http=/ready, {shown}")),
        ),
        (
            "x-weft: { health: tcp }",
            Some("tcp, every 5s, 2s at most, 3 failures in a row".into()),
        ),
    ] {
        assert_eq!(health(body), expected, "{body}");
    }
    for (body, expected) in [
        ("healthcheck: { test: [curl, x] }", "must be a line, [CMD, …]"),
        ("healthcheck: { tests: x }", "did you mean `test`?"),
        (
            "healthcheck: { test: x, interval: 5 }",
            "must be a time such as 10s, not `5`",
        ),
        (
            "healthcheck: { test: x, interval: 1ms }",
            "lab.yaml:4:18: the health check of service `web` cannot have an interval",
        ),
        ("x-weft: { health: ftp }", "`ftp` is not a health check"),
    ] {
        let found = error(&service(&format!("command: x\n{body}")));
        assert!(found.contains(expected), "{body}: {found}");
    }
    assert_eq!(
        notes(&service(
            "command: x\nhealthcheck: { test: x, start_interval: 2s }"
        )),
        [
            "lab.yaml:4:29: `start_interval` of `healthcheck` of service `web` has no effect: a replica that was never healthy is checked every second"
        ]
    );
}

#[test]
fn a_check_in_a_lab_tries_the_port_that_replicas_have() {
    let test = |x_weft: &str| {
        let lab = parse(
            "lab.yaml",
            &service(&format!("x-weft: {{ builtin: whoami, {x_weft} }}")),
        )
        .unwrap()
        .0;
        let plan = crate::lab::resolve::resolve(&lab, "lab");
        plan.services[0].health.as_ref().unwrap().test.to_string()
    };
    assert_eq!(test("health: tcp"), "tcp=80");
    assert_eq!(test("health: http=/a, port: 8080"), "http=:8080/a");
    assert_eq!(test("health: tcp=9, port: 8080"), "tcp=9");
}

#[test]
fn addresses_are_checked_against_their_subnets() {
    let with = |service: &str, network: &str| {
        format!(
            "services:\n  web:\n    x-weft: {{ builtin: whoami }}\n    {service}\nnetworks:\n  front: {network}\n"
        )
    };
    let on_front = "networks: { front: { ipv4_address: 10.9.0.7 } }";
    let subnet = "{ ipam: { config: [{ subnet: 10.9.0.0/24 }] } }";
    assert!(parse("lab.yaml", &with(on_front, subnet)).is_ok());
    for (service, network, expected) in [
        (on_front, "{}", "which lies in no subnet of network `front`"),
        (
            "deploy: { replicas: 2 }\n    networks: { front: { ipv4_address: 10.9.0.7 } }",
            subnet,
            "is for one replica, and there are 2",
        ),
        (
            "networks: { front: { ipv4_address: 10.9.0 } }",
            subnet,
            "must be an IPv4 address, not `10.9.0`",
        ),
        (
            "networks: [front]",
            "{ ipam: { config: [{ subnet: 10.9.0.5/24 }] } }",
            "the subnet is 10.9.0.0/24",
        ),
        (
            "networks: [front]",
            "{ ipam: { config: [{ subnet: 10.9.0.0/24, gateway: 10.8.0.1 }] } }",
            "`gateway` 10.8.0.1 lies outside 10.9.0.0/24",
        ),
        (
            "networks: [front]",
            "{ ipam: { config: [{ subnet: 10.9.0.0/24, ip_range: 10.0.0.0/8 }] } }",
            "lies outside",
        ),
        (
            "networks: [front]",
            "{ ipam: { config: [{ gateway: 10.8.0.1 }] } }",
            "without a `subnet`",
        ),
        (
            "networks: [front]",
            "{ ipam: { config: [{ subnet: 10.9.0.0/24 }, { subnet: 10.9.0.0/25 }] } }",
            "overlaps 10.9.0.0/24",
        ),
        (
            "networks: [front]",
            "{ ipam: { config: [{ subnet: 'fd00::/64' }] } }",
            "say `enable_ipv6: true` too",
        ),
        (
            "networks: [front]",
            "{ driver: macvlan }",
            "cannot be `macvlan`: expected overlay, weft",
        ),
        (
            "networks: [front]",
            "{ driver_opts: { encrypted: aes } }",
            "must be true or false",
        ),
        (
            "networks: [front]",
            "{ driver_opts: { com.docker.network.driver.mtu: 100 } }",
            "must be a whole number from 1280",
        ),
        ("networks: [front]", "{ internal: yes }", "must be true or false"),
    ] {
        let found = error(&with(service, network));
        assert!(found.contains(expected), "{service} {network}: {found}");
    }
}

#[test]
fn hosts_must_fit_into_the_underlay() {
    let with = |x_weft: &str| format!("services: {{ w: {{ command: x }} }}\nx-weft: {x_weft}\n");
    assert_eq!(
        parse("lab.yaml", &with("{ hosts: 253 }")).unwrap().0.hosts.len(),
        253
    );
    for (x_weft, expected) in [
        (
            "{ hosts: 300 }",
            "300 hosts do not fit into the underlay 198.18.0.0/24",
        ),
        ("{ hosts: 0 }", "must be a whole number from 1 to 1000, not 0"),
        ("{ hosts: [a, a] }", "the host `a` is listed twice"),
        (
            "{ hosts: [a-very-long-name-for-a-host] }",
            "is longer than 20 characters",
        ),
        (
            "{ underlay: { ipv4: false, ipv6: false } }",
            "the underlay needs IPv4 or IPv6",
        ),
        ("{ underlay: { mtu: 1000 } }", "must be a whole number from 1350"),
    ] {
        let found = error(&with(x_weft));
        assert!(found.contains(expected), "{x_weft}: {found}");
    }
}

#[test]
fn what_has_no_effect_is_said_once() {
    let text = format!(
        "version: '3'\nx-base: &b {{ a: 1 }}\n{}",
        service("image: nginx\ncommand: sleep 9")
    );
    assert_eq!(
        notes(&text),
        [
            "lab.yaml:1:1: `version` of the lab file has no effect: it is obsolete in Compose",
            "lab.yaml:2:1: `x-base` of the lab file is an extension, which a lab reads only where an anchor refers to it",
            "lab.yaml:5:5: `image` of service `web` has no effect: replicas are processes of this machine, and no container engine is involved",
        ]
    );
}

#[test]
fn commands_split_as_a_shell_would() {
    let text = service("entrypoint: [env, -i]\ncommand: sh -c 'echo \"$$1\"' x\n");
    let lab = parse("lab.yaml", &text).unwrap().0;
    let expected = ["env", "-i", "sh", "-c", "echo \"$1\"", "x"].map(str::to_owned);
    assert_eq!(lab.services[0].workload, Workload::Command(expected.into()));
    assert_eq!(lab.networks[0].name, "default");
}

#[test]
fn an_unreadable_file_is_named() {
    let error = load(Path::new("/nonexistent/lab.yaml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the lab file /nonexistent/lab.yaml"
    );
}
