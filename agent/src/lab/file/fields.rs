//! Reading fields: what to do with each one, and the sentences when a value is wrong.

use std::{fmt::Display, str::FromStr};

use crate::api::types::check_name;

use super::{
    FileError,
    tree::{Entry, Node, Pos, Value},
};

/// What a lab does with a field of the Compose specification.
#[derive(Clone, Copy)]
pub(super) enum Treat {
    /// It has its meaning.
    Use,
    /// It changes nothing here; the sentence says why and is shown once.
    Note(&'static str),
    /// Ignoring it would mislead; the sentence says why it is refused and what to do.
    Refuse(&'static str),
}

/// The fields of one kind of object, every one with its treatment.
pub(super) type Table = &'static [(&'static str, Treat)];

/// Something in a file that has no effect, said once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    file: String,
    pos: Pos,
    message: String,
}

impl Note {
    /// Where it stands.
    pub(super) fn pos(&self) -> Pos {
        self.pos
    }
}

impl Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.pos, self.message)
    }
}

/// Knows the file's name for errors and collects notes.
pub(super) struct Reader {
    pub(super) file: String,
    pub(super) notes: Vec<Note>,
}

impl Reader {
    pub(super) fn error(&self, pos: Pos, message: impl Into<String>) -> FileError {
        FileError::Content {
            file: self.file.clone(),
            pos,
            message: message.into(),
        }
    }

    /// The entries of the mapping `node` that are to be used; `what` names the object in sentences.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        table: Table,
    ) -> Result<Vec<&'n Entry>, FileError> {
        let mut used = Vec::new();
        for entry in self.entries(node, what)? {
            let name = &*entry.key;
            match table
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, treat)| *treat)
            {
                Some(Treat::Use) => used.push(entry),
                Some(Treat::Note(why)) => {
                    self.note(entry.pos, format!("`{name}` of {what} has no effect: {why}"))
                }
                Some(Treat::Refuse(why)) => {
                    return Err(self.error(entry.pos, format!("`{name}` of {what} is refused: {why}")));
                }
                None if name.starts_with("x-") && !is_near(name, "x-weft") => {
                    self.note(
                        entry.pos,
                        format!("`{name}` of {what} is an extension, which a lab reads only where an anchor refers to it"),
                    );
                }
                None => {
                    let known = table.iter().map(|(known, _)| *known);
                    return Err(self.error(
                        entry.pos,
                        format!("unknown field `{name}` in {what}{}", did_you_mean(name, known)),
                    ));
                }
            }
        }
        Ok(used)
    }

    /// Every entry of a mapping whose keys are names the user chose; nothing counts as an empty one.
    pub(super) fn entries<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [Entry], FileError> {
        match &node.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => Ok(&[]),
            _ => Err(self.error(
                node.pos,
                format!("{what} must be a mapping, and here is {}", node.kind()),
            )),
        }
    }

    pub(super) fn list<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [Node], FileError> {
        match &node.value {
            Value::List(items) => Ok(items),
            _ => Err(self.error(
                node.pos,
                format!("{what} must be a list, and here is {}", node.kind()),
            )),
        }
    }

    /// A scalar's text, with `$$` for `$` as in Compose.
    pub(super) fn text(&self, node: &Node, what: &str) -> Result<String, FileError> {
        let Value::Scalar { text, .. } = &node.value else {
            return Err(self.error(
                node.pos,
                format!("{what} must be a single value, and here is {}", node.kind()),
            ));
        };
        let plain = text.replace("$$", "");
        if let Some(at) = plain.find('$') {
            let rest = &plain[at + 1..];
            if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '{') {
                return Err(self.error(
                    node.pos,
                    format!("{what} uses a variable, and lab files do not replace variables yet: write the value, or `$$` for a dollar sign"),
                ));
            }
        }
        Ok(text.replace("$$", "$"))
    }

    /// A scalar that parses as `T`; `expected` completes "… must be".
    pub(super) fn parse<T: FromStr>(&self, node: &Node, what: &str, expected: &str) -> Result<T, FileError> {
        let text = self.text(node, what)?;
        text.parse()
            .map_err(|_| self.error(node.pos, format!("{what} must be {expected}, not `{text}`")))
    }

    pub(super) fn boolean(&self, node: &Node, what: &str) -> Result<bool, FileError> {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Ok(true),
            Value::Scalar { text, plain: true } if text == "false" => Ok(false),
            _ => Err(self.error(node.pos, format!("{what} must be true or false"))),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&self, node: &Node, what: &str, min: u64, max: u64) -> Result<u64, FileError> {
        let expected = format!("a whole number from {min} to {max}");
        let number = self.parse::<u64>(node, what, &expected)?;
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(self.error(node.pos, format!("{what} must be {expected}, not {number}")))
        }
    }

    /// One number, or a list of them.
    pub(super) fn numbers(&self, node: &Node, what: &str, min: u64, max: u64) -> Result<Vec<u64>, FileError> {
        match &node.value {
            Value::List(items) if items.is_empty() => {
                Err(self.error(node.pos, format!("{what} is an empty list")))
            }
            Value::List(items) => items
                .iter()
                .map(|item| self.number(item, what, min, max))
                .collect(),
            _ => Ok(vec![self.number(node, what, min, max)?]),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        node: &Node,
        what: &str,
        words: &[(impl AsRef<str>, T)],
    ) -> Result<T, FileError> {
        let text = self.text(node, what)?;
        words
            .iter()
            .find(|(word, _)| word.as_ref() == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<_> = words.iter().map(|(word, _)| word.as_ref()).collect();
                let hint = did_you_mean(&text, names.iter().copied());
                let hint = if hint.is_empty() {
                    format!(": expected {}", names.join(", "))
                } else {
                    hint
                };
                self.error(node.pos, format!("{what} cannot be `{text}`{hint}"))
            })
    }

    /// A name that becomes a DNS name, and that names files and namespaces too.
    pub(super) fn name(&self, pos: Pos, name: &str, what: &str) -> Result<(), FileError> {
        check_name(what, name).map_err(|error| {
            let help = error.help.map(|help| format!(": {help}")).unwrap_or_default();
            self.error(pos, format!("{}{help}", error.message))
        })
    }

    /// A list of `KEY=VALUE`, or a mapping.
    pub(super) fn pairs(&self, node: &Node, what: &str) -> Result<Vec<(String, String)>, FileError> {
        if let Value::List(items) = &node.value {
            return items
                .iter()
                .map(|item| {
                    let text = self.text(item, what)?;
                    match text.split_once('=') {
                        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
                        None => Err(self.error(
                            item.pos,
                            format!("{what}: `{text}` has no value: write `{text}=…`"),
                        )),
                    }
                })
                .collect();
        }
        self.entries(node, what)?
            .iter()
            .map(|entry| match entry.value.value {
                Value::Null => Err(self.error(entry.pos, format!("{what}: `{}` has no value", entry.key))),
                _ => Ok((entry.key.clone(), self.text(&entry.value, what)?)),
            })
            .collect()
    }

    pub(super) fn note(&mut self, pos: Pos, message: String) {
        self.notes.push(Note {
            file: self.file.clone(),
            pos,
            message,
        });
    }
}

/// `; did you mean …?`, or nothing when no known word is near.
pub(super) fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|word| (strsim::damerau_levenshtein(name, word), word))
        .filter(|(_, word)| is_near(name, word))
        .min()
        .map(|(_, word)| format!("; did you mean `{word}`?"))
        .unwrap_or_default()
}

fn is_near(name: &str, word: &str) -> bool {
    strsim::damerau_levenshtein(name, word) <= (word.len() / 3).max(1)
}
