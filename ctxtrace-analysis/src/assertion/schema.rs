//! Checks the path of an assertion against the JSON schema of the report.
//!
//! The schema is generated from the types of the report, so names added there are known here without further changes.

use serde_json::{Map, Value};

use super::parse::number;
use super::{Assertion, Bound, Condition, Invalid, Operator, PathStep, Steps};
use crate::result::Report;

/// Names with at least this similarity (Jaro-Winkler, 0 to 1) are suggested.
const NEAR: f64 = 0.8;
/// Maximum number of names to suggest.
const SUGGESTED: usize = 3;

/// Rejects an assertion that makes no sense for any report, with a message that says why.
pub(super) fn check(assertion: &Assertion) -> Result<(), Invalid> {
    let schema = schemars::schema_for!(Report);
    let schema = Schema {
        root: schema.as_value(),
    };
    let steps = &assertion.path;
    let shape = schema.walk(steps)?;
    let path = Steps(steps);
    let selects = steps.iter().any(|step| matches!(step, PathStep::Select(_)));
    match (shape, assertion.bound) {
        (Shape::Number, Bound::Number(_)) => Ok(()),
        (Shape::Number, Bound::Flag(_)) => Err(Invalid(format!(
            "`{path}` is a number and cannot be compared with true or false"
        ))),
        (Shape::Flag, _) if selects => Err(Invalid(format!(
            "`{path}` is true or false, and [key=value] adds up numbers: select one element by its index, as in [0]"
        ))),
        (Shape::Flag, Bound::Flag(_)) if assertion.operator == Operator::Equal => Ok(()),
        (Shape::Flag, _) => Err(Invalid(format!(
            "`{path}` is true or false: use `== true` or `== false`"
        ))),
        (Shape::Text(_), _) => Err(Invalid(format!(
            "`{path}` is text, but only {COMPARABLE} can be compared"
        ))),
        (Shape::Group(fields), _) => Err(Invalid(format!(
            "`{path}` is a group, but only {COMPARABLE} can be compared: {}",
            schema.comparable(&path, fields)
        ))),
        (Shape::List(_), _) => Err(Invalid(format!(
            "`{path}` is a list, but only {COMPARABLE} can be compared: \
             select elements, as in {path}[0] or {path}[key=value], and one of their fields"
        ))),
        (Shape::Other, _) => Err(Invalid(format!("`{path}` cannot be compared"))),
    }
}

/// Whether the schema lists the possible values of the field `key` in the elements of the list at `steps`.
pub(super) fn lists_values(steps: &[PathStep], key: &str) -> bool {
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

/// The kinds of values that can be compared, for messages.
const COMPARABLE: &str = "numbers, true and false";

/// The kind of a value in the report, if the value is not null.
enum Shape<'a> {
    /// An object, with the schemas of its fields.
    Group(&'a Map<String, Value>),
    /// A list, with the schema of its elements.
    List(&'a Value),
    Number,
    Flag,
    /// Text, with the possible values if they are fixed.
    Text(Vec<&'a str>),
    Other,
}

struct Schema<'a> {
    root: &'a Value,
}

impl<'a> Schema<'a> {
    /// Returns the shape that a schema describes.
    fn shape(&self, schema: &'a Value) -> Shape<'a> {
        if let Some(pointer) = schema["$ref"].as_str() {
            let target = pointer.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return target.map_or(Shape::Other, |target| self.shape(target));
        }
        // The schema of an optional value: a type or null.
        if let Some(either) = schema["anyOf"].as_array() {
            let something = either.iter().find(|schema| schema["type"] != "null");
            return something.map_or(Shape::Other, |schema| self.shape(schema));
        }
        // The schema of an enum: names with or without a description for each.
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

    /// Returns the shape at the end of a path.
    fn walk(&self, steps: &[PathStep]) -> Result<Shape<'a>, Invalid> {
        let mut shape = self.shape(self.root);
        for (index, step) in steps.iter().enumerate() {
            shape = self.step(&shape, &steps[..index], step)?;
        }
        Ok(shape)
    }

    /// Returns the shape after one more step. `before` is the path that leads to `shape`.
    fn step(&self, shape: &Shape<'a>, before: &[PathStep], step: &PathStep) -> Result<Shape<'a>, Invalid> {
        let whole = Steps(before);
        match (shape, step) {
            (Shape::Group(fields), PathStep::Field(name)) => match fields.get(name) {
                Some(schema) => Ok(self.shape(schema)),
                None => Err(self.unknown(before, fields, name)),
            },
            (Shape::List(element), PathStep::Field(name)) => Err(Invalid(format!(
                "`{whole}` is a list: select elements, as in {whole}[0].{name} or {whole}[key=value].{name}{}",
                self.keys(element)
            ))),
            (Shape::List(element), PathStep::Index(_)) => Ok(self.shape(element)),
            (Shape::List(element), PathStep::Select(conditions)) => {
                let of_element = self.shape(element);
                for condition in conditions {
                    self.condition(&whole, &of_element, condition)?;
                }
                Ok(of_element)
            }
            (_, PathStep::Field(name)) => Err(Invalid(format!("`{whole}` is not a group and has no `{name}`"))),
            (_, PathStep::Index(_) | PathStep::Select(_)) => Err(Invalid(format!("`{whole}` is not a list"))),
        }
    }

    /// Checks whether an element of `list` could meet a condition.
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
                "`{key}` is a number in `{list}`, but `{value}` is not"
            ))),
            Shape::Flag if !matches!(value.as_str(), "true" | "false") => Err(Invalid(format!(
                "`{key}` is true or false in `{list}`, but `{value}` is neither"
            ))),
            Shape::Text(_) | Shape::Number | Shape::Flag => Ok(()),
            Shape::Group(_) | Shape::List(_) | Shape::Other => Err(Invalid(format!(
                "elements of `{list}` can be selected by text, numbers, true and false, but `{key}` is none of these"
            ))),
        }
    }

    /// Makes the error for a name that does not exist, with suggestions.
    fn unknown(&self, before: &[PathStep], fields: &Map<String, Value>, name: &str) -> Invalid {
        let whole = if before.is_empty() {
            "the report".to_owned()
        } else {
            format!("`{}`", Steps(before))
        };
        let mut near = near(name, fields.keys());
        if before.is_empty() && near.is_empty() {
            // The name may be that of a figure without the group that contains it.
            let mut paths = Vec::new();
            self.collect(self.root, String::new(), &mut paths);
            paths.retain(|path| path.rsplit('.').next() == Some(name));
            paths.truncate(SUGGESTED);
            near = paths;
        }
        Invalid(format!("{whole} has no `{name}`{}", did_you_mean(&near, fields.keys())))
    }

    /// Adds the paths of all figures below a value to `paths`, for example `lost.events` and `ledger[…].count`. It terminates
    /// because the types of the report are not recursive.
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

    /// Returns the end of a message that lists the fields of a group that can be compared.
    fn comparable(&self, path: &Steps<'_>, fields: &'a Map<String, Value>) -> String {
        let figures = fields
            .iter()
            .filter(|(_, schema)| matches!(self.shape(schema), Shape::Number | Shape::Flag));
        let figures: Vec<String> = figures.map(|(name, _)| format!("{path}.{name}")).collect();
        if figures.is_empty() {
            "use a figure of one of its parts".to_owned()
        } else {
            format!("use one of {}", figures.join(", "))
        }
    }

    /// Returns the end of a message that lists the keys by which elements of a list can be selected.
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

/// Returns the type in a schema. If the schema allows null and one other type, returns the other type.
fn not_null(of: &Value) -> Option<&str> {
    of.as_str().or_else(|| strings(of).find(|&name| name != "null"))
}

/// Returns the names that are most similar to `name`, the most similar first. Names with the same beginning count as more
/// similar.
fn near<N: AsRef<str>>(name: &str, known: impl Iterator<Item = N>) -> Vec<String> {
    let mut near: Vec<(f64, String)> = known
        .map(|known| (strsim::jaro_winkler(name, known.as_ref()), known.as_ref().to_owned()))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().map(|(_, name)| name).take(SUGGESTED).collect()
}

/// Returns the end of a message about an unknown name: suggestions, or all known names if none is similar.
fn did_you_mean<N: AsRef<str>>(near: &[String], known: impl Iterator<Item = N>) -> String {
    if near.is_empty() {
        let known: Vec<String> = known.map(|name| name.as_ref().to_owned()).collect();
        format!("; it has {}", known.join(", "))
    } else {
        let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
        format!(": did you mean {}?", near.join(" or "))
    }
}
