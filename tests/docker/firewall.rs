//! dockerd drops what is forwarded on its host, except its own. What goes in and out of Weft's networks is let through.

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn what_docker_drops_leads_in_and_out_of_networks() {
    with_dockerds(&[], in_and_out);
}

/// Waits until the host itself gets a page.
fn fetch(host: &DockerHost, url: &str) {
    host.eventually(url, || {
        host.try_shell(&format!("curl -sS --noproxy '*' --max-time 2 -o $dir/page {url}"))
    });
}

fn in_and_out() {
    let mut site = Site::new("firewall", 2);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };
    let forwarded = one.shell("iptables -S FORWARD");
    assert!(forwarded.contains("-P FORWARD DROP"), "{forwarded}");
    one.weft("network create app");
    for host in [&*one, two] {
        host.eventually_docker("network inspect app");
    }
    // What dockerd has made is noticed a moment later; a container that was started before has Docker's own way out.
    one.shell("ip netns add plain; $weft network connect app plain");
    one.eventually("rules of ours in Docker's chain", || {
        one.try_shell("iptables -S DOCKER-USER | grep weft >$dir/rules")
    });
    one.shell("$weft network disconnect app plain; ip netns del plain");
    one.docker(&format!(
        "run -d --name web --network app --label weft.service=pages --label weft.port=80 {IMAGE} httpd -f -h /www"
    ));
    one.eventually_ready("pages", 1);
    one.weft("service update --publish 8080:80 pages");
    // The container needs no second network of Docker's to get out.
    let routes = one.docker("exec web busybox ip route");
    let gateway = one.inspect("web", "{{.NetworkSettings.Networks.app.Gateway}}");
    assert!(
        routes.contains(&format!("default via {gateway} dev eth0")),
        "{routes}"
    );
    assert!(!routes.contains("eth1"), "{routes}");
    one.docker("exec web ping -c 1 -W 5 192.0.2.2");
    // In by either host, from the other one.
    fetch(two, "http://192.0.2.1:8080/");
    fetch(one, "http://192.0.2.2:8080/");
    // Out: of a namespace that is no container's.
    two.shell("ip netns add plain; $weft network connect app plain");
    two.eventually("a way out", || {
        two.try_shell("ip netns exec plain ping -c 1 -W 1 192.0.2.1 >$dir/ping")
    });
    // But not into Docker's own networks, which are nobody else's.
    two.docker(&format!("run -d --name own {IMAGE} httpd -f -h /www"));
    let own = two.address("own", "bridge");
    two.shell(&format!(
        "curl -sS --noproxy '*' --max-time 5 -o $dir/page http://{own}/"
    ));
    let fetched = two.try_shell(&format!(
        "ip netns exec plain curl -sS --noproxy '*' --max-time 2 -o $dir/page http://{own}/"
    ));
    assert!(
        fetched.is_err(),
        "a container of Docker's was reached from a network of Weft's"
    );
    two.docker("rm -f own");
    // Who looks with Docker's own program understands them, and who takes them away has them back.
    let ours = [
        r#"-i weft-+ -o docker+ -m comment --comment "weft: as Docker likes, to docker*" -j RETURN"#,
        r#"-i weft-+ -o br-+ -m comment --comment "weft: as Docker likes, to br-*" -j RETURN"#,
        r#"-o weft-+ -m comment --comment "weft: into networks" -j ACCEPT"#,
        r#"-i weft-+ -m comment --comment "weft: out of networks" -j ACCEPT"#,
    ];
    let shown = one.shell("iptables -S DOCKER-USER");
    assert!(ours.iter().all(|line| shown.contains(line)), "{shown}");
    one.shell("iptables -F DOCKER-USER");
    fetch(two, "http://192.0.2.1:8080/");
    two.stop_dockerd();
    two.shell("iptables -F; iptables -X DOCKER-USER");
    two.start_dockerd();
    two.wait_for_dockerd();
    fetch(one, "http://192.0.2.2:8080/");

    two.shell("$weft network disconnect app plain; ip netns del plain");
    one.docker("rm -f web");
    one.weft("service rm pages");
    one.weft("network rm app");
    for host in [&*one, two] {
        host.eventually("nothing of ours in Docker's chain", || {
            let shown = host.try_shell("iptables -S DOCKER-USER")?;
            Ok(shown.lines().filter(|line| line.contains("weft")).collect())
        });
    }
    site.close();
}
