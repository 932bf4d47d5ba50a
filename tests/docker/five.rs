//! Five hosts at once.

use std::collections::BTreeSet;

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn five_dockers_are_one_network() {
    with_dockerds(&[], five);
}

fn name(host: &DockerHost) -> String {
    format!("on-{}", host.host.name())
}

fn run(host: &DockerHost) {
    host.docker(&format!(
        "run -d --name {} --network app --label weft.service=pages --label weft.port=80 {IMAGE} httpd -f -h /www",
        name(host)
    ));
}

/// Each has an address of its own, reaches each of the others by name, and all of them as a service.
fn whole(hosts: &[DockerHost]) {
    let addresses: BTreeSet<_> = hosts
        .iter()
        .map(|host| host.address(&name(host), "app"))
        .collect();
    assert_eq!(addresses.len(), hosts.len(), "{addresses:?}");
    for from in hosts {
        from.eventually_ready("pages", hosts.len() as u64);
        for to in hosts {
            let fetch = format!("wget -q -O - http://{}/", name(to));
            assert_eq!(from.eventually_in(&name(from), &fetch), "served\n");
        }
        for _ in hosts {
            from.docker(&format!("exec {} wget -q -O - http://pages/", name(from)));
        }
    }
}

fn five() {
    let mut site = Site::new("five", 5);
    site.hosts[1].docker("network create -d weft app");
    for host in &site.hosts {
        host.eventually("network app with addresses of the cluster", || {
            let driver = host.try_docker("network inspect -f {{.IPAM.Driver}} app")?;
            Ok(driver.replace("weft", ""))
        });
    }
    site.hosts.iter().for_each(run);
    whole(&site.hosts);

    // A host is restarted while another one makes a second network, which is there when it is back.
    let back = &mut site.hosts[3];
    back.stop_dockerd();
    back.stop_agent();
    site.hosts[0].weft("network create later");
    let back = &mut site.hosts[3];
    back.start_agent();
    back.wait_for_agent();
    back.start_dockerd();
    back.wait_for_dockerd();
    back.eventually_docker("network inspect later");
    back.docker(&format!("start {}", name(back)));
    whole(&site.hosts);

    for host in &site.hosts {
        host.docker(&format!("rm -f {}", name(host)));
    }
    site.hosts[4].eventually("no endpoint left", || {
        let network = site.hosts[4].try_weft("network inspect --format json app")?;
        let network: serde_json::Value = serde_json::from_str(&network).unwrap();
        let left = network["endpoints"].as_array().unwrap();
        Ok(left.iter().map(ToString::to_string).collect())
    });
    site.hosts[2].weft("service rm pages");
    site.hosts[2].weft("network rm app later");
    for host in &site.hosts {
        host.eventually("no network of ours", || {
            host.try_docker("network ls -q --filter driver=weft")
        });
        host.eventually("no link of ours", || Ok(host.links().join(" ")));
    }
    site.close();
}
