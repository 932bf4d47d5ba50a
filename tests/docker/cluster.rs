//! One cluster: networks, names and services that are the same on every host.

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn networks_names_and_services_are_the_same_on_every_host() {
    with_dockerds(&[], one_cluster);
}

fn one_cluster() {
    let mut site = Site::new("dockers", 2);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };

    // A name that Docker has for something else is reported, and left alone.
    two.docker("network create -d bridge taken");
    one.weft("network create taken");
    one.eventually_docker("network inspect taken");
    two.eventually("a problem that names the network", || {
        let status = two.try_weft("status")?;
        Ok(if status.contains("network `taken` of its own") {
            String::new()
        } else {
            status
        })
    });
    assert_eq!(two.inspect("taken", "{{.Driver}}"), "bridge");
    one.weft("network rm taken");

    // Made by Weft on one host, used by Docker on both; made by Docker without a word about addresses, too.
    one.weft("network create app");
    two.docker("network create -d weft back");
    for host in [&*one, &*two] {
        host.eventually_docker("network inspect app");
        host.eventually("network back with addresses of the cluster", || {
            let driver = host.try_docker("network inspect -f {{.IPAM.Driver}} back")?;
            Ok(driver.replace("weft", ""))
        });
    }
    let subnet = |host: &DockerHost| host.inspect("back", "{{(index .IPAM.Config 0).Subnet}}");
    assert_eq!(subnet(one), subnet(two));

    // Names: of containers on either host, of aliases, of services.
    one.docker(&format!(
        "run -d --name web --network app --network-alias www {IMAGE} httpd -f -h /www"
    ));
    two.docker(&format!("run -d --name client --network app {IMAGE} sleep 1000"));
    two.eventually_in("client", "wget -q -O - http://web/");
    two.eventually_in("client", "wget -q -O - http://www/");
    two.eventually_in("client", "wget -q -O - http://web.app/");
    one.docker("rename web shop");
    two.eventually_in("client", "wget -q -O - http://shop/");
    let labels = "--label weft.service=pages --label weft.port=8000:80 --label weft.health=http=/ \
                  --label weft.health.interval=200ms";
    let own_check = "--health-cmd cat</tmp/well --health-interval 1s --health-retries 1";
    for (host, name, flags) in [(&*one, "s1", ""), (&*two, "s2", own_check)] {
        host.docker(&format!(
            "run -d --name {name} --network app {labels} {flags} {IMAGE} httpd -f -h /www"
        ));
    }
    // Docker's own check counts, and the one that the label asks for.
    let backend_is = |host: &DockerHost, name: &str, state: &str, reason: &str| {
        host.eventually(&format!("{name} {state}"), || {
            let service = host.try_weft("service inspect --format json pages")?;
            let service: serde_json::Value = serde_json::from_str(&service).unwrap();
            let backends = service["backends"].as_array().unwrap();
            let is_so = backends.iter().any(|backend| {
                let why = backend["reason"].as_str().unwrap_or_default();
                backend["endpoint_name"] == name && backend["state"] == state && why.contains(reason)
            });
            Ok(if is_so { String::new() } else { service.to_string() })
        });
    };
    backend_is(one, "s2", "unhealthy", "Docker's health check fails");
    two.docker("exec s2 busybox touch /tmp/well");
    backend_is(one, "s2", "ready", "");
    backend_is(two, "s1", "ready", "");
    one.docker("exec s1 busybox mv /www/index.html /www/index");
    backend_is(
        two,
        "s1",
        "unhealthy",
        "GET / on port 80 was answered with 404 Not Found",
    );
    for _ in 0..4 {
        two.docker("exec client wget -q -O - http://pages:8000/");
    }
    one.docker("exec s1 busybox mv /www/index /www/index.html");
    two.eventually_in("client", "wget -q -O - http://pages:8000/");
    one.eventually_ready("pages", 2);

    // Who was told to stop gets no new connections, and who is taken off a network neither, before he is.
    one.docker("kill -s TERM s1");
    backend_is(two, "s1", "draining", "stopped");
    two.docker("network disconnect app s2");
    let gone = one.try_weft("service inspect --format json pages").unwrap();
    assert!(!gone.contains("s2"), "{gone}");

    // Both are killed and come back; what ran is ended by dockerd, and nothing of it stays.
    two.kill_dockerd();
    two.kill_agent();
    one.eventually_in("shop", "ping -c 1 -W 1 192.0.2.2");
    two.start_agent();
    two.start_dockerd();
    two.wait_for_agent();
    two.wait_for_dockerd();
    two.docker("start client");
    two.eventually_in("client", "wget -q -O - http://shop/");
    for (host, containers) in [(&*one, ["shop", "s1"]), (&*two, ["client", "s2"])] {
        for container in containers {
            host.docker(&format!("rm -f {container}"));
        }
    }
    two.eventually("no endpoint on app", || {
        let network = two.try_weft("network inspect --format json app")?;
        let network: serde_json::Value = serde_json::from_str(&network).unwrap();
        let left = network["endpoints"].as_array().unwrap();
        Ok(left.iter().map(ToString::to_string).collect())
    });
    one.weft("service rm pages");

    // Removed on one host by either, gone on all from both.
    one.weft("network rm app");
    two.docker("network rm back");
    for host in [&*one, &*two] {
        host.eventually("no network of ours", || {
            let left = host.try_docker("network ls -q --filter driver=weft")?;
            Ok(left + &host.try_weft("network ls -q")?)
        });
    }
    site.close();
}
