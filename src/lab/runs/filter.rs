//! Conditions on runs: `key=value`, `key!=value`, `key<value`, `<=`, `>`, `>=`, and `key~part` of a text.

use super::columns::{Cell, plain};
use crate::error::{Error, Result};

/// A condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// A column or setting.
    pub key: String,
    operator: Operator,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Is,
    IsNot,
    Below,
    AtMost,
    Above,
    AtLeast,
    Contains,
}

const OPERATORS: &[(&str, Operator)] = &[
    ("!=", Operator::IsNot),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("=", Operator::Is),
    ("<", Operator::Below),
    (">", Operator::Above),
    ("~", Operator::Contains),
];

impl Filter {
    /// Reads a condition.
    ///
    /// # Errors
    /// No operator, or a number is wanted and something else is there.
    pub fn parse(text: &str) -> Result<Filter> {
        let refuse = |what: &str| Error::Usage(format!("--filter {text}: {what}"));
        let at = text.find(['!', '<', '>', '=', '~']);
        let found = at.and_then(|at| OPERATORS.iter().find(|(sign, _)| text[at..].starts_with(sign)).map(|o| (at, o)));
        let Some((at, (sign, operator))) = found.filter(|(at, _)| *at > 0) else {
            return Err(refuse(
                "expected key=value, or key with !=, <, <=, >, >= or ~ (contains), such as 'valid_loss<0.2'",
            ));
        };
        let (key, value) = (text[..at].trim(), text[at + sign.len()..].trim());
        let order = matches!(operator, Operator::Below | Operator::AtMost | Operator::Above | Operator::AtLeast);
        if order && value.parse::<f64>().map_or(true, f64::is_nan) {
            return Err(refuse(&format!("{sign} compares numbers; expected a number behind it")));
        }
        Ok(Filter { key: key.into(), operator: *operator, value: value.into() })
    }

    /// Whether a value passes. Where there is none, only `!=` does.
    pub fn passes(&self, cell: &Cell) -> bool {
        let (text, wanted) = (plain(cell), self.value.parse::<f64>());
        let equal = || match (cell, &wanted) {
            (Cell::Number(x), Ok(wanted)) => x == wanted,
            // Lists read the same with and without spaces and brackets.
            _ => bare(&text) == bare(&self.value),
        };
        let ordered = |holds: fn(&f64, &f64) -> bool| match (cell, &wanted) {
            (Cell::Number(x), Ok(wanted)) => holds(x, wanted),
            _ => false,
        };
        match self.operator {
            Operator::Is => *cell != Cell::Nothing && equal(),
            Operator::IsNot => *cell == Cell::Nothing || !equal(),
            Operator::Below => ordered(f64::lt),
            Operator::AtMost => ordered(f64::le),
            Operator::Above => ordered(f64::gt),
            Operator::AtLeast => ordered(f64::ge),
            Operator::Contains => *cell != Cell::Nothing && text.contains(&self.value),
        }
    }
}

fn bare(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '[' | ']' | '"')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold() {
        let number = |x| Cell::Number(x);
        let text = |t: &str| Cell::Text(t.into());
        for (filter, cell, passes) in [
            ("lr=0.001", number(1e-3), true),
            ("lr=1e-3", number(1e-3), true),
            ("lr!=1e-3", number(1e-3), false),
            ("lr>=0.001", number(1e-3), true),
            ("lr>0.001", number(1e-3), false),
            ("kid<0.1", Cell::Nothing, false),
            ("kid!=0.1", Cell::Nothing, true),
            ("widths=32,64", text("[32, 64]"), true),
            ("name~lr=0.1", text("sweep/lr=0.1"), true),
            ("status=finished", text("running"), false),
        ] {
            assert_eq!(Filter::parse(filter).unwrap().passes(&cell), passes, "{filter}");
        }
    }

    #[test]
    fn slips_are_told() {
        for (text, needle) in
            [("lr", "expected key=value"), ("=1", "expected key=value"), ("lr<many", "compares numbers")]
        {
            let why = Filter::parse(text).unwrap_err().to_string();
            assert!(why.contains(needle), "{text}: {why}");
        }
    }
}
