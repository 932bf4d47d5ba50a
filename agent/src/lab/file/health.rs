//! The `healthcheck` of a service, and `x-weft: { health }`.

use std::time::Duration;

use crate::api::types::{HealthCheck, HealthTest};

use super::{
    FileError,
    fields::Reader,
    tables,
    tree::{Entry, Node, Value},
};

/// What Compose says about a service's health.
#[derive(Default)]
pub(super) struct Healthcheck {
    /// `None` where it is left to `x-weft`.
    test: Option<HealthTest>,
    is_off: bool,
    interval_ms: Option<u32>,
    timeout_ms: Option<u32>,
    retries: Option<u16>,
    start_period_ms: Option<u32>,
}

pub(super) fn read(reader: &mut Reader, node: &Node, service: &str) -> Result<Healthcheck, FileError> {
    let what = format!("`healthcheck` of {service}");
    let mut check = Healthcheck::default();
    for Entry { key, value, .. } in reader.fields(node, &what, tables::HEALTHCHECK)? {
        let field = format!("`{key}` of {what}");
        match &**key {
            "test" => match read_command(reader, value, &field)? {
                Some(test) => check.test = Some(test),
                None => check.is_off = true,
            },
            "disable" => check.is_off |= reader.boolean(value, &field)?,
            "interval" => check.interval_ms = Some(time(reader, value, &field)?),
            "timeout" => check.timeout_ms = Some(time(reader, value, &field)?),
            "start_period" => check.start_period_ms = Some(time(reader, value, &field)?),
            "retries" => check.retries = Some(reader.number(value, &field, 1, 100)? as u16),
            _ => {}
        }
    }
    Ok(check)
}

/// A line for the shell, `[CMD-SHELL, LINE]`, `[CMD, WORD…]`; nothing for `[NONE]`.
fn read_command(reader: &Reader, node: &Node, what: &str) -> Result<Option<HealthTest>, FileError> {
    let Value::List(items) = &node.value else {
        return command(reader, node, &reader.text(node, what)?).map(Some);
    };
    let words = items
        .iter()
        .map(|item| reader.text(item, what))
        .collect::<Result<Vec<_>, _>>()?;
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["NONE"] => Ok(None),
        ["CMD-SHELL", line] => command(reader, node, line).map(Some),
        ["CMD", words @ ..] if !words.is_empty() => {
            let line = shlex::try_join(words.iter().copied());
            let line = line.map_err(|error| reader.error(node.pos, format!("{what}: {error}")))?;
            command(reader, node, &line).map(Some)
        }
        _ => Err(reader.error(
            node.pos,
            format!("{what} must be a line, [CMD, …], [CMD-SHELL, LINE] or [NONE]"),
        )),
    }
}

fn command(reader: &Reader, node: &Node, line: &str) -> Result<HealthTest, FileError> {
    format!("cmd={line}")
        .parse()
        .map_err(|error| reader.error(node.pos, format!("{error}")))
}

/// `tcp`, `http=/PATH` and so on, as on the command line.
pub(super) fn read_test(reader: &Reader, node: &Node, what: &str) -> Result<HealthTest, FileError> {
    let text = reader.text(node, what)?;
    text.parse()
        .map_err(|error| reader.error(node.pos, format!("{what}: {error}")))
}

fn time(reader: &Reader, node: &Node, what: &str) -> Result<u32, FileError> {
    let text = reader.text(node, what)?;
    let time: Option<Duration> = humantime::parse_duration(&text).ok();
    time.and_then(|time| u32::try_from(time.as_millis()).ok())
        .ok_or_else(|| {
            reader.error(
                node.pos,
                format!("{what} must be a time such as 10s, not `{text}`"),
            )
        })
}

impl Healthcheck {
    /// With what `x-weft` says instead, which a lab can do without a program of this machine.
    pub(super) fn finish(self, instead: Option<HealthTest>) -> Option<HealthCheck> {
        let test = match (instead, self.is_off) {
            (Some(test), _) => test,
            (None, true) => return None,
            (None, false) => self.test?,
        };
        let check = HealthCheck::new(test);
        Some(HealthCheck {
            interval_ms: self.interval_ms.unwrap_or(check.interval_ms),
            timeout_ms: self.timeout_ms.unwrap_or(check.timeout_ms),
            retries: self.retries.unwrap_or(check.retries),
            start_period_ms: self.start_period_ms.unwrap_or(check.start_period_ms),
            test: check.test,
        })
    }
}
