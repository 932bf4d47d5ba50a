//! A list of changes that the kernel makes all at once or not at all.

use std::fmt;

use super::{
    expr::{encode_set_counter, encode_value, encode_verdict},
    model::{Chain, Datum, Kind, Table},
    nfnl::{ACK, APPEND, Attrs, CREATE, Messages},
    rule::Rule,
    set::{Element, ElementData, Set, SetData, SetRef},
    timeout::{OBJECT_TIMEOUT, Timeout},
};

/// Keeps every nest of elements far below the 64 KiB of a netlink attribute.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// Changes in the order in which they are to happen; `Display` writes one line for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    ops: Vec<Op>,
    anonymous_sets: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    AddTable(Table),
    DeleteTable(Table),
    AddTimeout(Table, Timeout),
    DeleteTimeout(Table, String),
    AddChain(Table, Chain),
    FlushChain(Table, String),
    DeleteChain(Table, String),
    AddRule(Table, String, Rule),
    InsertRule(Table, String, Rule),
    DeleteRule(Table, String, u64),
    AddSet(Table, Set, SetRef, u32),
    DeleteSet(Table, String),
    AddElements(Table, SetRef, Vec<Element>),
    DeleteElements(Table, SetRef, Vec<Element>),
}

impl Transaction {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Adds a table, if it is not there.
    pub fn add_table(&mut self, table: &Table) -> &mut Self {
        self.push(Op::AddTable(table.clone()))
    }

    /// Deletes a table and all in it; it may be absent.
    pub fn delete_table(&mut self, table: &Table) -> &mut Self {
        // Kernels before 6.3 know no "delete if there"; adding it first comes to the same.
        self.push(Op::AddTable(table.clone()))
            .push(Op::DeleteTable(table.clone()))
    }

    /// Adds a policy, if it is not there.
    pub fn add_timeout(&mut self, table: &Table, timeout: Timeout) -> &mut Self {
        self.push(Op::AddTimeout(table.clone(), timeout))
    }

    /// Deletes a policy that no rule names any more. Connections that began under it have the namespace's own time from
    /// their next packet on.
    pub fn delete_timeout(&mut self, table: &Table, name: &str) -> &mut Self {
        self.push(Op::DeleteTimeout(table.clone(), name.to_owned()))
    }

    /// Adds a chain, if it is not there.
    pub fn add_chain(&mut self, table: &Table, chain: Chain) -> &mut Self {
        self.push(Op::AddChain(table.clone(), chain))
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        self.push(Op::FlushChain(table.clone(), chain.to_owned()))
    }

    /// Deletes an empty chain to which nothing jumps any more.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        self.push(Op::DeleteChain(table.clone(), chain.to_owned()))
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: Rule) -> &mut Self {
        self.push(Op::AddRule(table.clone(), chain.to_owned(), rule))
    }

    /// Adds a rule at the beginning of a chain.
    pub fn insert_rule(&mut self, table: &Table, chain: &str, rule: Rule) -> &mut Self {
        self.push(Op::InsertRule(table.clone(), chain.to_owned(), rule))
    }

    /// Deletes a rule by what the kernel calls it. One that is not there makes the transaction fail.
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) -> &mut Self {
        self.push(Op::DeleteRule(table.clone(), chain.to_owned(), handle))
    }

    /// Adds a named set or map, if it is not there.
    pub fn add_set(&mut self, table: &Table, set: Set) -> &mut Self {
        let name = SetRef::Named(set.name.clone());
        self.push(Op::AddSet(table.clone(), set, name, 0))
    }

    /// Deletes a named set or map that no rule names any more.
    pub fn delete_set(&mut self, table: &Table, name: &str) -> &mut Self {
        self.push(Op::DeleteSet(table.clone(), name.to_owned()))
    }

    /// Adds a set for exactly one rule, to be added by the same transaction after it; it goes when that rule goes.
    pub fn add_anonymous_set(&mut self, table: &Table, set: Set, elements: Vec<Element>) -> SetRef {
        self.anonymous_sets += 1;
        let name = SetRef::Anonymous(self.anonymous_sets);
        self.push(Op::AddSet(
            table.clone(),
            set,
            name.clone(),
            elements.len() as u32,
        ));
        self.add_elements(table, name.clone(), elements);
        name
    }

    /// Adds elements. One that is there with another value makes the transaction fail: delete it first.
    pub fn add_elements(
        &mut self,
        table: &Table,
        set: impl Into<SetRef>,
        elements: Vec<Element>,
    ) -> &mut Self {
        if elements.is_empty() {
            return self;
        }
        self.push(Op::AddElements(table.clone(), set.into(), elements))
    }

    /// Deletes elements by their keys. One that is not there makes the transaction fail.
    pub fn delete_elements(
        &mut self,
        table: &Table,
        set: impl Into<SetRef>,
        elements: Vec<Element>,
    ) -> &mut Self {
        if elements.is_empty() {
            return self;
        }
        self.push(Op::DeleteElements(table.clone(), set.into(), elements))
    }

    /// Adds the changes of `other` behind these.
    pub fn append(&mut self, other: Self) -> &mut Self {
        let offset = self.anonymous_sets;
        self.anonymous_sets += other.anonymous_sets;
        self.ops.extend(other.ops.into_iter().map(|mut op| {
            op.renumber(offset);
            op
        }));
        self
    }

    /// How many bytes it takes on the wire. The kernel accepts about 400 KiB at once from a sender without
    /// privilege over the first user namespace (twice `net.core.wmem_max`).
    pub fn encoded_len(&self) -> usize {
        self.encode().0.len()
    }

    fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    /// The batch, and for each of its messages the change it stands for.
    pub(super) fn encode(&self) -> (Messages, Vec<usize>) {
        const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
        let mut batch = Messages::default();
        let mut op_of_message = vec![0];
        batch.push(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, 0, SUBSYSTEM, |_| {});
        for (index, op) in self.ops.iter().enumerate() {
            // One acknowledgement, of the last change, is enough to know that the whole batch was worked off.
            let last = index + 1 == self.ops.len();
            op.encode(&mut batch, if last { ACK } else { 0 });
            op_of_message.resize(batch.count() as usize, index);
        }
        batch.push(libc::NFNL_MSG_BATCH_END as u16, 0, 0, SUBSYSTEM, |_| {});
        (batch, op_of_message)
    }

    /// The change that a message of the batch stands for, in words.
    pub(super) fn describe(&self, op: usize) -> String {
        let text = self.ops.get(op).map(Op::to_string).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => write!(f, "add table {table}"),
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddTimeout(table, timeout) => write!(f, "add timeout {table} {timeout}"),
            Self::DeleteTimeout(table, name) => write!(f, "delete timeout {table} {name}"),
            Self::AddChain(table, chain) => write!(f, "add chain {table} {chain}"),
            Self::FlushChain(table, chain) => write!(f, "flush chain {table} {chain}"),
            Self::DeleteChain(table, chain) => write!(f, "delete chain {table} {chain}"),
            Self::AddRule(table, chain, rule) => write!(f, "add rule {table} {chain} {rule}"),
            Self::InsertRule(table, chain, rule) => write!(f, "insert rule {table} {chain} {rule}"),
            Self::DeleteRule(table, chain, handle) => {
                write!(f, "delete rule {table} {chain} handle {handle}")
            }
            Self::DeleteSet(table, name) => write!(f, "delete set {table} {name}"),
            Self::AddSet(table, set, SetRef::Named(_), _) => write!(f, "add set {table} {set}"),
            Self::AddSet(table, set, name, _) => write!(f, "add set {table} {name}{set}"),
            Self::AddElements(table, set, elements) => {
                write!(f, "add elements {table} {set}")?;
                elements.iter().try_for_each(|element| write!(f, "\n  {element}"))
            }
            Self::DeleteElements(table, set, elements) => {
                write!(f, "delete elements {table} {set}")?;
                elements.iter().try_for_each(|element| write!(f, "\n  {element}"))
            }
        }
    }
}

/// The attribute numbers are those of `linux/netfilter/nf_tables.h`, each named in its comment.
impl Op {
    fn encode(&self, batch: &mut Messages, flags: u16) {
        match self {
            // NFTA_TABLE_NAME
            Self::AddTable(table) => {
                push(batch, libc::NFT_MSG_NEWTABLE, flags | CREATE, table, |m| {
                    m.string(1, &table.name)
                });
            }
            Self::DeleteTable(table) => {
                push(batch, libc::NFT_MSG_DELTABLE, flags, table, |m| {
                    m.string(1, &table.name)
                });
            }
            // NFTA_OBJ_TABLE, _NAME, _TYPE
            Self::AddTimeout(table, timeout) => {
                push(batch, libc::NFT_MSG_NEWOBJ, flags | CREATE, table, |m| {
                    m.string(1, &table.name);
                    timeout.encode(m);
                });
            }
            Self::DeleteTimeout(table, name) => push(batch, libc::NFT_MSG_DELOBJ, flags, table, |m| {
                m.string(1, &table.name);
                m.string(2, name);
                m.u32(3, OBJECT_TIMEOUT);
            }),
            Self::AddChain(table, chain) => {
                push(batch, libc::NFT_MSG_NEWCHAIN, flags | CREATE, table, |m| {
                    encode_chain(m, table, chain)
                });
            }
            // NFTA_CHAIN_TABLE, _NAME
            Self::DeleteChain(table, chain) => push(batch, libc::NFT_MSG_DELCHAIN, flags, table, |m| {
                m.string(1, &table.name);
                m.string(3, chain);
            }),
            // NFTA_RULE_TABLE, _CHAIN
            Self::FlushChain(table, chain) => push(batch, libc::NFT_MSG_DELRULE, flags, table, |m| {
                m.string(1, &table.name);
                m.string(2, chain);
            }),
            Self::AddRule(table, chain, rule) => {
                push(
                    batch,
                    libc::NFT_MSG_NEWRULE,
                    flags | CREATE | APPEND,
                    table,
                    |m| encode_rule(m, table, chain, rule),
                );
            }
            Self::InsertRule(table, chain, rule) => {
                push(batch, libc::NFT_MSG_NEWRULE, flags | CREATE, table, |m| {
                    encode_rule(m, table, chain, rule)
                });
            }
            // NFTA_RULE_TABLE, _CHAIN, _HANDLE
            Self::DeleteRule(table, chain, handle) => {
                push(batch, libc::NFT_MSG_DELRULE, flags, table, |m| {
                    m.string(1, &table.name);
                    m.string(2, chain);
                    m.bytes(3, &handle.to_be_bytes());
                });
            }
            Self::AddSet(table, set, name, size) => {
                push(batch, libc::NFT_MSG_NEWSET, flags | CREATE, table, |m| {
                    encode_set(m, table, set, name, *size)
                });
            }
            // NFTA_SET_TABLE, _NAME
            Self::DeleteSet(table, name) => push(batch, libc::NFT_MSG_DELSET, flags, table, |m| {
                m.string(1, &table.name);
                m.string(2, name);
            }),
            Self::AddElements(table, set, elements) => {
                encode_elements(
                    batch,
                    (libc::NFT_MSG_NEWSETELEM, flags | CREATE),
                    table,
                    set,
                    elements,
                );
            }
            Self::DeleteElements(table, set, elements) => {
                encode_elements(batch, (libc::NFT_MSG_DELSETELEM, flags), table, set, elements);
            }
        }
    }

    /// Moves the numbers of anonymous sets when transactions are joined.
    fn renumber(&mut self, offset: u32) {
        let shift = |set: &mut SetRef| {
            if let SetRef::Anonymous(number) = set {
                *number += offset;
            }
        };
        match self {
            Self::AddSet(_, _, set, _) | Self::AddElements(_, set, _) => shift(set),
            Self::AddRule(_, _, rule) | Self::InsertRule(_, _, rule) => rule
                .exprs
                .iter_mut()
                .filter_map(|expr| expr.set_mut())
                .for_each(shift),
            _ => {}
        }
    }
}

/// NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS, _USERDATA
fn encode_rule(m: &mut Attrs, table: &Table, chain: &str, rule: &Rule) {
    m.string(1, &table.name);
    m.string(2, chain);
    m.nest(4, |list| {
        rule.exprs.iter().for_each(|expr| expr.encode(list, table.family))
    });
    if let Some(comment) = &rule.comment {
        m.bytes(7, &comment_userdata(comment));
    }
}

fn push(batch: &mut Messages, message: i32, flags: u16, table: &Table, body: impl FnOnce(&mut Attrs)) {
    batch.push(message_type(message), flags, table.family.number(), 0, body);
}

pub(super) fn message_type(message: i32) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | message as u16
}

/// NFTA_CHAIN_TABLE, _NAME, _HOOK, _TYPE; NFTA_HOOK_HOOKNUM, _PRIORITY, _DEV
fn encode_chain(m: &mut Attrs, table: &Table, chain: &Chain) {
    m.string(1, &table.name);
    m.string(3, &chain.name);
    if let Some((kind, hook, priority)) = &chain.base {
        m.nest(4, |h| {
            h.u32(1, hook.number());
            h.u32(2, *priority as u32);
            if let super::Hook::Ingress(device) = hook {
                h.string(3, device);
            }
        });
        m.string(7, kind.name());
    }
}

/// NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN, _DESC, _ID, _USERDATA, _EXPR
fn encode_set(m: &mut Attrs, table: &Table, set: &Set, name: &SetRef, size: u32) {
    let anonymous = match name {
        SetRef::Named(_) => 0,
        SetRef::Anonymous(_) => libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT,
    };
    let map = if set.data == SetData::None {
        0
    } else {
        libc::NFT_SET_MAP
    };
    let (key_type, key_len) = Kind::type_and_len(&set.key);
    m.string(1, &table.name);
    m.string(2, name.name());
    let dynamic = if set.counters > 0 { libc::NFT_SET_EVAL } else { 0 };
    m.u32(3, (anonymous | map | dynamic) as u32);
    m.u32(4, key_type);
    m.u32(5, key_len);
    match set.data {
        SetData::None => {}
        SetData::Value(kind) => {
            let (data_type, data_len) = Kind::type_and_len(&[kind]);
            m.u32(6, data_type);
            m.u32(7, data_len);
        }
        SetData::Verdict => m.u32(6, libc::NFT_DATA_VERDICT),
    }
    let size = size.max(set.counters);
    if size > 0 {
        // Known beforehand, it lets the kernel choose a faster structure; and it bounds what rules may add.
        m.nest(9, |desc| desc.u32(1, size));
    }
    // Every set has a number within the batch, though only those without a name are called by it.
    m.u32(
        10,
        if let SetRef::Anonymous(number) = name {
            *number
        } else {
            0
        },
    );
    if set.key == [Kind::Number] {
        // Tells `nft list` that keys are in host byte order: type 0, length 4, value 1.
        let order = 1u32.to_ne_bytes();
        m.bytes(13, &[0, 4, order[0], order[1], order[2], order[3]]);
    }
    if set.counters > 0 {
        encode_set_counter(m);
    }
}

/// NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS, _SET_ID; NFTA_LIST_ELEM; NFTA_SET_ELEM_KEY, _DATA
fn encode_elements(
    batch: &mut Messages,
    kind: (i32, u16),
    table: &Table,
    set: &SetRef,
    elements: &[Element],
) {
    for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
        push(batch, kind.0, kind.1, table, |m| {
            m.string(1, &table.name);
            m.string(2, set.name());
            m.nest(3, |list| {
                for element in chunk {
                    list.nest(1, |e| encode_element(e, element));
                }
            });
            if let SetRef::Anonymous(number) = set {
                m.u32(4, *number);
            }
        });
    }
}

fn encode_element(e: &mut Attrs, element: &Element) {
    e.nest(1, |key| encode_value(key, &Datum::concat(&element.key)));
    match &element.data {
        ElementData::None => {}
        ElementData::Value(value) => e.nest(2, |data| encode_value(data, &value.bytes())),
        ElementData::Verdict(verdict) => e.nest(2, |data| encode_verdict(data, verdict)),
    }
}

/// The form in which `nft` keeps comments: type 0, length, text with its NUL.
fn comment_userdata(comment: &str) -> Vec<u8> {
    const LONGEST: usize = 127;
    let end = (0..=comment.len().min(LONGEST))
        .rev()
        .find(|&end| comment.is_char_boundary(end))
        .unwrap_or(0);
    let mut bytes = vec![0, end as u8 + 1];
    bytes.extend_from_slice(&comment.as_bytes()[..end]);
    bytes.push(0);
    bytes
}
