//! `ports` of a lab file: open on the lab's hosts.

use std::{collections::BTreeSet, time::Duration};

use netns_harness::eventually;

use crate::{
    bed::{LOOK, Lab, User},
    rootless::somebody_else,
};

const SOON: Duration = Duration::from_secs(20);

/// A replica each on h1 and h2; h3 has none.
const FILE: &str = "\
services:
  web:
    ports:
      - \"8080:80\"
      - { target: 80, published: 8081, mode: host }
    deploy: { replicas: 2 }
    x-weft: { builtin: whoami, hosts: [h1, h2] }
  client:
    x-weft: { builtin: idle, hosts: [h1] }
networks:
  default: { enable_ipv6: true }
x-weft: { hosts: [h1, h2, h3] }
";

/// Who answers eight calls in a row.
fn answers(lab: &Lab<'_>, from: &str, url: &str) -> Result<BTreeSet<String>, String> {
    let call = ["curl", "-g", "--silent", "--show-error", "--max-time", "5", url];
    (0..8)
        .map(|_| {
            let ended = lab.exec(from, &call);
            let name = ended.stdout.lines().find_map(|line| line.strip_prefix("name: "));
            name.map(str::to_owned)
                .ok_or_else(|| format!("{from} {url}: {ended:?}"))
        })
        .collect()
}

fn answered_by(lab: &Lab<'_>, from: &str, url: &str, names: &[&str]) {
    let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let look = || match answers(lab, from, url)? {
        found if found == wanted => Ok(()),
        found => Err(format!("{found:?}")),
    };
    eventually(format!("{names:?} at {url} from {from}"), SOON, LOOK, look).unwrap();
}

fn ports_are_open_on_the_hosts(user: &User) {
    let lab = user.up(&user.file("ports.yaml", FILE));
    let both = ["web-1", "web-2"];
    for url in [
        "http://127.0.0.1:8080/",
        "http://[::1]:8080/",
        "http://198.18.0.1:8080/",
        "http://[fd00:198:18::2]:8080/",
        "http://198.18.0.3:8080/",
    ] {
        answered_by(&lab, "h3", url, &both);
    }
    answered_by(&lab, "client-1", "http://198.18.0.3:8080/", &both);
    answered_by(&lab, "h3", "http://198.18.0.2:8081/", &["web-2"]);
    let closed = lab.exec(
        "h3",
        &["curl", "--silent", "--show-error", "http://198.18.0.3:8081/"],
    );
    assert_eq!(closed.code, 7, "{closed:?}");
    lab.down();
}

#[test]
fn ports_of_a_lab_are_open_on_its_hosts() {
    ports_are_open_on_the_hosts(&User::me());
}

#[test]
fn ports_of_an_ordinary_users_lab_are_open_on_its_hosts() {
    if let Some(nobody) = somebody_else() {
        ports_are_open_on_the_hosts(&nobody);
    }
}
