//! What a lab does with each field of the Compose specification, in one place.
//!
//! The rule: a field is used, or noted as harmless, or refused with a reason. None is ignored in silence.

use super::fields::{
    Table,
    Treat::{Note, Refuse, Use},
};

const LATER: &str = "it is not built yet";
const NO_ENGINE: &str = "replicas are processes of this machine, and no container engine is involved";
const NO_FILES: &str = "replicas see this machine's files; name the file in `command`";
const NO_LIMITS: &str = "labs do not limit resources";

pub(super) const TOP: Table = &[
    ("name", Use),
    ("services", Use),
    ("networks", Use),
    ("x-weft", Use),
    ("version", Note("it is obsolete in Compose")),
    ("volumes", Refuse(NO_FILES)),
    ("configs", Refuse(NO_FILES)),
    ("secrets", Refuse(NO_FILES)),
    ("include", Refuse(LATER)),
];

pub(super) const X_WEFT: Table = &[("hosts", Use), ("underlay", Use)];

pub(super) const UNDERLAY: Table = &[("ipv4", Use), ("ipv6", Use), ("mtu", Use)];

pub(super) const SERVICE: Table = &[
    ("command", Use),
    ("entrypoint", Use),
    ("environment", Use),
    ("hostname", Use),
    ("networks", Use),
    ("deploy", Use),
    ("healthcheck", Use),
    ("ports", Use),
    ("x-weft", Use),
    ("image", Note(NO_ENGINE)),
    ("build", Note(NO_ENGINE)),
    ("pull_policy", Note(NO_ENGINE)),
    ("platform", Note(NO_ENGINE)),
    (
        "expose",
        Note("every port of a replica can be reached on its networks"),
    ),
    (
        "depends_on",
        Note("all replicas start together, once every network, name and VIP is there"),
    ),
    ("labels", Note("a replica has no labels")),
    ("annotations", Note("a replica has no annotations")),
    (
        "logging",
        Note("output goes to the replica's log in the lab's directory"),
    ),
    ("init", Note("the lab reaps processes")),
    ("stop_signal", Note("`weft lab down` ends replicas at once")),
    ("stop_grace_period", Note("`weft lab down` ends replicas at once")),
    ("tty", Note("`weft lab exec` passes your terminal on")),
    ("stdin_open", Note("`weft lab exec` passes your terminal on")),
    (
        "restart",
        Refuse("restarting replicas is not built yet; a replica that ends stays down"),
    ),
    (
        "container_name",
        Refuse("replicas are named SERVICE-1, SERVICE-2, …; add an alias to a network for a further name"),
    ),
    ("scale", Refuse("write `deploy: { replicas: N }`")),
    ("extends", Refuse("it is not built yet; use an anchor and `<<`")),
    ("env_file", Refuse("it is not built yet; write `environment`")),
    ("working_dir", Refuse(LATER)),
    ("user", Refuse(LATER)),
    ("profiles", Refuse(LATER)),
    ("network_mode", Refuse("it is not built yet; list `networks`")),
    (
        "links",
        Refuse("use the service's name, or an alias on a network"),
    ),
    (
        "external_links",
        Refuse("use the service's name, or an alias on a network"),
    ),
    ("dns", Refuse("the network's own resolver is used")),
    ("dns_search", Refuse(LATER)),
    ("dns_opt", Refuse(LATER)),
    ("domainname", Refuse(LATER)),
    (
        "extra_hosts",
        Refuse("it is not built yet; use an alias on a network"),
    ),
    ("mac_address", Refuse("give it under the service's `networks`")),
    ("sysctls", Refuse(LATER)),
    ("ulimits", Refuse(LATER)),
    ("cap_add", Refuse(LATER)),
    ("cap_drop", Refuse(LATER)),
    ("privileged", Refuse(NO_ENGINE)),
    ("read_only", Refuse(LATER)),
    ("security_opt", Refuse(NO_ENGINE)),
    ("tmpfs", Refuse(LATER)),
    ("volumes", Refuse(NO_FILES)),
    ("volumes_from", Refuse(NO_FILES)),
    ("configs", Refuse(NO_FILES)),
    ("secrets", Refuse(NO_FILES)),
    ("develop", Refuse(NO_ENGINE)),
    ("devices", Refuse(NO_ENGINE)),
    ("gpus", Refuse(NO_ENGINE)),
    ("cpus", Refuse(NO_LIMITS)),
    ("mem_limit", Refuse(NO_LIMITS)),
    ("pids_limit", Refuse(NO_LIMITS)),
];

pub(super) const SERVICE_X_WEFT: Table = &[
    ("builtin", Use),
    ("lb", Use),
    ("eject", Use),
    ("hosts", Use),
    ("weight", Use),
    ("delay_ms", Use),
    ("port", Use),
    ("health", Use),
];

pub(super) const PORT: Table = &[
    ("target", Use),
    ("published", Use),
    ("protocol", Use),
    ("mode", Use),
    ("host_ip", Use),
    ("name", Note("published ports have no names")),
    ("app_protocol", Note("published ports carry any protocol")),
];

pub(super) const HEALTHCHECK: Table = &[
    ("test", Use),
    ("interval", Use),
    ("timeout", Use),
    ("retries", Use),
    ("start_period", Use),
    ("disable", Use),
    (
        "start_interval",
        Note("a replica that was never healthy is checked every second"),
    ),
];

pub(super) const ATTACHMENT: Table = &[
    ("aliases", Use),
    ("ipv4_address", Use),
    ("ipv6_address", Use),
    ("mac_address", Use),
    ("priority", Refuse("interfaces are made in the order of the list")),
    (
        "gw_priority",
        Refuse("the first network that is not internal gives the default route"),
    ),
    (
        "interface_name",
        Refuse("interfaces are eth0, eth1, … in the order of the list"),
    ),
    ("link_local_ips", Refuse(LATER)),
    ("driver_opts", Refuse(LATER)),
];

pub(super) const DEPLOY: Table = &[
    ("replicas", Use),
    ("endpoint_mode", Use),
    ("placement", Use),
    ("mode", Use),
    ("labels", Note("a replica has no labels")),
    ("resources", Refuse(NO_LIMITS)),
    (
        "restart_policy",
        Refuse("restarting replicas is not built yet; a replica that ends stays down"),
    ),
    ("update_config", Refuse(LATER)),
    ("rollback_config", Refuse(LATER)),
];

pub(super) const PLACEMENT: Table = &[
    ("constraints", Use),
    (
        "preferences",
        Refuse("replicas are spread over all allowed hosts already"),
    ),
    ("max_replicas_per_node", Refuse(LATER)),
];

pub(super) const NETWORK: Table = &[
    ("driver", Use),
    ("driver_opts", Use),
    ("internal", Use),
    ("enable_ipv6", Use),
    ("enable_ipv4", Use),
    ("ipam", Use),
    ("labels", Use),
    ("attachable", Note("every network of a lab is")),
    ("external", Refuse("a lab makes all its networks itself")),
    ("name", Refuse("a network is named by its key")),
];

pub(super) const DRIVER_OPTS: Table = &[
    ("com.docker.network.driver.mtu", Use),
    ("encrypted", Use),
    (
        "com.docker.network.driver.overlay.vxlanid_list",
        Refuse("the cluster chooses the VNI"),
    ),
];

pub(super) const IPAM: Table = &[
    ("driver", Use),
    ("config", Use),
    ("options", Refuse("there are none to set")),
];

pub(super) const IPAM_CONFIG: Table = &[
    ("subnet", Use),
    ("ip_range", Use),
    ("gateway", Use),
    ("aux_addresses", Use),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_table_names_a_field_twice() {
        for table in [
            TOP,
            X_WEFT,
            UNDERLAY,
            SERVICE,
            SERVICE_X_WEFT,
            ATTACHMENT,
            PORT,
            DEPLOY,
            PLACEMENT,
            NETWORK,
            IPAM,
            IPAM_CONFIG,
        ] {
            let mut names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        }
    }
}
