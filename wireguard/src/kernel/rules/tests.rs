use weft_netlink::{netns::Netns, testing::skip};

use super::*;

fn network(members: &[u8], fdb: &[(u8, u8)]) -> Network {
    let vtep = |number: &u8| [100, 64, 0, *number].into();
    Network {
        vni: Vni::try_from(4097).unwrap(),
        netns: "/run/weft/netns/app".into(),
        tap: "vx0".to_owned(),
        members: members.iter().map(vtep).collect(),
        fdb: fdb
            .iter()
            .map(|(mac, at)| (Mac([2, 0, 0, 0, 9, *mac]), vtep(at)))
            .collect(),
    }
}

#[test]
fn the_table_of_the_tunnels() {
    let networks = [network(&[2, 3], &[(2, 2), (3, 3), (4, 4)])];
    insta::assert_snapshot!(rules(4789, &senders(&networks)).to_string());
}

#[test]
fn what_is_there_is_read_back_and_only_the_difference_is_written() {
    let netns = match Netns::create() {
        Ok(netns) => netns,
        Err(error) => return skip(error),
    };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    for (number, networks) in [
        vec![network(&[2], &[(2, 2)])],
        vec![network(&[2, 3], &[(2, 2), (3, 3)])],
        vec![],
        vec![network(&[3], &[(3, 3)])],
    ]
    .iter()
    .enumerate()
    {
        ensure(&nft, 4789, networks).unwrap();
        let held = held(&nft, 4789).unwrap().unwrap();
        assert_eq!(held, senders(networks), "{number}");
        assert!(difference(&held, &senders(networks)).is_empty());
    }
    assert_eq!(refused(&nft).unwrap(), 0);
    // Another port is another table.
    assert_eq!(held(&nft, 4790).unwrap(), None);
    ensure(&nft, 4790, &[]).unwrap();
    assert_eq!(held(&nft, 4790).unwrap(), Some(BTreeSet::new()));
}
