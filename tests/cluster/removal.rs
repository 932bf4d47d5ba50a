//! `weft node rm` of a host that died: what it made stays, what it had goes.

use super::bed::{Bed, Node, alone, items, soon, text};

#[test]
fn what_a_removed_node_made_stays_and_what_it_had_goes() {
    alone(|| {
        let bed = Bed::apart(&["h1", "h2", "h3", "h4"]).joined(&["h1", "h2", "h3"]);
        // The cluster, the network and the service are of its making.
        bed["h1"].weft("network create app");
        bed["h1"].weft("service create --network app web");
        let lost = bed["h1"].replica("web-1", "app", "--service web");
        let kept = ["h2", "h3"].map(|name| bed[name].replica(&format!("web-{name}"), "app", "--service web"));
        let token = text(&bed["h1"].json("token create")["token"]).to_owned();
        bed.on(&["h2", "h3"], "all replicas", |node| {
            match items(&node.json("service inspect --network app web")["backends"]).count() {
                3 => Ok(()),
                count => Err(count),
            }
        });
        let vip = bed["h2"].vip("web");

        bed["h1"].host.crash().unwrap();
        let said = bed["h2"].weft("node rm --force h1");
        assert!(!said.contains(" 0 blocks") && said.lines().count() == 1, "{said}");
        let has_gone = |node: &Node| -> Result<(), String> {
            let networks = node.json("network inspect app");
            let endpoints: Vec<_> = items(&networks["endpoints"])
                .map(|endpoint| text(&endpoint["name"]))
                .collect();
            let service = node.json("service inspect --network app web");
            let backends = items(&service["backends"]).count();
            let nodes = items(&node.json("node ls")).count();
            let problems = node.problems();
            match (endpoints.len(), backends, nodes, problems.is_empty()) {
                (2, 2, 2, true) => Ok(()),
                _ => Err(format!("{endpoints:?} {backends} {nodes} {problems:?}")),
            }
        };
        bed.on(&["h2", "h3"], "all but what h1 had", has_gone);
        super::traffic::answering(&kept[0].sandbox, vip, 2);

        // From the disk it is the same.
        for name in ["h2", "h3"] {
            bed[name].kill_agent();
            bed[name].restart_agent();
        }
        bed.on(&["h2", "h3"], "the same after a restart", has_gone);
        super::traffic::answering(&kept[1].sandbox, vip, 2);
        let more = bed["h3"].connected("more", "app", "");
        assert!(!kept.iter().any(|one| one.address() == more.address()));

        // It lets nobody in, and who comes later has all of it.
        let by = bed["h2"].address();
        let refused = bed["h4"].try_weft(&format!("join --token {token} {by}:7946"));
        assert!(
            refused.code == 1 && refused.stderr.contains("does not know this token"),
            "{refused:?}"
        );
        let join = bed["h2"].join_command("");
        bed["h4"].weft(&join);
        let late = bed["h4"].connected("late", "app", "");
        super::traffic::answering(&late.sandbox, vip, 2);

        // It comes back, hears of it, and is nobody's any more.
        bed["h1"].boot();
        soon("h1 in no cluster", || match bed["h1"].try_weft("node ls") {
            said if said.stderr.contains("in no cluster") => Ok(()),
            said => Err(format!("{said:?}")),
        });
        bed["h1"].weft(&bed["h2"].join_command(""));
        bed.on(&["h2", "h3", "h4"], "four nodes", |node| {
            match items(&node.json("node ls")).count() {
                4 => Ok(()),
                count => Err(count),
            }
        });
        super::traffic::answering(&bed["h1"].connected("again", "app", "").sandbox, vip, 2);

        // Who left in order holds nothing up, for those who were started since either.
        bed["h4"].weft("network disconnect app late");
        bed["h4"].weft("leave");
        bed.on(&["h1", "h2", "h3"], "no h4", |node| {
            match items(&node.json("node ls")).count() {
                3 => Ok(()),
                count => Err(count),
            }
        });
        bed["h1"].host.crash().unwrap();
        for name in ["h2", "h3"] {
            bed[name].kill_agent();
            bed[name].restart_agent();
        }
        let said = bed["h3"].weft("node rm --force h1");
        assert!(!said.contains(" 0 blocks") && said.lines().count() == 1, "{said}");
        drop((lost, kept, more, late));
        bed.close();
    });
}
