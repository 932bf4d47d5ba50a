//! Medians and ratios with their spread, as plain tables.

#![allow(dead_code, reason = "each of two programs makes one kind of them")]

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
    /// Seconds of processor time for one of something.
    Work,
    /// Of a processor, for one of something.
    Instructions,
    /// Of memory.
    Bytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Bits => format!("{:.2} Gbit/s", value / 1e9),
            Self::Rate => format!("{value:.0} /s"),
            Self::Time => format!("{:.2} ms", value * 1e3),
            Self::Work => format!("{:.1} µs", value * 1e6),
            Self::Instructions if value < 1e4 => format!("{value:.0}"),
            Self::Instructions => format!("{:.1} k", value / 1e3),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
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
        let head = [HEAD.map(str::to_owned)];
        // Words to the left, figures to the right.
        columns(f, head.iter().chain(&self.rows), |column| {
            [0, 2].contains(&column)
        })
    }
}

/// Several ways beside one that all are compared with, a line for each thing measured.
#[derive(Debug, Default)]
pub struct Matrix {
    rows: Vec<Vec<String>>,
}

impl Matrix {
    /// `series` is of `ways`, one after the other; the values at one place of all are of one round. What is compared with
    /// comes first, with its figure; the others with their ratio to it and what the middle half of the ratios lies between.
    pub fn compare(&mut self, what: &str, unit: Unit, ways: &[&str], series: &[Vec<f64>]) {
        let Some((first, others)) = series.split_first() else {
            return;
        };
        let head: Vec<String> = ["measured"]
            .iter()
            .chain(ways)
            .map(|&word| word.to_owned())
            .collect();
        if self.rows.iter().rfind(|row| row[0] == head[0]) != Some(&head) {
            self.rows.push(head);
        }
        let mut row = vec![what.to_owned(), unit.show(quartiles(first)[1])];
        row.extend(others.iter().map(|series| {
            let ratios: Vec<f64> = series
                .iter()
                .zip(first)
                .map(|(value, first)| value / first)
                .collect();
            let [low, middle, high] = quartiles(&ratios);
            format!("{middle:.2} ({low:.2}–{high:.2})")
        }));
        self.rows.push(row);
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        columns(f, self.rows.iter(), |column| column == 0)
    }
}

fn columns<'a, R: AsRef<[String]> + 'a>(
    f: &mut fmt::Formatter<'_>,
    rows: impl Iterator<Item = &'a R> + Clone,
    to_the_left: impl Fn(usize) -> bool,
) -> fmt::Result {
    let mut widths: Vec<usize> = Vec::new();
    for (column, cell) in rows.clone().flat_map(|row| row.as_ref().iter().enumerate()) {
        widths.resize(widths.len().max(column + 1), 0);
        widths[column] = widths[column].max(cell.chars().count());
    }
    for row in rows {
        let mut text = String::new();
        for (column, (cell, width)) in row.as_ref().iter().zip(&widths).enumerate() {
            if to_the_left(column) {
                text.push_str(&format!("{cell:<width$}  "));
            } else {
                text.push_str(&format!("{cell:>width$}  "));
            }
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
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
