//! YAML as a tree in which every key and value knows its line and column.
//!
//! Anchors, aliases and merge keys (`<<`) are resolved here, so the rest of the parser never meets them.

use std::{collections::HashMap, fmt};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Nodes a file may hold after its aliases are expanded; a "billion laughs" file ends here.
const MAX_NODES: usize = 100_000;
/// How deep a file may nest.
const MAX_DEPTH: usize = 64;

/// A line and a column, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pos {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl From<Marker> for Pos {
    fn from(marker: Marker) -> Self {
        Self {
            line: marker.line(),
            column: marker.col() + 1,
        }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) pos: Pos,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar; `plain` tells `5` from `"5"`.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) pos: Pos,
    pub(super) value: Node,
}

impl Node {
    /// What stands here, for a sentence such as "expected a list, found a mapping".
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }
}

/// Why a text is not the YAML a lab file may be.
#[derive(Debug)]
pub(super) struct TreeError {
    pub(super) pos: Pos,
    pub(super) message: String,
}

impl TreeError {
    fn new(pos: impl Into<Pos>, message: impl Into<String>) -> Self {
        Self {
            pos: pos.into(),
            message: message.into(),
        }
    }
}

/// Reads the one document in `text`.
pub(super) fn parse(text: &str) -> Result<Node, TreeError> {
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        nodes: 0,
    };
    let root = loop {
        match builder.next()? {
            (Event::StreamStart | Event::DocumentStart(_), _) => {}
            (Event::StreamEnd, marker) => return Err(TreeError::new(marker, "the file is empty")),
            (event, marker) => break builder.node(event, marker, 0)?,
        }
    };
    loop {
        match builder.next()? {
            (Event::StreamEnd, _) => return Ok(root),
            (Event::DocumentStart(_), marker) => {
                return Err(TreeError::new(
                    marker,
                    "a second document starts here; a lab file is one document",
                ));
            }
            _ => {}
        }
    }
}

struct Builder<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Marker), TreeError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start)),
            Some(Err(error)) => Err(TreeError::new(
                *error.marker(),
                format!("not YAML: {}", error.info()),
            )),
            None => Ok((Event::StreamEnd, Marker::default())),
        }
    }

    fn node(&mut self, event: Event<'t>, marker: Marker, depth: usize) -> Result<Node, TreeError> {
        let pos = Pos::from(marker);
        if depth > MAX_DEPTH {
            return Err(TreeError::new(
                pos,
                format!("nested more than {MAX_DEPTH} levels deep"),
            ));
        }
        self.count(1, pos)?;
        let (value, anchor) = match event {
            Event::Alias(id) => {
                let mut node = self
                    .anchors
                    .get(&id)
                    .cloned()
                    .ok_or_else(|| TreeError::new(pos, "this alias stands inside the value it names"))?;
                self.count(node.size(), pos)?;
                node.pos = pos;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(pos, tag.as_deref())?;
                let plain = style == ScalarStyle::Plain;
                let value = if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
                    Value::Null
                } else {
                    Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    }
                };
                (value, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(pos, tag.as_deref())?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break (Value::List(items), anchor),
                        (event, marker) => items.push(self.node(event, marker, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(pos, tag.as_deref())?;
                (Value::Map(self.mapping(depth)?), anchor)
            }
            other => return Err(TreeError::new(pos, format!("unexpected {other:?}"))),
        };
        let node = Node { pos, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, TreeError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, marker) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, marker, depth + 1)?;
            let (event, marker) = self.next()?;
            let value = self.node(event, marker, depth + 1)?;
            let Value::Scalar { text, plain } = key.value else {
                return Err(TreeError::new(
                    key.pos,
                    format!("a key must be a name, and here is {}", key.kind()),
                ));
            };
            if text == "<<" && plain {
                merged.extend(merge_sources(value)?);
            } else if let Some(first) = entries.iter().find(|entry| entry.key == text) {
                return Err(TreeError::new(
                    key.pos,
                    format!("`{text}` is given twice; the first is at {}", first.pos),
                ));
            } else {
                entries.push(Entry {
                    key: text,
                    pos: key.pos,
                    value,
                });
            }
        }
        // What the mapping says itself wins over what it merges, and an earlier source over a later one.
        for entry in merged {
            if entries.iter().all(|known| known.key != entry.key) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn count(&mut self, nodes: usize, pos: Pos) -> Result<(), TreeError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(TreeError::new(
                pos,
                format!("the file holds more than {MAX_NODES} values"),
            ));
        }
        Ok(())
    }
}

fn merge_sources(node: Node) -> Result<Vec<Entry>, TreeError> {
    let message = "`<<` merges a mapping or a list of mappings";
    match node.value {
        Value::Map(entries) => Ok(entries),
        Value::List(items) => {
            let mut all = Vec::new();
            for item in items {
                let Value::Map(entries) = item.value else {
                    return Err(TreeError::new(item.pos, message));
                };
                all.extend(entries);
            }
            Ok(all)
        }
        _ => Err(TreeError::new(node.pos, message)),
    }
}

fn refuse_tag(pos: Pos, tag: Option<&saphyr_parser::Tag>) -> Result<(), TreeError> {
    match tag {
        // `!!str 5` and the like only spell out what is understood anyway.
        Some(tag) if !tag.is_yaml_core_schema() => Err(TreeError::new(
            pos,
            format!("the tag `{tag}` has no meaning in a lab file"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let error = parse(text).expect_err("the text is wrong");
        format!("{}: {}", error.pos, error.message)
    }

    fn keys(node: &Node) -> Vec<(&str, Pos)> {
        let Value::Map(entries) = &node.value else {
            panic!("{node:?} is not a mapping")
        };
        entries.iter().map(|entry| (&*entry.key, entry.pos)).collect()
    }

    #[test]
    fn keys_and_values_know_where_they_stand() {
        let root = parse("a: 1\nb:\n  - x\n  - y: [p, q]\n").unwrap();
        assert_eq!(
            keys(&root),
            [
                ("a", Pos { line: 1, column: 1 }),
                ("b", Pos { line: 2, column: 1 })
            ]
        );
        let Value::Map(entries) = &root.value else {
            panic!()
        };
        assert_eq!(entries[0].value.pos, Pos { line: 1, column: 4 });
        let Value::List(items) = &entries[1].value.value else {
            panic!()
        };
        assert_eq!(items[0].pos, Pos { line: 3, column: 5 });
    }

    #[test]
    fn a_merge_key_fills_what_the_mapping_does_not_say() {
        let root = parse("base: &base { a: 1, b: 2 }\nuse:\n  <<: *base\n  b: 3\n").unwrap();
        let Value::Map(entries) = &root.value else {
            panic!()
        };
        let names: Vec<_> = keys(&entries[1].value)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["b", "a"]);
    }

    #[test]
    fn wrong_texts_are_refused_with_their_place() {
        assert_eq!(error(""), "1:1: the file is empty");
        assert_eq!(
            error("a: 1\nb: 2\na: 3\n"),
            "3:1: `a` is given twice; the first is at 1:1"
        );
        assert_eq!(
            error("a: !secret x\n"),
            "1:4: the tag `!secret` has no meaning in a lab file"
        );
        assert_eq!(
            error("a: 1\n---\nb: 2\n"),
            "2:1: a second document starts here; a lab file is one document"
        );
        assert!(
            error("a: [1, 2\n").starts_with("2:1: not YAML:"),
            "{}",
            error("a: [1, 2\n")
        );
        assert!(
            error("a:\n\t- b\n").contains("not YAML"),
            "{}",
            error("a:\n\t- b\n")
        );
    }

    #[test]
    fn a_file_that_expands_without_end_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert!(error(&text).contains("more than 100000 values"));
        assert!(error(&format!("a: {}", "[".repeat(100))).contains("levels deep"));
    }
}
