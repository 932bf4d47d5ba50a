use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::failure::Failure;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: a stable contract
    Json,
}

/// The flag of everything that shows something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub(super) struct FormatArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

/// The flags of every listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) format: FormatArgs,
    /// Print whole ids only, one per line
    #[arg(short, long, conflicts_with = "format")]
    pub(super) quiet: bool,
}

impl FormatArgs {
    /// Prints `value`, for people as `table` says.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table => print(&table(value)),
            Format::Json => {
                let json = serde_json::to_string_pretty(value).map_err(|error| {
                    Failure::new(format!("the answer cannot be written as JSON: {error}"))
                })?;
                print(&format!("{json}\n"))
            }
        }
    }
}

impl ListArgs {
    /// Prints a listing: ids only, or as the format says.
    pub(super) fn print<T: Serialize>(
        self,
        list: &Vec<T>,
        id: impl Fn(&T) -> String,
        table: impl FnOnce(&Vec<T>) -> String,
    ) -> Result<(), Failure> {
        if self.quiet {
            return print(&list.iter().map(|item| id(item) + "\n").collect::<String>());
        }
        self.format.print(list, table)
    }
}

/// Writes to standard output. A reader that has gone away, as in `weft node ls | head -1`, is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    try_print(text).map(drop)
}

/// The same, and says whether the reader is still there.
pub(super) fn try_print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(format!(
            "standard output cannot be written: {error}"
        ))),
    }
}

/// Items between commas, or nothing.
pub(super) fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// A number and the noun it counts.
pub(super) fn count(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Yes or no.
pub(super) fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
