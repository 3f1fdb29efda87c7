//! Text in columns.

/// One line for each row under the names of the columns; the first `left` columns and a last one called "options" begin at the left, numbers
/// end at the right.
pub fn table(names: &[&str], rows: &[Vec<String>], left: usize) -> String {
    let width = |i: usize| {
        let of_rows = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        of_rows.max(names[i].chars().count())
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, &width))| {
                    if i < left || names[i] == "options" {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut names.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Seconds in a unit that leaves three or four digits.
pub fn seconds(value: f64) -> String {
    match value {
        v if !v.is_finite() => "-".into(),
        v if v < 1e-4 => format!("{:.1} us", 1e6 * v),
        v if v < 1e-3 => format!("{:.0} us", 1e6 * v),
        v if v < 0.1 => format!("{:.2} ms", 1e3 * v),
        v if v < 1.0 => format!("{:.0} ms", 1e3 * v),
        v => format!("{v:.3} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::{seconds, table};

    #[test]
    fn columns_are_aligned() {
        let text = table(&["name", "n"], &[vec!["a".into(), "100".into()], vec!["long name".into(), "2".into()]], 1);
        assert_eq!(text, "name         n\na          100\nlong name    2\n");
    }

    #[test]
    fn seconds_have_units() {
        let texts = [1.5, 0.25, 0.0123, 0.00054, 3.21e-6].map(seconds);
        assert_eq!(texts, ["1.500 s", "250 ms", "12.30 ms", "540 us", "3.2 us"]);
        assert_eq!(seconds(f64::NAN), "-");
    }
}
