/// Columns of text, each as wide as its widest cell. The last one is not padded, so that lines do not end
/// in blanks.
#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table with these headings.
    pub(super) fn new(headings: [&str; COLUMNS]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned)],
        }
    }

    /// Adds a row; what is empty is shown as `-`, so that every line has the same number of words.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows
            .push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }

    /// The lines, each ending in a newline, each after `indent`.
    pub(super) fn render(&self, indent: &str) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; COLUMNS] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:<width$}   "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values of one object, the values aligned.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a fact; what is empty is shown as `-`.
    pub(super) fn add(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        let value = value.to_string();
        self.0
            .push((name, if value.is_empty() { "-".to_owned() } else { value }));
        self
    }

    /// The lines, each ending in a newline.
    pub(super) fn render(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
        self.0
            .iter()
            .map(|(name, value)| format!("{:<width$}  {value}\n", format!("{name}:")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["ID", "NAME", "SUBNET"]);
        table.row(["1".into(), "å-long-name".into(), "10.0.0.0/24".into()]);
        table.row(["22222".into(), "b".into(), String::new()]);
        assert_eq!(
            table.render("  "),
            "  ID      NAME          SUBNET\n  1       å-long-name   10.0.0.0/24\n  22222   b             -\n"
        );
    }

    #[test]
    fn facts_are_aligned() {
        let mut facts = Facts::default();
        facts.add("id", 7).add("subnet", "");
        assert_eq!(facts.render(), "id:      7\nsubnet:  -\n");
    }
}
