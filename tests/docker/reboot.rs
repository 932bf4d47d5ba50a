//! What a reboot leaves of a host: its disk.

use crate::site::{DockerHost, IMAGE, Site, with_dockerds};

#[test]
fn a_host_that_lost_its_run_directories_is_as_before() {
    with_dockerds(&[], lost);
}

/// Everything that a reboot ends and that is not in a kernel of one's own here: processes, mounts, files below `/run`.
const END: &str = r#"
    for pid in $pids; do kill -9 $pid 2>/dev/null || true; done
    grep -o ' /run/[^ ]*' /proc/self/mountinfo | sort -r | while read place; do
        case $place in /run/weft*|/run/docker*) umount -l $place ;; esac
    done
    grep -o " $dir/[^ ]*" /proc/self/mountinfo | sort -r | while read place; do umount -l $place; done
    rm -rf /run/weft /run/docker /run/docker.sock /run/docker.pid /run/containerd $dir/exec
    for link in $(ip -o link show | grep -oE '(weft|wf|veth|docker)[^:@ ]*' | sort -u); do ip link del $link 2>/dev/null || true; done
    ls -A /run
"#;

fn pids(host: &DockerHost, names: &[&str]) -> String {
    let pids = names.iter().map(|name| host.inspect(name, "{{.State.Pid}}"));
    pids.collect::<Vec<_>>().join(" ")
}

fn lost() {
    let mut site = Site::new("reboot", 2);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };
    one.weft("network create --subnet 10.66.0.0/24 app");
    two.eventually_docker("network inspect app");
    let run = |host: &DockerHost, name: &str, flags: &str| {
        host.docker(&format!(
            "run -d --name {name} --network app {flags} {IMAGE} httpd -f -h /www"
        ));
    };
    // First, before another is given its address by chance.
    run(two, "fixed", "--ip 10.66.0.77 -p 8081:80");
    run(one, "far", "");
    run(two, "always", "--restart always");
    run(two, "gone", "");
    let lost = two.address("gone", "app");
    one.eventually_in("far", "wget -q -O - http://always/");
    let pids = pids(two, &["always", "fixed", "gone"]);
    // Containers outlive their dockerd, so that one goes first.
    two.kill_dockerd();
    two.kill_agent();
    let left = two.shell(&format!("pids='{pids}'; {END}"));
    assert!(!left.contains("weft") && !left.contains("docker"), "{left}");
    assert!(two.links().is_empty(), "{:?}", two.links());

    // dockerd may be the first to be back: it waits for the driver.
    two.start_dockerd();
    two.start_agent();
    two.wait_for_agent();
    two.wait_for_dockerd();
    one.eventually_in("far", "wget -q -O - http://always/");
    two.docker("start fixed");
    assert_eq!(two.address("fixed", "app"), "10.66.0.77");
    one.eventually_in("far", "wget -q -O - http://fixed/");
    two.eventually_in("fixed", "wget -q -O - http://far/");
    two.shell("busybox wget -q -O - http://127.0.0.1:8081/");
    // Nothing is kept for a container that did not come back, and its address is free.
    two.docker("rm gone");
    one.eventually("no endpoint of what is gone", || {
        let network = one.try_weft("network inspect --format json app")?;
        let network: serde_json::Value = serde_json::from_str(&network).unwrap();
        let endpoints = network["endpoints"].as_array().unwrap();
        let found = endpoints.iter().filter(|endpoint| endpoint["name"] == "gone");
        Ok(found.map(ToString::to_string).collect())
    });
    run(two, "heir", &format!("--ip {lost}"));
    one.eventually_in("far", "wget -q -O - http://heir/");
    two.eventually("nothing wrong", || {
        let status = two.try_weft("status --format json")?;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let problems = status["problems"].as_array().unwrap();
        Ok(problems.iter().map(ToString::to_string).collect())
    });
    one.docker("rm -f far");
    two.docker("rm -f always fixed heir");
    one.weft("network rm app");
    for host in [&*one, &*two] {
        host.eventually("no link of ours", || Ok(host.links().join(" ")));
    }
    site.close();
}
