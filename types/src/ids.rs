use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what} id: expected {digits} hexadecimal digits")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    digits: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        ///
        /// `Display` and human-readable serde write it whole in lower-case hexadecimal; `Debug` and
        /// [`short`](Self::short) write the first twelve digits, as Docker does.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The first twelve hexadecimal digits, for people.
            pub fn short(&self) -> String {
                HEX.encode(&self.0[..6])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&HEX.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                HEX.decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError { text: text.to_owned(), what: $what, digits: 2 * $bytes })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    // A fixed-size array of bytes; serde's own arrays end at 32, which is enough.
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    <[u8; $bytes]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

id! {
    /// A node: the Ed25519 public key (RFC 8032) it made at its first start. The id is the key, so a
    /// signature by a node can be checked by anybody who knows its id.
    NodeId, 32, "node"
}
id! {
    /// A cluster. Nodes of different clusters never exchange state.
    ClusterId, 16, "cluster"
}
id! {
    /// An overlay network. The name can be shared by accident after a split; the id cannot.
    NetworkId, 16, "network"
}
id! {
    /// The attachment of one sandbox to one network.
    EndpointId, 16, "endpoint"
}
id! {
    /// A service: a virtual address and the endpoints that serve it.
    ServiceId, 16, "service"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_as_text_json_and_bytes() {
        let id = NetworkId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "abababababab");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<NetworkId>(&json).unwrap(), id);
        let bytes = postcard::to_allocvec(&id).unwrap();
        assert_eq!(bytes.len(), 16);
        assert_eq!(postcard::from_bytes::<NetworkId>(&bytes).unwrap(), id);
    }

    #[test]
    fn text_of_the_wrong_length_names_what_was_expected() {
        let error = "abc".parse::<NodeId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`abc` is not a node id: expected 64 hexadecimal digits"
        );
    }
}
