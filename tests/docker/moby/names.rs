//! Names of containers, by Docker's own server.

use super::{CREATE, Case, sleeper};
use crate::site::DockerHost;

pub const CASES: &[Case] = &[
    ("TestUserDefinedNetworkConnectDisconnectAlias", aliases),
    ("TestDockerNetworkFlagAlias", one_alias_of_several),
    ("TestUserDefinedNetworkConnectDisconnectLink", links),
    ("TestEmbeddedDNSInvalidInput", strange_names),
    ("TestInternalNetworkDNS", names_without_a_way_out),
];

fn aliases(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    one.docker(&format!("{CREATE} other"));
    two.eventually_docker("network inspect app");
    sleeper(one, "--network app --network-alias foo", "first");
    sleeper(one, "--network app", "second");
    sleeper(two, "--network app", "far");
    let all = [(&*one, "second"), (two, "far")];
    for (host, from) in all {
        for name in ["first", "foo", "foo.app"] {
            host.eventually_in(from, &format!("ping -c 1 -W 1 {name}"));
        }
    }
    // An alias is of one network, and goes with it.
    one.docker("network connect --alias bar other first");
    for (host, from) in all {
        assert!(host.try_docker(&format!("exec {from} nslookup bar")).is_err());
    }
    one.docker("network disconnect app first");
    two.eventually("no foo", || match two.try_docker("exec far nslookup foo") {
        Ok(said) => Ok(said),
        Err(_) => Ok(String::new()),
    });
    one.docker("network connect --alias baz app first");
    for (host, from) in all {
        host.eventually_in(from, "ping -c 1 -W 1 baz");
    }
    two.docker("rm -f far");
}

fn strange_names(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    sleeper(one, "--network app", "box");
    let long = "x".repeat(63);
    for name in ["$", "a..b", "-", &long, &[long.as_str(); 3].join(".")] {
        assert!(
            one.try_docker(&format!("exec box nslookup {name} 127.0.0.11"))
                .is_err(),
            "{name}"
        );
    }
    one.eventually_in("box", "nslookup box");
}

/// Several have it on two hosts: Weft answers with all of their addresses, Docker with those of its own host.
fn one_alias_of_several(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    two.eventually_docker("network inspect app");
    let flags = "--network app --network-alias foo --network-alias bar";
    sleeper(one, flags, "first");
    sleeper(two, flags, "far");
    let addresses = [one.address("first", "app"), two.address("far", "app")];
    for name in ["foo", "bar"] {
        one.eventually("both addresses", || {
            let said = one.try_docker(&format!("exec first nslookup {name}.app 169.254.53.53"))?;
            let has_all = addresses.iter().all(|address| said.contains(address.as_str()));
            Ok(if has_all { String::new() } else { said })
        });
        let said = one.docker(&format!("exec first nslookup {name} 127.0.0.11"));
        assert!(
            said.contains(&addresses[0]) && !said.contains(&addresses[1]),
            "{said}"
        );
    }
    two.docker("rm -f far");
}

/// Another name that one container alone has for another.
fn links(one: &mut DockerHost, _: &DockerHost) {
    one.docker(&format!("{CREATE} app"));
    sleeper(one, "--network app", "first");
    sleeper(one, "--network app --link first:foo", "second");
    one.docker("exec second ping -c 1 -W 5 foo");
    assert!(one.try_docker("exec first ping -c 1 -W 1 foo").is_err());
    one.docker("network disconnect app first");
    assert!(one.try_docker("exec second ping -c 1 -W 1 foo").is_err());
    one.docker("network connect app first");
    one.docker("exec second ping -c 1 -W 5 foo");
}

fn names_without_a_way_out(one: &mut DockerHost, two: &DockerHost) {
    one.docker(&format!("{CREATE} --internal closed"));
    two.eventually_docker("network inspect closed");
    sleeper(one, "--network closed", "box");
    sleeper(two, "--network closed", "far");
    one.eventually_in("box", "nslookup far 127.0.0.11");
    two.eventually_in("far", "nslookup box 127.0.0.11");
    two.docker("rm -f far");
}
