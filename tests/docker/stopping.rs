//! Containers that are told to stop.

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn a_container_that_is_stopped_under_load_fails_no_request() {
    with_dockerds(&[], stopped_under_load);
}

/// The servers are killed the moment that Docker tells them to stop: whatever is open then, or comes after it, fails.
fn stopped_under_load() {
    const ROUNDS: usize = 3;
    const CLIENTS: usize = 4;
    let site = Site::new("stop", 2);
    let [one, two] = &site.hosts[..] else {
        unreachable!()
    };
    let proxy = one.spawn_weft("docker proxy");
    one.eventually("a proxy", || {
        one.try_docker("-H unix:///run/weft/docker.sock version")
            .map(|_| String::new())
    });
    one.weft("network create app");
    two.eventually_docker("network inspect app");
    let serve = |host: &DockerHost, name: &str| {
        host.docker(&format!(
            "run -d --name {name} --network app --label weft.service=web --label weft.port=80 --stop-signal KILL {IMAGE} \
             httpd -f -h /www"
        ));
    };
    serve(one, "web-1");
    serve(two, "web-2");
    two.docker(&format!("run -d --name client --network app {IMAGE} sleep 1000"));
    two.eventually_ready("web", 2);
    // Each client says how many it asked, and that it failed with the first that did.
    two.eventually_in("client", "wget -q -O /dev/null http://web/");
    let script = "n=0; while ! [ -e /tmp/end ]; do wget -q -O /dev/null http://web/ 2>/tmp/said.$0 || { echo $n: $(cat /tmp/said.$0) > /tmp/failed; break; }; \
                  n=$((n+1)); done; echo $n > /tmp/asked.$0";
    for client in 0..CLIENTS {
        two.shell(&format!("docker exec -d client sh -c '{script}' {client}"));
    }
    for _ in 0..ROUNDS {
        one.docker("-H unix:///run/weft/docker.sock stop web-1");
        one.docker("rm web-1");
        two.eventually_ready("web", 1);
        serve(one, "web-1");
        two.eventually_ready("web", 2);
    }
    two.shell("docker exec client sh -c ': > /tmp/end'");
    let asked = two.eventually_in(
        "client",
        "cat /tmp/asked.0 /tmp/asked.1 /tmp/asked.2 /tmp/asked.3",
    );
    let said = two.shell("docker exec client sh -c '[ ! -e /tmp/failed ] || cat /tmp/failed'");
    assert_eq!(said, "", "of {asked:?}");
    eprintln!(
        "requests of each client, none failed: {}",
        asked.trim().replace('\n', " ")
    );

    for host in [one, two] {
        host.shell("docker rm -f $(docker ps -aq) >/dev/null");
    }
    drop(proxy);
    one.weft("service rm web");
    one.weft("network rm app");
    site.close();
}

#[test]
fn an_agent_that_was_away_knows_which_containers_were_told_to_stop() {
    with_dockerds(&[], agent_away);
}

/// The program does not listen to Docker: it is there for as long as Docker waits for its end.
fn agent_away() {
    let mut site = Site::new("away", 1);
    let [one] = &mut site.hosts[..] else {
        unreachable!()
    };
    one.weft("network create app");
    one.eventually_docker("network inspect app");
    let serve = |host: &DockerHost, name: &str| {
        host.shell(&format!(
            "docker run -d --name {name} --network app --label weft.service={name} --label weft.port=80 {IMAGE} \
             sh -c \"trap '' TERM; while :; do sleep 1; done\" >/dev/null"
        ));
        host.eventually_ready(name, 1);
    };
    serve(one, "slow");
    one.kill_agent();
    let stop = one.spawn_docker("stop -t 100 slow");
    one.eventually("a signal", || {
        let told =
            one.try_docker("events --since 1m --until 0s --filter container=slow --filter event=kill")?;
        Ok(if told.is_empty() {
            "none".to_owned()
        } else {
            String::new()
        })
    });
    one.start_agent();
    one.wait_for_agent();
    // When this one is known, the other was looked at.
    serve(one, "next");
    one.eventually_ready("slow", 0);
    assert_eq!(one.inspect("slow", "{{.State.Running}}"), "true");
    assert!(stop.try_wait().is_none());

    one.docker("rm -f slow next");
    one.weft("service rm slow");
    one.weft("service rm next");
    one.weft("network rm app");
    site.close();
}
