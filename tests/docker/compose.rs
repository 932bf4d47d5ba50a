//! A Compose application across two hosts, as `docs/docker.md` shows it.

use std::fs;

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn a_compose_application_spans_two_hosts() {
    with_dockerds(&[("docker-compose", "docker-compose")], across);
}

fn across() {
    let site = Site::with("compose", 2, "{}");
    let [one, two] = &site.hosts[..] else {
        unreachable!()
    };
    let _proxies = [one, two].map(|host| host.spawn_weft("docker proxy"));
    for host in [one, two] {
        host.eventually("a proxy", || {
            let version = host.try_docker("-H unix:///run/weft/docker.sock version");
            version.map(|_| String::new())
        });
    }
    let web = format!(
        "services: {{web: {{image: {IMAGE}, command: httpd -f -h /www, stop_signal: KILL, networks: [shop]}}}}\n"
    );
    let made = format!(
        "version: '3.5'\n{web}networks: {{shop: {{name: shop, driver: overlay, attachable: true}}}}\n"
    );
    fs::write(one.dir.join("docker-compose.yml"), &made).unwrap();
    let client = format!(
        "services: {{client: {{image: {IMAGE}, command: sleep 100000, stop_signal: KILL, networks: [shop]}}}}\n"
    );
    let used = format!("version: '3.5'\n{client}networks: {{shop: {{name: shop, external: true}}}}\n");
    fs::write(two.dir.join("docker-compose.yml"), used).unwrap();
    let compose = "cd $dir; export DOCKER_HOST=unix:///run/weft/docker.sock; docker-compose -p shop";

    one.shell(&format!("{compose} up -d --scale web=2 2>&1"));
    two.eventually_docker("network inspect shop");
    two.shell(&format!("{compose} up -d 2>&1"));
    // Several containers of a service are a service of the cluster, with one address.
    two.eventually_ready("web", 2);
    let service = two.weft("service inspect --format json web");
    let service: serde_json::Value = serde_json::from_str(&service).unwrap();
    let vip = service["vips"][0].as_str().unwrap_or_else(|| panic!("{service}"));
    let client = container(two, "client", 1);
    let said = two.eventually_in(&client, "nslookup web 127.0.0.11");
    assert!(said.contains(vip), "{said}");
    for _ in 0..4 {
        two.docker(&format!("exec {client} wget -q -O - http://web/"));
    }
    // One container by its name, and all of them.
    let [first, second] = [1, 2].map(|number| container(one, "web", number));
    let said = two.docker(&format!("exec {client} nslookup {second} 127.0.0.11"));
    assert!(said.contains(&one.address(&second, "shop")), "{said}");
    let said = two.docker(&format!("exec {client} nslookup tasks.web 127.0.0.11"));
    assert!(said.contains(&one.address(&first, "shop")), "{said}");

    // Brought up again it is as it was. The first Compose compares the driver's name with the one in the file.
    if one.shell("docker-compose version --short").starts_with("1.") {
        let made = made.replace("overlay", "weft");
        fs::write(one.dir.join("docker-compose.yml"), made).unwrap();
    }
    let said = one.shell(&format!("{compose} up -d --scale web=2 2>&1"));
    assert!(!said.to_lowercase().contains("creat"), "{said}");
    // `down` takes the service too.
    two.shell(&format!("{compose} down 2>&1"));
    one.shell(&format!("{compose} down 2>&1"));
    two.eventually("no network left", || {
        Ok(two.try_docker("network ls -q --filter driver=weft")? + &two.try_weft("service ls -q")?)
    });
    drop(_proxies);
    site.close();
}

/// What Compose calls a container, which depends on its version.
fn container(host: &DockerHost, service: &str, number: usize) -> String {
    let filter = format!(
        "label=com.docker.compose.service={service} --filter label=com.docker.compose.container-number={number}"
    );
    let name = host.docker(&format!("ps --format {{{{.Names}}}} --filter {filter}"));
    name.trim().to_owned()
}
