//! Labs side by side.

use crate::bed::{User, each, path};

/// One replica whose address the file fixes, and a client.
const FIXED: &str = "
services:
  solo:
    networks: { net: { ipv4_address: 10.77.0.10 } }
    x-weft: { builtin: whoami }
    deploy: { placement: { constraints: [node.hostname == h2] } }
  client:
    networks: [net]
    x-weft: { builtin: idle }
    deploy: { placement: { constraints: [node.hostname == h1] } }
networks:
  net:
    ipam: { config: [{ subnet: 10.77.0.0/24 }] }
x-weft:
  hosts: [h1, h2]
";

#[test]
fn two_labs_of_one_file_have_the_same_addresses_and_do_not_see_each_other() {
    let me = User::me();
    let file = me.file("fixed.yaml", FIXED);
    let (one, other) = (me.up(&file), me.up(&file));
    for lab in [&one, &other] {
        assert_eq!(
            lab.inspect().addresses("solo-1", "net"),
            ["10.77.0.10".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(
            lab.calls("client-1", "http://10.77.0.10/", 2),
            each(&["solo-1"], 2)
        );
        let nodes = lab.exec("h1", &["weft", "node", "ls", "--format", "json"]).good();
        let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
        assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    }
    let listed = me.run(&["lab", "ls"]).good();
    assert!(
        listed.contains(&one.name) && listed.contains(&other.name),
        "{listed}"
    );

    // What dies in one lives on in the other: they share an address and nothing else.
    one.lab("kill", &["h2"]).good();
    let fetch = [
        "weft",
        "lab",
        "fetch",
        "--timeout-ms",
        "300",
        "http://10.77.0.10/",
    ];
    assert_ne!(one.exec("client-1", &fetch).code, 0);
    other.exec("client-1", &fetch).good();
    assert_eq!(one.inspect().host_state("h2"), "killed");
    assert_eq!(other.inspect().host_state("h2"), "up");

    // The same name twice is refused, with a way out.
    let again = me.run(&["lab", "up", path(&file), "--name", &one.name]);
    assert_eq!(again.code, 4, "{again:?}");
    assert!(again.stderr.contains("--name"), "{again:?}");

    one.down();
    other.exec("client-1", &fetch).good();
    other.down();
}
