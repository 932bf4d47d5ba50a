//! What the tests of the probes judge by: a network `app` with one endpoint `a` here.

use weft_types::Mac;

use crate::control::{
    doctor::{Local, NetworkView},
    records::SandboxSpec,
};

pub(super) fn network() -> NetworkView {
    NetworkView {
        name: "app".to_owned(),
        mtu: 1450,
        encrypted: false,
        dns: Vec::new(),
        gateways: Vec::new(),
        locals: Vec::new(),
        remotes: Vec::new(),
        names: Default::default(),
        services: Vec::new(),
    }
}

pub(super) fn local() -> Local {
    Local {
        name: "a".to_owned(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        addresses: Vec::new(),
        sandbox: SandboxSpec {
            target: "a".to_owned(),
            path: "/a".to_owned(),
            device: 1,
            inode: 1,
        },
    }
}
