//! Medians and ratios with their spread, as a plain table.

use std::fmt;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// Bits per second.
    Bits,
    /// Per second: requests, connections, queries.
    Rate,
    /// Seconds.
    Time,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Bits => format!("{:.2} Gbit/s", value / 1e9),
            Self::Rate => format!("{value:.0} /s"),
            Self::Time => format!("{:.2} ms", value * 1e3),
        }
    }
}

/// Ours and theirs, line by line.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 6]>,
}

impl Table {
    /// One line for each of the others. The values at one place of all series are of one round.
    pub fn compare(&mut self, what: &str, unit: Unit, ours: &[f64], others: &[(&str, &[f64])]) {
        for (name, theirs) in others {
            let ratios: Vec<f64> = ours
                .iter()
                .zip(*theirs)
                .map(|(ours, theirs)| ours / theirs)
                .collect();
            let [low, middle, high] = quartiles(&ratios);
            self.rows.push([
                what.to_owned(),
                unit.show(quartiles(ours)[1]),
                (*name).to_owned(),
                unit.show(quartiles(theirs)[1]),
                format!("{middle:.2}"),
                format!("{low:.2}–{high:.2}"),
            ]);
        }
    }
}

const HEAD: [&str; 6] = ["measured", "weft", "beside", "its figure", "ratio", "middle half"];

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = HEAD.map(str::to_owned);
        let lines = || std::iter::once(&head).chain(&self.rows);
        let width = |column: usize| {
            let widths = lines().map(|line| line[column].chars().count());
            widths.max().unwrap_or_default()
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        for line in lines() {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                // Words to the left, figures to the right.
                if [0, 2].contains(&column) {
                    text.push_str(&format!("{cell:<width$}  "));
                } else {
                    text.push_str(&format!("{cell:>width$}  "));
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// The median, and what the middle half lies between.
fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|part| {
        let place = part * (sorted.len().saturating_sub(1)) as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        match (sorted.get(below), sorted.get(above)) {
            (Some(below), Some(above)) => below + (above - below) * place.fract(),
            _ => f64::NAN,
        }
    })
}
