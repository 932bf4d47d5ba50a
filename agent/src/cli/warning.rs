use crate::api::types::Unconfirmed;

/// Says on standard error where a change is not known to be in force. The command has succeeded: the change is durable.
pub(super) fn warn_unconfirmed(unconfirmed: &[Unconfirmed]) {
    eprint!("{}", warning(unconfirmed));
}

/// Says on standard error whose connections a listing does not have.
pub(super) fn warn_uncounted(uncounted: &[Unconfirmed]) {
    for node in uncounted {
        eprintln!("warning: not counted on node {}: {}", node.node_name, node.reason);
    }
}

fn warning(unconfirmed: &[Unconfirmed]) -> String {
    if unconfirmed.is_empty() {
        return String::new();
    }
    let lines = unconfirmed.iter().map(|node| {
        format!(
            "warning: not known to be in force on node {}: {}\n",
            node.node_name, node.reason
        )
    });
    let help =
        " help: the change is durable and comes into force there by itself; `weft node ls` shows the nodes\n";
    lines.chain([help.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::contract::sample;

    #[test]
    fn every_node_that_has_not_confirmed_a_change_is_named_with_the_reason() {
        assert_eq!(warning(&[]), "");
        assert_eq!(
            warning(&[sample("Unconfirmed")]),
            "warning: not known to be in force on node h3: no answer within 5 s\n \
             help: the change is durable and comes into force there by itself; `weft node ls` shows the nodes\n"
        );
    }
}
