//! Whether there is such a figure: the path of an assertion against the JSON schema of the report.
//!
//! The schema is made from the result's own types, so a name that is added there is known here at once.

use serde_json::{Map, Value};

use super::parse::number;
use super::{Assertion, Bound, Condition, Invalid, Operator, Step, Steps};
use crate::analyze::result::Report;

/// From this similarity on (Jaro-Winkler, 0 to 1) a name may be the one that was meant.
const NEAR: f64 = 0.8;
/// The most names to suggest.
const SUGGESTED: usize = 3;

/// Says what is wrong with an assertion that no report could satisfy or fail in earnest.
pub(super) fn check(assertion: &Assertion) -> Result<(), Invalid> {
    let schema = schemars::schema_for!(Report);
    let schema = Schema {
        root: schema.as_value(),
    };
    let steps = &assertion.path;
    let shape = schema.walk(steps)?;
    let path = Steps(steps);
    let selects = steps.iter().any(|step| matches!(step, Step::Select(_)));
    match (shape, assertion.bound) {
        (Shape::Number, Bound::Number(_)) => Ok(()),
        (Shape::Number, Bound::Flag(_)) => Err(Invalid(format!("`{path}` is a number, and true and false are none"))),
        (Shape::Flag, _) if selects => Err(Invalid(format!(
            "`{path}` is true or false, and [key=value] adds up numbers: pick one element by its index, as [0]"
        ))),
        (Shape::Flag, Bound::Flag(_)) if assertion.operator == Operator::Equal => Ok(()),
        (Shape::Flag, _) => Err(Invalid(format!(
            "`{path}` is true or false: compare it by `== true` or `== false`"
        ))),
        (Shape::Text(_), _) => Err(Invalid(format!(
            "`{path}` is text, and only {COMPARABLE} can be compared"
        ))),
        (Shape::Group(fields), _) => Err(Invalid(format!(
            "`{path}` is a group, and only {COMPARABLE} can be compared: {}",
            schema.comparable(&path, fields)
        ))),
        (Shape::List(_), _) => Err(Invalid(format!(
            "`{path}` is a list, and only {COMPARABLE} can be compared: \
             pick elements, as {path}[0] or {path}[key=value], and a field of them"
        ))),
        (Shape::Other, _) => Err(Invalid(format!("`{path}` is nothing that can be compared"))),
    }
}

/// Whether the schema lists the values of `key` in the elements of the list that `steps` lead to.
pub(super) fn lists_values(steps: &[Step], key: &str) -> bool {
    let schema = schemars::schema_for!(Report);
    let schema = Schema {
        root: schema.as_value(),
    };
    let Ok(Shape::List(element)) = schema.walk(steps) else {
        return false;
    };
    let Shape::Group(fields) = schema.shape(element) else {
        return false;
    };
    let field = fields.get(key).map(|field| schema.shape(field));
    matches!(field, Some(Shape::Text(choice)) if !choice.is_empty())
}

const COMPARABLE: &str = "numbers, true and false";

/// What a place of the report holds, where it is not null.
enum Shape<'a> {
    Group(&'a Map<String, Value>),
    /// Of which the schema of an element.
    List(&'a Value),
    Number,
    Flag,
    /// Its values, where they are fixed.
    Text(Vec<&'a str>),
    Other,
}

struct Schema<'a> {
    root: &'a Value,
}

impl<'a> Schema<'a> {
    fn shape(&self, schema: &'a Value) -> Shape<'a> {
        if let Some(pointer) = schema["$ref"].as_str() {
            let target = pointer.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return target.map_or(Shape::Other, |target| self.shape(target));
        }
        // Either this or null.
        if let Some(either) = schema["anyOf"].as_array() {
            let something = either.iter().find(|schema| schema["type"] != "null");
            return something.map_or(Shape::Other, |schema| self.shape(schema));
        }
        // A choice: names with a description each, or without.
        if let Some(choice) = schema["oneOf"].as_array() {
            let of_one = |schema: &'a Value| {
                let names = schema["const"].as_str().into_iter();
                names.chain(strings(&schema["enum"])).collect::<Vec<_>>()
            };
            return Shape::Text(choice.iter().flat_map(of_one).collect());
        }
        match not_null(&schema["type"]) {
            Some("object") => schema["properties"].as_object().map_or(Shape::Other, Shape::Group),
            Some("array") => Shape::List(&schema["items"]),
            Some("integer" | "number") => Shape::Number,
            Some("boolean") => Shape::Flag,
            Some("string") => Shape::Text(strings(&schema["enum"]).collect()),
            _ => Shape::Other,
        }
    }

    /// The shape at the end of a path.
    fn walk(&self, steps: &[Step]) -> Result<Shape<'a>, Invalid> {
        let mut shape = self.shape(self.root);
        for (index, step) in steps.iter().enumerate() {
            shape = self.step(&shape, &steps[..index], step)?;
        }
        Ok(shape)
    }

    /// The shape one step further. `before` are the steps that have led to `shape`.
    fn step(&self, shape: &Shape<'a>, before: &[Step], step: &Step) -> Result<Shape<'a>, Invalid> {
        let whole = Steps(before);
        match (shape, step) {
            (Shape::Group(fields), Step::Field(name)) => match fields.get(name) {
                Some(schema) => Ok(self.shape(schema)),
                None => Err(self.unknown(before, fields, name)),
            },
            (Shape::List(element), Step::Field(name)) => Err(Invalid(format!(
                "`{whole}` is a list: pick elements, as {whole}[0].{name} or {whole}[key=value].{name}{}",
                self.keys(element)
            ))),
            (Shape::List(element), Step::Index(_)) => Ok(self.shape(element)),
            (Shape::List(element), Step::Select(conditions)) => {
                let of_element = self.shape(element);
                for condition in conditions {
                    self.condition(&whole, &of_element, condition)?;
                }
                Ok(of_element)
            }
            (_, Step::Field(name)) => Err(Invalid(format!("`{whole}` is no group, and has no `{name}`"))),
            (_, Step::Index(_) | Step::Select(_)) => Err(Invalid(format!("`{whole}` is no list"))),
        }
    }

    /// Whether an element can meet a condition.
    fn condition(&self, list: &Steps<'_>, element: &Shape<'a>, condition: &Condition) -> Result<(), Invalid> {
        let Condition { key, value } = condition;
        let Shape::Group(fields) = element else {
            return Err(Invalid(format!("the elements of `{list}` have no fields")));
        };
        let Some(schema) = fields.get(key) else {
            let near = near(key, fields.keys());
            return Err(Invalid(format!(
                "the elements of `{list}` have no `{key}`{}",
                did_you_mean(&near, fields.keys())
            )));
        };
        match self.shape(schema) {
            Shape::Text(choice) if !choice.is_empty() && !choice.contains(&value.as_str()) => {
                let near = near(value, choice.iter());
                Err(Invalid(format!(
                    "`{list}` has no {key} `{value}`{}",
                    did_you_mean(&near, choice.iter())
                )))
            }
            Shape::Number if number(value).is_none() => Err(Invalid(format!(
                "`{key}` is a number in `{list}`, and `{value}` is none"
            ))),
            Shape::Flag if !matches!(value.as_str(), "true" | "false") => Err(Invalid(format!(
                "`{key}` is true or false in `{list}`, and `{value}` is neither"
            ))),
            Shape::Text(_) | Shape::Number | Shape::Flag => Ok(()),
            Shape::Group(_) | Shape::List(_) | Shape::Other => Err(Invalid(format!(
                "elements of `{list}` can be picked by text and numbers, and `{key}` is neither"
            ))),
        }
    }

    fn unknown(&self, before: &[Step], fields: &Map<String, Value>, name: &str) -> Invalid {
        let whole = if before.is_empty() {
            "the report".to_owned()
        } else {
            format!("`{}`", Steps(before))
        };
        let mut near = near(name, fields.keys());
        if before.is_empty() && near.is_empty() {
            // The name of a figure without the group it is in?
            let mut paths = Vec::new();
            self.collect(self.root, String::new(), &mut paths);
            paths.retain(|path| path.rsplit('.').next() == Some(name));
            paths.truncate(SUGGESTED);
            near = paths;
        }
        Invalid(format!("{whole} has no `{name}`{}", did_you_mean(&near, fields.keys())))
    }

    /// Every figure below a place: `lost.events`, `ledger[…].count`. The report's types nest, but do not recur.
    fn collect(&self, schema: &'a Value, path: String, paths: &mut Vec<String>) {
        match self.shape(schema) {
            Shape::Group(fields) => {
                for (name, schema) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    self.collect(schema, format!("{path}{dot}{name}"), paths);
                }
            }
            Shape::List(element) => self.collect(element, format!("{path}[…]"), paths),
            Shape::Number | Shape::Flag => paths.push(path),
            Shape::Text(_) | Shape::Other => {}
        }
    }

    /// Some fields of a group that could be compared.
    fn comparable(&self, path: &Steps<'_>, fields: &'a Map<String, Value>) -> String {
        let figures = fields
            .iter()
            .filter(|(_, schema)| matches!(self.shape(schema), Shape::Number | Shape::Flag));
        let figures: Vec<String> = figures.map(|(name, _)| format!("{path}.{name}")).collect();
        if figures.is_empty() {
            "name one of its parts' figures".to_owned()
        } else {
            format!("take one of {}", figures.join(", "))
        }
    }

    /// By what elements can be picked.
    fn keys(&self, element: &'a Value) -> String {
        let Shape::Group(fields) = self.shape(element) else {
            return String::new();
        };
        let keys = fields
            .iter()
            .filter(|(_, schema)| matches!(self.shape(schema), Shape::Text(_) | Shape::Number | Shape::Flag));
        let keys: Vec<&str> = keys.map(|(name, _)| name.as_str()).collect();
        format!(" (a key is one of {})", keys.join(", "))
    }
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The type of a schema that may also be null.
fn not_null(of: &Value) -> Option<&str> {
    of.as_str().or_else(|| strings(of).find(|&name| name != "null"))
}

/// The names most like `name`, those that begin as it does first.
fn near<N: AsRef<str>>(name: &str, known: impl Iterator<Item = N>) -> Vec<String> {
    let mut near: Vec<(f64, String)> = known
        .map(|known| (strsim::jaro_winkler(name, known.as_ref()), known.as_ref().to_owned()))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().map(|(_, name)| name).take(SUGGESTED).collect()
}

/// How a sentence about an unknown name ends.
fn did_you_mean<N: AsRef<str>>(near: &[String], known: impl Iterator<Item = N>) -> String {
    if near.is_empty() {
        let known: Vec<String> = known.map(|name| name.as_ref().to_owned()).collect();
        format!("; it has {}", known.join(", "))
    } else {
        let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
        format!(": did you mean {}?", near.join(" or "))
    }
}
