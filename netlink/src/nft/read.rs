//! Reading back what is installed.

use std::io;

use super::{
    Family, Nft, NftError, Table,
    nfnl::{DUMP, Messages, attribute, attributes, number, text},
    timeout::OBJECT_TIMEOUT,
    transaction::message_type,
};

/// An element as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The bytes of its key, each part of a concatenation padded to four bytes.
    pub key: Vec<u8>,
    /// The bytes of its value, in a map of values.
    pub value: Option<Vec<u8>>,
    /// The chain its verdict leads to, in a verdict map.
    pub chain: Option<String>,
}

/// A rule as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledRule {
    /// The chain that it stands in.
    pub chain: String,
    /// What the kernel calls it within its table.
    pub handle: u64,
    /// Why it is there.
    pub comment: String,
}

impl Nft {
    /// The tables of this namespace whose name starts with `prefix`.
    pub fn tables(&self, prefix: &str) -> Result<Vec<Table>, NftError> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6, Family::Netdev] {
            found.extend(self.tables_of(family, prefix)?);
        }
        Ok(found)
    }

    /// The same of one family.
    pub fn tables_of(&self, family: Family, prefix: &str) -> Result<Vec<Table>, NftError> {
        self.dump("tables", family, libc::NFT_MSG_GETTABLE, None, |attrs| {
            let name = text(attrs, 1).filter(|name| name.starts_with(prefix))?;
            Some(Table::new(family, name))
        })
    }

    /// The names of a table's chains; none if there is no such table.
    pub fn chains(&self, table: &Table) -> Result<Vec<String>, NftError> {
        // NFTA_CHAIN_TABLE, _NAME. The kernel does not filter chains by table.
        self.dump("chains", table.family, libc::NFT_MSG_GETCHAIN, None, |attrs| {
            (text(attrs, 1)? == table.name).then(|| text(attrs, 3))?
        })
    }

    /// The names of a table's time-out policies; none if there is no such table.
    pub fn timeouts(&self, table: &Table) -> Result<Vec<String>, NftError> {
        // NFTA_OBJ_TABLE, _NAME, _TYPE
        let within = Some((table, None));
        self.dump("objects", table.family, libc::NFT_MSG_GETOBJ, within, |attrs| {
            let is_ours = text(attrs, 1)? == table.name && number(attrs, 3)? == OBJECT_TIMEOUT;
            is_ours.then(|| text(attrs, 2))?
        })
    }

    /// The names of a table's sets and maps, those without a name of their own too; none if there is no such table.
    pub fn sets(&self, table: &Table) -> Result<Vec<String>, NftError> {
        // NFTA_SET_TABLE, _NAME
        let within = Some((table, None));
        self.dump("sets", table.family, libc::NFT_MSG_GETSET, within, |attrs| {
            (text(attrs, 1)? == table.name).then(|| text(attrs, 2))?
        })
    }

    /// The comments of a table's rules, each with the chain it stands in; none if there is no such table.
    pub fn rule_comments(&self, table: &Table) -> Result<Vec<(String, String)>, NftError> {
        let rules = self.commented_rules(table)?.into_iter();
        Ok(rules.map(|rule| (rule.chain, rule.comment)).collect())
    }

    /// A table's rules that have a comment, each chain's in order; none if there is no such table.
    pub fn commented_rules(&self, table: &Table) -> Result<Vec<InstalledRule>, NftError> {
        // NFTA_RULE_TABLE, _CHAIN, _HANDLE, _USERDATA
        self.dump(
            "rules",
            table.family,
            libc::NFT_MSG_GETRULE,
            Some((table, None)),
            |attrs| {
                if text(attrs, 1)? != table.name {
                    return None;
                }
                Some(InstalledRule {
                    chain: text(attrs, 2)?,
                    handle: u64::from_be_bytes(attribute(attrs, 3)?.try_into().ok()?),
                    comment: comment(attribute(attrs, 7)?)?,
                })
            },
        )
    }

    /// The elements of a named set; none if there is no such table or set.
    pub fn elements(&self, table: &Table, set: &str) -> Result<Vec<Installed>, NftError> {
        self.each_element(table, set, installed)
    }

    /// How many packets have found each element of a set that counts them, with the bytes of its key; none if there is no
    /// such table or set.
    pub fn counters(&self, table: &Table, set: &str) -> Result<Vec<(Vec<u8>, u64)>, NftError> {
        self.each_element(table, set, counter)
    }

    fn each_element<T>(
        &self,
        table: &Table,
        set: &str,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        // NFTA_SET_ELEM_LIST_ELEMENTS
        let lists = self.dump(
            "elements",
            table.family,
            libc::NFT_MSG_GETSETELEM,
            Some((table, Some(set))),
            |attrs| {
                Some(
                    attributes(attribute(attrs, 3)?)
                        .filter_map(|(_, element)| read(element))
                        .collect::<Vec<_>>(),
                )
            },
        )?;
        Ok(lists.into_iter().flatten().collect())
    }

    fn dump<T>(
        &self,
        what: &'static str,
        family: Family,
        message: i32,
        within: Option<(&Table, Option<&str>)>,
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        let mut request = Messages::default();
        request.push(message_type(message), DUMP, family.number(), 0, |m| {
            if let Some((table, set)) = within {
                // NFTA_RULE_TABLE and NFTA_SET_ELEM_LIST_TABLE, _SET have the same numbers.
                m.string(1, &table.name);
                if let Some(set) = set {
                    m.string(2, set);
                }
            }
        });
        match self.socket.dump(&request, |_, attrs| each(attrs)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            answer => answer.map_err(|source| NftError::Read { what, family, source }),
        }
    }
}

/// NFTA_SET_ELEM_KEY, _DATA; NFTA_DATA_VALUE, _VERDICT; NFTA_VERDICT_CHAIN
fn installed(element: &[u8]) -> Option<Installed> {
    let key = attribute(attribute(element, 1)?, 1)?.to_vec();
    let data = attribute(element, 2);
    let chain = data
        .and_then(|data| attribute(data, 2))
        .filter(|verdict| number(verdict, 1).is_some())
        .and_then(|verdict| text(verdict, 2));
    let value = data.and_then(|data| attribute(data, 1)).map(<[u8]>::to_vec);
    Some(Installed { key, value, chain })
}

/// NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE; NFTA_SET_ELEM_EXPR, NFTA_EXPR_DATA, NFTA_COUNTER_PACKETS
fn counter(element: &[u8]) -> Option<(Vec<u8>, u64)> {
    let key = attribute(attribute(element, 1)?, 1)?.to_vec();
    let packets = attribute(attribute(attribute(element, 7)?, 2)?, 2)?;
    Some((key, u64::from_be_bytes(packets.try_into().ok()?)))
}

fn comment(userdata: &[u8]) -> Option<String> {
    let [0, len, rest @ ..] = userdata else {
        return None;
    };
    let text = rest.get(..usize::from(*len))?;
    Some(String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned())
}
