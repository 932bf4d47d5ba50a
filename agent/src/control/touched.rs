//! What may have changed of what the host should be like, since that was last derived.
//!
//! Whoever changes something says what that touches. Who does not know says everything: to say too much costs time, to say too little
//! would leave a host with what is not so any more.

use std::collections::BTreeSet;

use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::{
    Control,
    catalogue::{Change, Endpoint},
    records::{Drainee, EndpointSpec},
};

/// Where something may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Everything,
    /// All of a network that other networks have no part in.
    Network(NetworkId),
    /// An endpoint, and what is made of it for the clients of its service.
    Endpoint(NetworkId, EndpointId),
    /// How hosts reach an endpoint.
    Way(NetworkId, EndpointId),
    Service(NetworkId, ServiceId),
    /// All services of a name.
    Called(NetworkId, String),
    /// The endpoints of a node.
    Node(NodeId),
    /// Only what is derived anew each time.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Touched {
    pub(super) everything: bool,
    pub(super) networks: BTreeSet<NetworkId>,
    pub(super) endpoints: BTreeSet<(NetworkId, EndpointId)>,
    pub(super) ways: BTreeSet<(NetworkId, EndpointId)>,
    pub(super) services: BTreeSet<(NetworkId, ServiceId)>,
    /// By names in lower case.
    pub(super) called: BTreeSet<(NetworkId, String)>,
}

impl Touched {
    pub(super) fn everything() -> Self {
        Self {
            everything: true,
            ..Self::nothing()
        }
    }

    pub(super) fn nothing() -> Self {
        Self {
            everything: false,
            networks: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            ways: BTreeSet::new(),
            services: BTreeSet::new(),
            called: BTreeSet::new(),
        }
    }
}

impl Control {
    /// The host is to be told, and this is what may be another than before.
    pub(super) fn host_changed_at(&mut self, place: Place) {
        self.touch(place);
        if !self.turn.host_changed && self.reading_back.is_none() {
            self.turn.host_changed = true;
            self.generation += 1;
        }
    }

    fn touch(&mut self, place: Place) {
        let touched = &mut self.derived.touched;
        if touched.everything {
            return;
        }
        match place {
            Place::Everything => *touched = Touched::everything(),
            Place::Network(network) => drop(touched.networks.insert(network)),
            Place::Endpoint(network, id) => {
                touched.endpoints.insert((network, id));
                let endpoint = self.catalogue.endpoint(network, id);
                let service = endpoint.and_then(|endpoint| endpoint.spec.service.as_ref());
                if let Some(service) = service {
                    touched.called.insert((network, service.to_ascii_lowercase()));
                }
            }
            Place::Way(network, id) => drop(touched.ways.insert((network, id))),
            Place::Service(network, id) => drop(touched.services.insert((network, id))),
            Place::Called(network, name) => {
                touched.called.insert((network, name.to_ascii_lowercase()));
            }
            Place::Node(node) => {
                for (network, id, endpoint) in self.catalogue.endpoints_of(node) {
                    touched.endpoints.insert((network, id));
                    if let Some(service) = &endpoint.spec.service {
                        touched.called.insert((network, service.to_ascii_lowercase()));
                    }
                }
            }
            Place::Nothing => {}
        }
    }

    /// Takes note of what a change touches.
    pub(super) fn note_touched(&mut self, change: &Change) {
        match change {
            Change::KeysChanged => {}
            Change::TokensChanged => self.host_changed_at(Place::Nothing),
            Change::ServiceCreated(network, id)
            | Change::ServiceChanged(network, id)
            | Change::ServiceRemoved(network, id, _) => {
                self.host_changed_at(Place::Service(*network, *id));
            }
            Change::EndpointAdded(network, id) => {
                self.host_changed_at(Place::Endpoint(*network, *id));
                self.host_changed_at(Place::Way(*network, *id));
            }
            Change::EndpointChanged(network, id, was) => {
                self.touch_service_of(*network, was);
                self.host_changed_at(Place::Endpoint(*network, *id));
                let is = self.catalogue.endpoint(*network, *id);
                if is.is_none_or(|is| !is_reached_alike(&was.spec, &is.spec)) {
                    self.host_changed_at(Place::Way(*network, *id));
                }
            }
            Change::EndpointRemoved(network, id, was) => {
                self.touch_service_of(*network, was);
                self.host_changed_at(Place::Endpoint(*network, *id));
                self.host_changed_at(Place::Way(*network, *id));
            }
            Change::DrainChanged(Drainee::Endpoint(network, id)) => {
                self.host_changed_at(Place::Endpoint(*network, *id));
            }
            Change::DrainChanged(Drainee::Node(node)) => self.host_changed_at(Place::Node(*node)),
            Change::IngressChanged(network) => self.host_changed_at(Place::Network(*network)),
            // Others may be called otherwise for it, or may be reached otherwise.
            Change::Node(_)
            | Change::NodeRemoved(_)
            | Change::EstatesChanged
            | Change::NetworkCreated(_)
            | Change::NetworkChanged(_)
            | Change::NetworkContested(_)
            | Change::NetworkRemoved(..) => self.host_changed_at(Place::Everything),
        }
    }

    fn touch_service_of(&mut self, network: NetworkId, endpoint: &Endpoint) {
        if let Some(service) = &endpoint.spec.service {
            self.host_changed_at(Place::Called(network, service.clone()));
        }
    }
}

/// Whether an endpoint's place on its network is the same.
fn is_reached_alike(was: &EndpointSpec, is: &EndpointSpec) -> bool {
    // Whoever adds something says here whether it counts.
    let EndpointSpec {
        name: _,
        aliases: _,
        mac,
        addresses,
        service: _,
        weight: _,
        gives_default_route,
        attachment,
        health: _,
        leaving: _,
    } = was;
    (mac, addresses, gives_default_route, attachment)
        == (&is.mac, &is.addresses, &is.gives_default_route, &is.attachment)
}
