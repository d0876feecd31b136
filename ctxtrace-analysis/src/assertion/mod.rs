//! `--assert`: a condition on one figure of the report, for use in the CI of a project.
//!
//! ```text
//! kernel_switches.per_message < 0.01
//! ledger[class=task-blocked].count == 0
//! workload.runs[median=true].ns_per_message <= 1_500
//! └────────────── path ──────────────┘ └┘ └─ bound
//! ```
//!
//! An assertion is processed in three steps. `parse` checks the syntax. `schema` checks every name and its type against the
//! schema of the report, so that an assertion that could never hold is rejected before anything runs. `evaluate` compares the
//! assertion with the report. The path of an assertion can lead to:
//!
//! * *one value*: the value is compared with the bound. An assertion on a null fails, and the message says why the value is null.
//! * *several values*, if the path has a selection `[key=value]`: the numbers are added up, which is meaningful for counts and
//!   for sums of times.
//! * *no value*: it counts as 0 if the selected name is known to be spelt correctly, because the schema lists the possible values
//!   (as for classes) or another element of the list has the name. Otherwise it counts as null: a name that occurs nowhere is
//!   more likely misspelt than rare, and an assertion must not hold because of a spelling mistake.

mod evaluate;
mod parse;
mod schema;

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

pub use evaluate::NotMet;

/// A condition on one figure of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    /// The path of the figure in the report. Never empty.
    path: Vec<PathStep>,
    operator: Operator,
    bound: Bound,
}

/// The decimal numbers in an assertion are finite, never NaN, so every assertion equals itself.
impl Eq for Assertion {}

/// One step of a path into the report.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PathStep {
    /// `.name`: a field.
    Field(String),
    /// `[3]`: an element of a list by its index.
    Index(usize),
    /// `[class=task-blocked]`, possibly followed by further conditions in brackets of their own: the elements that meet all
    /// conditions.
    Select(Vec<Condition>),
}

/// A condition that a selected element must meet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    /// Name of a field of the element.
    key: String,
    /// The value that the field must have, as text.
    value: String,
}

/// How the figure is compared with the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Greater,
    AtLeast,
    Equal,
}

impl Operator {
    /// All operators. A symbol that begins with another symbol comes before it, so that the parser finds the longer one.
    const ALL: [Self; 5] = [Self::AtMost, Self::Less, Self::AtLeast, Self::Greater, Self::Equal];

    fn symbol(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
            Self::Equal => "==",
        }
    }

    /// Whether a figure that compares with the bound as `ordering` says meets the condition.
    fn admits(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::AtLeast => ordering.is_ge(),
            Self::Equal => ordering.is_eq(),
        }
    }
}

/// The value that a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Number(Number),
    Flag(bool),
}

/// A number. Whole numbers are kept exactly, because counts and nanoseconds may exceed the range in which a floating-point number
/// distinguishes whole numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Whole(i128),
    Decimal(f64),
}

impl Number {
    fn as_decimal(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Decimal(decimal) => decimal,
        }
    }

    /// Compares two numbers: whole numbers exactly, others as floating-point numbers.
    fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a.cmp(&b),
            // Neither JSON nor the parser can produce NaN, so the comparison never fails.
            (a, b) => a.as_decimal().partial_cmp(&b.as_decimal()).unwrap_or(Ordering::Equal),
        }
    }

    fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Self::Whole(a.saturating_add(b)),
            (a, b) => Self::Decimal(a.as_decimal() + b.as_decimal()),
        }
    }
}

/// An expression that is not a valid assertion. The text says why, and which names may have been meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl FromStr for Assertion {
    type Err = Invalid;

    /// Parses an expression and checks it against the schema of the report.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let assertion = parse::parse(text)?;
        schema::check(&assertion)?;
        Ok(assertion)
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", Steps(&self.path), self.operator.symbol(), self.bound)
    }
}

/// A path, or the beginning of a path, that is displayed as text.
struct Steps<'a>(&'a [PathStep]);

impl fmt::Display for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                PathStep::Field(name) if index == 0 => f.write_str(name)?,
                PathStep::Field(name) => write!(f, ".{name}")?,
                PathStep::Index(index) => write!(f, "[{index}]")?,
                PathStep::Select(conditions) => conditions.iter().try_for_each(|condition| write!(f, "{condition}"))?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value } = self;
        let bare = !value.is_empty() && value.trim() == value && !value.contains(['"', '\\', ']']);
        if bare {
            write!(f, "[{key}={value}]")
        } else {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "[{key}=\"{quoted}\"]")
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(whole) => whole.fmt(f),
            // The shortest text that is parsed as the same number and never as a whole number.
            Self::Decimal(decimal) => write!(f, "{decimal:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
