//! What is removed leaves nothing behind.

use std::time::Duration;

use netns_harness::Inside as _;

use super::{
    bed::{Bed, Endpoint, alone, items, soon},
    traffic::{answering, call},
};

/// Waits until a host is as it was.
pub fn back_to(bed: &Bed, name: &str, before: &[String]) {
    soon(format!("{name} as it was before"), || {
        let now = bed[name].traces();
        let more: Vec<_> = now.iter().filter(|trace| !before.contains(trace)).collect();
        let less: Vec<_> = before.iter().filter(|trace| !now.contains(trace)).collect();
        if more.is_empty() && less.is_empty() {
            Ok(())
        } else {
            Err(format!("more: {more:?}, less: {less:?}"))
        }
    });
}

#[test]
fn removing_undoes_everything() {
    alone(|| {
        let names = ["h1", "h2", "h3"];
        let bed = Bed::apart(&names);
        let before = names.map(|name| bed[name].traces());
        let sandboxes: Vec<_> = names
            .iter()
            .map(|name| {
                let sandbox = bed[name].host.sandbox(&format!("in-{name}")).unwrap();
                let own = super::node::traces_of(&sandbox);
                (sandbox, own)
            })
            .collect();
        let with_sandboxes = names.map(|name| bed[name].traces());
        let bed = bed.joined(&names);
        // Every member keeps its processes from speaking for it.
        let as_member = soon("a guard on h2", || {
            let traces = bed["h2"].traces();
            match traces.iter().any(|trace| trace.contains("weft-overlay")) {
                true => Ok(traces),
                false => Err(format!("{traces:?}")),
            }
        });

        bed["h1"].weft("network create --ipv6 app");
        bed["h2"].weft("network create --internal back");
        for service in ["--lb rr web", "--lb lc api"] {
            bed["h3"].weft(&format!(
                "service create --network app --port 8000 --port 8000/udp {service}"
            ));
        }
        bed.everywhere("both networks and services", |node| {
            match (
                items(&node.json("network ls")).count(),
                items(&node.json("service ls")).count(),
            ) {
                (2, 2) => Ok(()),
                counts => Err(format!("{counts:?}")),
            }
        });
        let connect = |network: &str, flags: &str| -> Vec<Endpoint> {
            let each = names.iter().zip(&sandboxes);
            each.map(|(name, (sandbox, _))| bed[name].connect(sandbox.clone(), network, flags))
                .collect()
        };
        let mut on_app = connect("app", "--service api");
        let on_back = connect("back", "");
        for endpoint in &mut on_app {
            let server = super::traffic::Server::start(&endpoint.sandbox, endpoint.sandbox.name());
            endpoint.server = Some(server);
        }
        let api = bed["h1"].vip("api");
        for (sandbox, _) in &sandboxes {
            answering(sandbox, api, 3);
        }
        assert_ne!(bed["h1"].traces(), with_sandboxes[0]);

        // One network goes, and the other stays.
        for name in names {
            bed[name].weft(&format!("network disconnect app in-{name}"));
        }
        drop(on_app);
        assert_eq!(
            call(&sandboxes[0].0, api).err().map(|error| error.kind()),
            Some(std::io::ErrorKind::NetworkUnreachable)
        );
        soon("the other network", || {
            sandboxes[0].0.ping(on_back[1].address(), Duration::from_secs(1))
        });
        bed["h2"].weft("service rm web api");
        let removed = |name: &str, line: &str| {
            // What the other nodes did meanwhile has to arrive first.
            soon(format!("{name}: {line}"), || match bed[name].try_weft(line) {
                ended if ended.code == 0 => Ok(()),
                ended => Err(ended.stderr),
            });
        };
        removed("h3", "network rm app");
        // The other goes with the nodes.
        bed["h3"].weft("leave");
        back_to(&bed, "h3", &with_sandboxes[2]);
        bed["h2"].weft("network disconnect back in-h2");
        back_to(&bed, "h2", &as_member);
        bed["h1"].weft("leave");
        back_to(&bed, "h1", &with_sandboxes[0]);
        removed("h2", "network rm back");
        bed["h2"].weft("leave");
        for (sandbox, own) in sandboxes {
            assert_eq!(super::node::traces_of(&sandbox), own, "{}", sandbox.name());
            sandbox.remove().unwrap();
        }
        for (name, before) in names.iter().zip(&before) {
            back_to(&bed, name, before);
        }
        bed.close();
    });
}
