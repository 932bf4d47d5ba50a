//! What the kernel holds.

use weft_overlay::plan::Op;

use crate::{
    api::types::{DoctorCheck, DoctorTopic, DoctorVerdict},
    control::doctor::Expected,
    daemon::host::KernelView,
};

pub(super) fn judge(view: &KernelView, expected: &Expected) -> Vec<DoctorCheck> {
    let here = &expected.node;
    if let Some(error) = &view.error {
        let sentence = format!("the kernel cannot be read: {error}");
        return vec![
            DoctorCheck::wrong(DoctorTopic::Kernel, here, sentence)
                .because("the agent lacks CAP_NET_ADMIN, or memory")
                .with_help("see the agent's log"),
        ];
    }
    if view.is_early {
        let sentence =
            "it is not known yet what the kernel should hold: what an earlier agent left stays as it is";
        return vec![
            DoctorCheck::ok(DoctorTopic::Kernel, here, sentence)
                .judged(DoctorVerdict::Unknown)
                .because("the agent has just started, and has yet to hear from the other nodes")
                .with_help("ask again in a few seconds"),
        ];
    }
    let mut checks = Vec::new();
    if view.differences.is_empty() {
        let sentence =
            "links, addresses, routes, forwarding and neighbour entries and rules are as they should be";
        checks.push(DoctorCheck::ok(DoctorTopic::Kernel, here, sentence));
    }
    for op in &view.differences {
        let (subject, missing) = describe(op, expected);
        let sentence = format!("the kernel differs from the records; it takes: {missing}");
        let check = DoctorCheck::wrong(DoctorTopic::Kernel, subject, sentence)
            .because("something else on this host changed or removed what is Weft's");
        checks.push(match &view.left {
            None => {
                check.with_help("it is put right within half a minute, and at once by `weft doctor --fix`")
            }
            Some(left) if !left.contains(op) => check.judged(DoctorVerdict::Fixed),
            Some(_) => {
                check.with_help("it could not be put right: see the agent's log for the kernel's reason")
            }
        });
    }
    checks
}

/// What an operation is about, and what it does, with names instead of ids.
fn describe(op: &Op, expected: &Expected) -> (String, String) {
    let network = |id| {
        let name = expected.network_names.get(id);
        name.map_or_else(
            || format!("network {}", id.short()),
            |name| format!("network `{name}`"),
        )
    };
    match op {
        Op::Host(op) => (expected.node.clone(), op.to_string()),
        Op::Network(id, op) => (network(id), op.to_string()),
        Op::Endpoint(id, endpoint, op) => {
            let name = expected.endpoint_names.get(endpoint);
            let name = name.cloned().unwrap_or_else(|| endpoint.short());
            (format!("endpoint `{name}` of {}", network(id)), op.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_overlay::plan::{EndpointOp, Far, NetworkOp};
    use weft_types::{EndpointId, NetworkId};

    use super::*;

    fn expected() -> Expected {
        Expected {
            node: "h1".to_owned(),
            network_names: [(NetworkId([1; 16]), "app".to_owned())].into(),
            endpoint_names: [(EndpointId([2; 16]), "web-1".to_owned())].into(),
            ..Expected::default()
        }
    }

    #[test]
    fn a_difference_is_named_and_what_was_put_right_is_said_to() {
        let fdb = Op::Network(
            NetworkId([1; 16]),
            NetworkOp::SetFdb(
                "02:00:00:00:00:01".parse().unwrap(),
                Far::Vtep([10, 0, 0, 2].into()),
            ),
        );
        let veth = Op::Endpoint(NetworkId([1; 16]), EndpointId([2; 16]), EndpointOp::SetMtu(1450));
        let mut view = KernelView {
            differences: vec![fdb, veth.clone()],
            ..KernelView::default()
        };
        let seen = |view: &KernelView| -> Vec<_> {
            let checks = judge(view, &expected());
            checks
                .into_iter()
                .map(|check| (check.subject, check.verdict))
                .collect()
        };
        let [network, endpoint] = ["network `app`", "endpoint `web-1` of network `app`"].map(str::to_owned);
        assert_eq!(
            seen(&view),
            [
                (network.clone(), DoctorVerdict::Wrong),
                (endpoint.clone(), DoctorVerdict::Wrong)
            ]
        );
        view.left = Some(vec![veth]);
        assert_eq!(
            seen(&view),
            [(network, DoctorVerdict::Fixed), (endpoint, DoctorVerdict::Wrong)]
        );
        assert_eq!(
            seen(&KernelView::default()),
            [("h1".to_owned(), DoctorVerdict::Ok)]
        );
        view.error = Some("no memory".to_owned());
        assert_eq!(seen(&view), [("h1".to_owned(), DoctorVerdict::Wrong)]);
    }
}
