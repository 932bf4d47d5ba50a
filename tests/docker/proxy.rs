//! `weft docker proxy`: Docker's API as it is, and Swarm's driver as ours.

use netns_harness::Signal;

use crate::site::{IMAGE, Site, with_dockerds};

#[test]
fn the_driver_overlay_works_off_swarm_and_everything_else_as_before() {
    with_dockerds(&[], through_the_proxy);
}

/// Docker's own settings say nothing of Weft: names are the proxy's doing.
fn through_the_proxy() {
    let site = Site::with("proxy", 2, "{}");
    let [one, two] = &site.hosts[..] else {
        unreachable!()
    };
    let proxies = [one, two].map(|host| host.spawn_weft("docker proxy"));
    for host in [one, two] {
        host.eventually("a proxy", || {
            host.try_docker("-H unix:///run/weft/docker.sock version")
                .map(|_| String::new())
        });
    }
    let proxied = "docker() { command docker -H unix:///run/weft/docker.sock \"$@\"; }; ";

    // The literal command; the id that it prints is that of the network that stays.
    let id = one.shell(&format!(
        "{proxied} docker network create --driver overlay --attachable app"
    ));
    assert_eq!(
        one.inspect("app", "{{.Id}} {{.Driver}} {{.IPAM.Driver}}"),
        format!("{} weft weft", id.trim())
    );
    two.eventually_docker("network inspect app");
    one.weft("network inspect app");
    // What must not be open is not: Swarm's own option.
    one.docker("-H unix:///run/weft/docker.sock network create -d overlay --opt encrypted secret");
    one.eventually("the network in the cluster", || {
        one.try_weft("network inspect secret").map(|_| String::new())
    });
    let secret = one.weft("network inspect secret --format json");
    assert!(secret.contains("\"encrypted\": true"), "{secret}");
    one.docker("network rm secret");

    // Names across hosts: 127.0.0.11 asks our address, which is on-link, on networks without a way out too.
    one.shell(&format!(
        "{proxied} docker network create -d overlay --internal closed"
    ));
    two.eventually_docker("network inspect closed");
    for (host, name) in [(one, "a"), (two, "b")] {
        for network in ["app", "closed"] {
            let run = format!("run -d --name {network}-{name} --network {network} {IMAGE} sleep 1000");
            host.shell(&format!("{proxied} docker {run}"));
        }
    }
    for network in ["app", "closed"] {
        let address = two.address(&format!("{network}-b"), network);
        for name in [format!("{network}-b"), format!("{network}-b.{network}")] {
            let said = one.eventually_in(&format!("{network}-a"), &format!("nslookup {name} 127.0.0.11"));
            assert!(said.contains(&address), "{said}");
        }
    }
    assert_eq!(one.inspect("app-a", "{{.HostConfig.Dns}}"), "[169.254.53.53]");
    // A container on none of our networks keeps to Docker's servers.
    one.shell(&format!("{proxied} docker create --name other {IMAGE} true"));
    assert_eq!(one.inspect("other", "{{len .HostConfig.Dns}}"), "0");

    // Streams: input to its end, output without end, both at once, files, a build, and what follows.
    let said = one.shell(&format!(
        "{proxied} seq 1 100000 | docker exec -i app-a cat | sha256sum; seq 1 100000 | sha256sum"
    ));
    let sums: Vec<_> = said.lines().collect();
    assert_eq!(sums[0], sums[1]);
    let said = one.shell(&format!("{proxied} echo typed | docker run -i --rm --network app {IMAGE} sh -c 'read line; echo got $line; echo err >&2' 2>&1"));
    assert!(said.contains("got typed") && said.contains("err"), "{said}");
    one.shell(&format!(
        "{proxied} docker run -d --name talker {IMAGE} sh -c 'while sleep 0.1; do echo talk; done' >/dev/null; \
         docker logs -f talker | head -n 3 | grep -c talk"
    ));
    let said = one.shell(&format!(
        "{proxied} timeout 5 docker attach --sig-proxy=false talker 2>&1 | head -n 2"
    ));
    assert_eq!(said, "talk\ntalk\n");
    let said = one.shell(&format!(
        "{proxied} docker events --filter container=talker > $dir/events & events=$!; \
         for n in $(seq 100); do docker kill -s USR1 talker >/dev/null; grep -q kill $dir/events && break; sleep 0.1; done; \
         kill $events; cat $dir/events"
    ));
    assert!(said.contains("container kill"), "{said}");
    one.shell(&format!(
        "{proxied} head -c 3000000 /dev/urandom > $dir/file; docker cp $dir/file app-a:/tmp/file; \
         docker cp app-a:/tmp/file $dir/back; cmp $dir/file $dir/back"
    ));
    let said = one.shell(&format!(
        "{proxied} mkdir $dir/build; printf 'FROM {IMAGE}\\nRUN echo built > /www/index.html\\n' > $dir/build/Dockerfile; \
         DOCKER_BUILDKIT=0 docker build -t built $dir/build 2>&1; docker run --rm built cat /www/index.html"
    ));
    assert!(said.ends_with("built\n"), "{said}");
    let said = one.shell(&format!("{proxied} docker save {IMAGE} | docker load"));
    assert!(said.contains("Loaded image"), "{said}");

    // It takes its socket with it.
    for proxy in &proxies {
        proxy.signal(Signal::SIGTERM).unwrap();
        assert!(proxy.wait(std::time::Duration::from_secs(10)).unwrap().success());
    }
    assert_eq!(one.shell("ls /run/weft | grep -c docker.sock || true"), "0\n");
    for host in [one, two] {
        host.shell("docker rm -f $(docker ps -aq) >/dev/null");
    }
    one.weft("network rm app");
    one.weft("network rm closed");
    site.close();
}
