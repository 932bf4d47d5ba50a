//! The network and IPAM driver, as `docker` shows it.

use std::collections::BTreeSet;

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn containers_on_two_hosts_are_on_one_network() {
    with_dockerds(&[], two_hosts);
}

fn two_hosts() {
    let mut site = Site::new("docker", 2);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };
    one.docker(
        "network create -d weft --ipam-driver weft -o weft.network=app \
         --subnet 10.77.0.0/24 --gateway 10.77.0.254 --aux-address printer=10.77.0.9 app",
    );
    // Made once, it is there on every host.
    two.eventually_docker("network inspect app");

    // Addresses are the cluster's: none twice, and none that is set aside.
    let mut addresses = BTreeSet::new();
    for name in ["c1", "c2", "c3"] {
        for host in [&*one, &*two] {
            host.docker(&format!(
                "run -d --name {name} --network app {IMAGE} httpd -f -h /www"
            ));
            addresses.insert(host.address(name, "app"));
        }
    }
    assert_eq!(addresses.len(), 6, "{addresses:?}");
    assert!(
        addresses.is_disjoint(&["10.77.0.9", "10.77.0.254"].map(str::to_owned).into()),
        "{addresses:?}"
    );
    for to in &addresses {
        one.eventually_in("c1", &format!("ping -c 1 -W 1 {to}"));
        two.eventually_in("c2", &format!("wget -q -O - http://{to}/"));
    }

    // Published ports, and the way out. Which addresses the others were given nobody knows before.
    let mut free = (80..).map(|host| format!("10.77.0.{host}"));
    let fixed = free.find(|address| !addresses.contains(address)).unwrap();
    one.docker(&format!(
        "run -d --name web --network app -p 8080:80 --ip {fixed} {IMAGE} httpd -f -h /www"
    ));
    assert_eq!(one.address("web", "app"), fixed);
    let fetch = |url: &str| {
        let mut busybox = std::process::Command::new("busybox");
        netns_harness::Inside::exec(
            &two.host,
            busybox.args(["wget", "-q", "-O", "-", url]),
            std::time::Duration::from_secs(5),
        )
    };
    assert_eq!(fetch("http://192.0.2.1:8080/").unwrap().stdout, "served\n");
    one.eventually_in("web", "ping -c 1 -W 1 192.0.2.2");
    // An address in use is refused on the other host, in words that name who has it.
    let error = two.docker_error(&format!("run --rm --network app --ip {fixed} {IMAGE} true"));
    assert!(error.contains(&fixed), "{error}");
    let error = two.docker_error(&format!("run --rm --network app --ip 10.77.0.9 {IMAGE} true"));
    assert!(error.contains("printer"), "{error}");

    // A stopped container starts again with the address it asked for.
    one.docker("restart -t 0 web");
    assert_eq!(one.address("web", "app"), fixed);
    two.eventually_in("c1", &format!("ping -c 1 -W 1 {fixed}"));

    // The agent dies: traffic goes on. It comes back: everything is as it was, and Docker goes on with it.
    one.kill_agent();
    two.eventually_in("c1", &format!("ping -c 1 -W 1 {fixed}"));
    one.start_agent();
    one.wait_for_agent();
    two.eventually_in("c1", &format!("ping -c 1 -W 1 {fixed}"));
    one.docker("rm -f web");
    one.docker(&format!(
        "run -d --name web --network app --ip {fixed} {IMAGE} sleep 1000"
    ));
    two.eventually_in("c1", &format!("ping -c 1 -W 1 {fixed}"));

    // A network without a way out, of both families, joined by a container that is on another one.
    one.docker(
        "network create -d weft --ipam-driver weft -o weft.network=closed --internal \
         --ipv6 --subnet 10.78.0.0/24 --subnet fd78::/64 closed",
    );
    one.docker("network connect closed web");
    one.docker(&format!(
        "run -d --name inner --network closed {IMAGE} sleep 1000"
    ));
    let v6 = one.inspect("inner", "{{.NetworkSettings.Networks.closed.GlobalIPv6Address}}");
    one.eventually_in("web", &format!("ping -6 -c 1 -W 1 {v6}"));
    one.eventually_in("inner", "ping -c 1 -W 1 169.254.53.53");
    one.eventually_in("web", "ping -c 1 -W 1 192.0.2.2");
    let out = one.try_docker("exec inner ping -c 1 -W 1 192.0.2.2");
    assert!(out.is_err(), "{out:?}");
    one.docker("network disconnect closed web");

    one.docker("network create -d weft --ipam-driver weft -o encrypted secret");
    one.eventually("the network in the cluster", || {
        one.try_weft("network inspect secret").map(|_| String::new())
    });
    let secret = one.weft("network inspect secret --format json");
    assert!(secret.contains("\"encrypted\": true"), "{secret}");
    two.eventually_docker("network inspect secret");
    one.docker("network rm secret");

    // What cannot be is refused in words.
    let error = one.docker_error("network create -d weft --ipam-driver weft -o encrypted=perhaps secret");
    assert!(error.contains("encrypted"), "{error}");
    let error = one.docker_error("network create -d weft --ipam-driver weft --subnet 10.77.0.0/25 part");
    assert!(error.contains("overlaps"), "{error}");

    // Everything goes, and nothing stays.
    for (host, containers) in [
        (&*one, &["c1", "c2", "c3", "web", "inner"][..]),
        (&*two, &["c1", "c2", "c3"]),
    ] {
        for container in containers {
            host.docker(&format!("rm -f {container}"));
        }
    }
    let endpoints = |host: &DockerHost| {
        let network = host.weft("network inspect --format json app");
        let network: serde_json::Value = serde_json::from_str(&network).unwrap();
        network["endpoints"].as_array().unwrap().len()
    };
    assert_eq!(endpoints(one) + endpoints(two), 0);
    one.docker("network rm closed");
    one.docker("network rm app");
    two.eventually("no network anywhere", || {
        let left = two.try_docker("network ls -q --filter driver=weft")?;
        Ok(left + &two.try_weft("network ls -q")?)
    });
    let clean = |host: &DockerHost| host.links().join(" ");
    for host in [&*one, &*two] {
        host.eventually("no link of ours", || Ok(clean(host)));
    }
    site.close();
}
