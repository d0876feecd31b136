//! `--assert`: a sentence about one figure of the report, which a project can put into its CI.
//!
//! ```text
//! kernel_switches.per_message < 0.01
//! ledger[class=task-blocked].count == 0
//! workload.runs[median=true].ns_per_message <= 1_500
//! └────────────── path ──────────────┘ └┘ └─ bound
//! ```
//!
//! It goes through three steps. `parse` knows the form; `schema` knows every name of the report and its type, so that
//! what can never be true is found before anything runs; `evaluate` knows the report. A path may meet:
//!
//! * *one value*: that is compared. A null does not satisfy anything, and the failure says why it is null.
//! * *several*, by `[key=value]`: their numbers are added up, which has a meaning for counts and sums of times.
//! * *none*: 0, if what was selected by is known to be spelt well (the schema lists its values, as it does classes, or some
//!   other element of the list has it). Otherwise null: a name that appears nowhere is more probably misspelt than rare, and
//!   a guard must not hold because of a slip.

mod evaluate;
mod parse;
mod schema;

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

pub use evaluate::NotMet;

/// One sentence about one figure of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    /// Where in the report; never empty.
    path: Vec<Step>,
    operator: Operator,
    bound: Bound,
}

/// Decimals in an assertion are finite, so every assertion equals itself.
impl Eq for Assertion {}

/// One step into the report.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `.name`.
    Field(String),
    /// `[3]`.
    Index(usize),
    /// `[class=task-blocked]`, and further conditions in brackets of their own: the elements that meet all of them.
    Select(Vec<Condition>),
}

/// What a selected element has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    /// A field of the element.
    key: String,
    /// That field's value, as text.
    value: String,
}

/// How the figure must stand to the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Greater,
    AtLeast,
    Equal,
}

impl Operator {
    /// All of them; a symbol stands before those it begins with.
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

    /// Whether it admits a figure that stands so to the bound.
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

/// What a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Number(Number),
    Flag(bool),
}

/// A number, exact as long as it is whole: counts and nanoseconds go beyond what a floating-point number tells apart.
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

    /// How it stands to another one: whole numbers exactly, others as floating-point numbers.
    fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a.cmp(&b),
            // JSON has no number that is none, and the parser lets none through.
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

/// An expression that makes no sense; its text says why, and what was perhaps meant.
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

/// A path, or its beginning, as text.
struct Steps<'a>(&'a [Step]);

impl fmt::Display for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if index == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Select(conditions) => conditions.iter().try_for_each(|condition| write!(f, "{condition}"))?,
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
            // The shortest text that is read as the same number, and never as a whole one.
            Self::Decimal(decimal) => write!(f, "{decimal:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
