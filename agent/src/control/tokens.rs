//! Join tokens: making and listing them, and judging who shows one.

use data_encoding::HEXLOWER;
use rand::RngExt;
use weft_gossip::Key;
use weft_types::NodeId;

use super::{
    Control, Now,
    records::{CLUSTER, Kind, TokenFact, encode},
    token::{self, Token},
};
use crate::api::{ApiError, Timestamp, types::*};

/// A token that lives longer is a password.
const MAX_TTL_SECS: u64 = 30 * 24 * 3600;
/// Expired tokens are forgotten, so this many at a time are plenty.
pub(crate) const MAX_TOKENS: usize = 1_000;

/// Why a joining node was refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Refused {
    UnknownToken,
    Expired,
    Used {
        by: String,
    },
    Removed,
    NameTaken {
        name: String,
    },
    /// There is no room for another node in the cluster.
    NoRoom,
    /// Who was asked cannot say any more that it lets one in.
    Untold {
        by: String,
    },
}

impl Control {
    pub fn create_token(
        &mut self,
        request: &TokenCreateRequest,
        now: Now,
    ) -> Result<TokenCreateResponse, ApiError> {
        if request.ttl_secs == 0 || request.ttl_secs > MAX_TTL_SECS {
            return Err(
                ApiError::invalid("a token is valid for at least a second and at most 30 days")
                    .with_help("for example `--ttl 15m`; a token for many hosts is made with --reusable"),
            );
        }
        self.forget_old_tokens(now);
        if self
            .catalogue
            .tokens()
            .filter(|(_, author, _)| *author == self.me)
            .count()
            >= MAX_TOKENS
        {
            return Err(ApiError::exhausted(format!(
                "this node has made {MAX_TOKENS} tokens that are still valid"
            ))
            .with_help("wait until some expire, or make a --reusable one"));
        }
        let token = Token {
            cluster: self.facts.id,
            join_key: token::join_key(&self.facts.secret),
            id: self.rng.random(),
            secret: self.rng.random(),
        };
        let expires_secs = now.unix_millis / 1000 + request.ttl_secs;
        let fact = TokenFact {
            public: token.public(),
            expires_secs,
            reusable: request.reusable,
        };
        self.publish(Kind::Token.key(CLUSTER, token.id), encode(&fact), now)?;
        Ok(TokenCreateResponse {
            id: HEXLOWER.encode(&token.id),
            join_command: format!("weft join --token {token} {}", self.settings.gossip),
            token: token.to_string(),
            expires: Timestamp::from_unix_millis(expires_secs * 1000),
            reusable: request.reusable,
        })
    }

    /// What this node says of tokens that let nobody in any more, and of nodes that came with one and were removed since: nobody
    /// believes those whom they let in.
    fn forget_old_tokens(&mut self, now: Now) {
        let is_over = |fact: &TokenFact| fact.expires_millis() <= now.unix_millis;
        let own = self
            .catalogue
            .tokens()
            .filter(|(_, author, _)| *author == self.me);
        let expired = own.filter(|(.., fact)| is_over(fact));
        let expired = expired.map(|(id, ..)| Kind::Token.key(CLUSTER, id));
        let admissions = self.catalogue.gossip_keys().admissions();
        let used = admissions.filter(|(node, by, token)| {
            *by == self.me
                && self.catalogue.is_removed(*node)
                && self.catalogue.token(token).is_none_or(is_over)
        });
        let used = used.map(|(node, _, token)| use_key(token, node));
        for key in expired.chain(used).collect::<Vec<_>>() {
            self.withdraw(&key, now);
        }
    }

    pub(super) fn list_tokens(&self, now: Now) -> Vec<TokenInfo> {
        self.catalogue
            .tokens()
            .filter(|(_, _, fact)| fact.expires_millis() > now.unix_millis)
            .map(|(id, author, fact)| TokenInfo {
                id: HEXLOWER.encode(&id),
                created_by: author,
                created_by_name: self.catalogue.node_name(author),
                expires: Timestamp::from_unix_millis(fact.expires_millis()),
                reusable: fact.reusable,
                uses: self.catalogue.token_users(id).len() as u32,
            })
            .collect()
    }

    /// Whether `node`, which proved to know the secret of a token, may come in.
    pub(super) fn judge(
        &mut self,
        node: NodeId,
        name: &str,
        id: [u8; 8],
        proves: impl Fn([u8; 32]) -> bool,
        now: Now,
    ) -> Result<(), Refused> {
        let fact = self
            .catalogue
            .token(&id)
            .filter(|fact| proves(fact.public))
            .ok_or(Refused::UnknownToken)?;
        if fact.expires_millis() <= now.unix_millis {
            return Err(Refused::Expired);
        }
        if self.catalogue.is_removed(node) {
            return Err(Refused::Removed);
        }
        // The answer to an earlier try may have been lost: the same node may use its token again.
        if !fact.reusable
            && let Some(user) = self
                .catalogue
                .token_users(id)
                .into_iter()
                .find(|user| *user != node)
        {
            return Err(Refused::Used {
                by: self.catalogue.node_name(user),
            });
        }
        let namesake = self
            .catalogue
            .nodes()
            .find(|(id, known)| *id != node && known.fact.as_ref().is_some_and(|fact| fact.name == name));
        if namesake.is_some_and(|(id, _)| self.serves(id)) {
            return Err(Refused::NameTaken {
                name: name.to_owned(),
            });
        }
        if self.catalogue.node(node).is_none() && !self.gossip.has_room_for_authors() {
            return Err(Refused::NoRoom);
        }
        self.forget_old_tokens(now);
        // Somebody nobody knows to have been let in would be told no later key, and might come with the same token again.
        if let Err(error) = self.publish(use_key(id, node), node.0.to_vec().into(), now) {
            tracing::warn!(%error, "a node is not let in");
            return Err(Refused::Untold {
                by: self.catalogue.node_name(self.me),
            });
        }
        self.keyring.note_admitted(node, now.instant);
        Ok(())
    }
}

fn use_key(token: [u8; 8], node: NodeId) -> Key {
    Kind::TokenUse.key(CLUSTER, [token.as_slice(), &node.0[..8]].concat())
}
