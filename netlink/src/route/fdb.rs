use std::collections::HashMap;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourMessage},
};
use weft_types::Mac;

use super::{
    dump::{FdbEntry, fdb},
    socket::{DumpError, RouteSocket},
};

impl RouteSocket {
    /// The forwarding entries of a bridge for these addresses, without a VLAN, as far as there are any.
    ///
    /// The kernel goes through all entries of a bridge for each of its ports to tell them all, and here it looks each up. One that cannot
    /// look them up (before Linux 5.0) is asked for all.
    pub fn fdb_of_bridge(&mut self, bridge: u32, macs: &[Mac]) -> Result<HashMap<Mac, FdbEntry>, DumpError> {
        let query = |mac: &Mac| {
            let mut query = NeighbourMessage::default();
            query.header.family = AddressFamily::Bridge;
            query.attributes = vec![
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                NeighbourAttribute::Controller(bridge),
            ];
            RouteNetlinkMessage::GetNeighbour(query)
        };
        let entry = |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => fdb(&message),
            _ => None,
        };
        let queries = macs.iter().map(query);
        let found = match self.look_up("forwarding entries of a bridge", queries, entry)? {
            Some(found) => found,
            None => self.fdb(None)?,
        };
        Ok(found.into_iter().map(|entry| (entry.mac, entry)).collect())
    }
}
