//! Parses an assertion. The syntax is:
//!
//! ```text
//! assertion = path operator bound
//! path      = name { "." name | "[" index "]" | "[" name "=" value "]" }
//! name      = letters, digits, "_" and "-", beginning with a letter or "_"
//! value     = text without "]", or "text" with \" and \\
//! operator  = "<" | "<=" | ">" | ">=" | "=="
//! bound     = "true" | "false" | a number: 12, 2_000_000, 0.01, 1.5e-3, -4
//! ```
//!
//! Spaces are allowed between any two of these elements.

use super::{Assertion, Bound, Condition, Invalid, Number, Operator, PathStep};

/// Parses an expression.
pub(super) fn parse(text: &str) -> Result<Assertion, Invalid> {
    let mut cursor = Cursor { text, at: 0 };
    let path = path(&mut cursor)?;
    let operator = operator(&mut cursor)?;
    cursor.skip_spaces();
    let bound = bound(cursor.rest().trim_end()).ok_or_else(|| cursor.expected("a number, true or false"))?;
    Ok(Assertion { path, operator, bound })
}

fn path(cursor: &mut Cursor<'_>) -> Result<Vec<PathStep>, Invalid> {
    let mut steps = vec![PathStep::Field(name(cursor)?)];
    loop {
        if cursor.take(".") {
            steps.push(PathStep::Field(name(cursor)?));
        } else if cursor.take("[") {
            match (bracket(cursor)?, steps.last_mut()) {
                (PathStep::Select(more), Some(PathStep::Select(conditions))) => conditions.extend(more),
                (step, _) => steps.push(step),
            }
        } else {
            return Ok(steps);
        }
    }
}

fn name(cursor: &mut Cursor<'_>) -> Result<String, Invalid> {
    cursor.skip_spaces();
    if cursor.rest().starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        return Err(cursor.expected("a name"));
    }
    let name = cursor.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if name.is_empty() {
        return Err(cursor.expected("a name"));
    }
    Ok(name.to_owned())
}

/// Parses the rest of a step after `[`, up to and including `]`.
fn bracket(cursor: &mut Cursor<'_>) -> Result<PathStep, Invalid> {
    cursor.skip_spaces();
    let digits = cursor.take_while(|c| c.is_ascii_digit());
    let step = if digits.is_empty() {
        let key = name(cursor)?;
        if !cursor.take("=") {
            return Err(cursor.expected("`=` and a value"));
        }
        let value = value(cursor)?;
        PathStep::Select(vec![Condition { key, value }])
    } else {
        let too_large = |_| Invalid(format!("`[{digits}]` is not an index: the number is too large"));
        PathStep::Index(digits.parse().map_err(too_large)?)
    };
    if cursor.take("]") {
        Ok(step)
    } else {
        Err(cursor.expected("`]`"))
    }
}

fn value(cursor: &mut Cursor<'_>) -> Result<String, Invalid> {
    if cursor.take("\"") {
        return quoted(cursor);
    }
    cursor.skip_spaces();
    let value = cursor.take_while(|c| c != ']').trim_end();
    if value.is_empty() {
        return Err(cursor.expected("a value"));
    }
    Ok(value.to_owned())
}

/// Parses the rest of a quoted text after the first `"`, up to and including the next `"` that has no `\` before it.
fn quoted(cursor: &mut Cursor<'_>) -> Result<String, Invalid> {
    let mut value = String::new();
    loop {
        value.push_str(cursor.take_while(|c| !matches!(c, '"' | '\\')));
        match cursor.take_char() {
            Some('"') => return Ok(value),
            Some('\\') => match cursor.take_char() {
                Some(c @ ('"' | '\\')) => value.push(c),
                _ => return Err(cursor.expected("`\"` or `\\` after a `\\`")),
            },
            _ => return Err(cursor.expected("a closing `\"`")),
        }
    }
}

fn operator(cursor: &mut Cursor<'_>) -> Result<Operator, Invalid> {
    Operator::ALL
        .into_iter()
        .find(|operator| cursor.take(operator.symbol()))
        .ok_or_else(|| cursor.expected("one of < <= > >= =="))
}

fn bound(text: &str) -> Option<Bound> {
    match text {
        "true" => Some(Bound::Flag(true)),
        "false" => Some(Bound::Flag(false)),
        _ => number(text).map(Bound::Number),
    }
}

/// Parses a number, which may have `_` between its digits. Returns `None` if the text is not a number or the number is too large.
pub(super) fn number(text: &str) -> Option<Number> {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let mut before = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        // Rust also parses "inf" and "nan" as numbers, so only these characters are allowed.
        let allowed = match c {
            '_' => is_digit(before) && is_digit(rest.clone().next()),
            '0'..='9' | '.' | 'e' | 'E' | '+' | '-' => true,
            _ => false,
        };
        if !allowed {
            return None;
        }
        before = Some(c);
    }
    let plain = text.replace('_', "");
    if let Ok(whole) = plain.parse() {
        return Some(Number::Whole(whole));
    }
    let decimal: f64 = plain.parse().ok()?;
    decimal.is_finite().then_some(Number::Decimal(decimal))
}

/// A position in an expression that is being parsed.
struct Cursor<'a> {
    text: &'a str,
    /// Offset in bytes. Always at a character boundary.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_spaces(&mut self) {
        self.take_while(char::is_whitespace);
    }

    /// Skips `token`, and spaces before it, if it comes next. Returns whether it did.
    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest().trim_start();
        if rest.starts_with(token) {
            self.at = self.text.len() - rest.len() + token.len();
            true
        } else {
            false
        }
    }

    fn take_char(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn expected(&self, what: &str) -> Invalid {
        let rest = self.rest().trim();
        if rest.is_empty() {
            Invalid(format!("{what} is expected at the end"))
        } else {
            Invalid(format!("{what} is expected at `{rest}`"))
        }
    }
}
