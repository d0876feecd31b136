//! Evaluates an assertion on a report.

use serde_json::Value;

use super::{Assertion, Bound, Condition, Number, PathStep, Steps, parse, schema};

/// Maximum number of existing values that a message lists if the selected value does not exist. The message gives the number of
/// the remaining values.
const MAX_OTHERS_LISTED: usize = 8;

/// Why an assertion does not hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{path} is {}", value_in_words(.value, *.summed))]
pub struct NotMet {
    /// Path of the value that was compared, or of a null before the end of the path.
    path: String,
    /// The value at the path. If there is no value, the reason.
    value: Result<Bound, String>,
    /// Number of elements that were added up, if the path selects elements.
    summed: Option<usize>,
}

fn value_in_words(value: &Result<Bound, String>, summed: Option<usize>) -> String {
    match (value, summed) {
        (Err(reason), _) => format!("null: {reason}"),
        (Ok(value), None | Some(1)) => value.to_string(),
        (Ok(value), Some(0)) => format!("{value} (no element meets the conditions)"),
        (Ok(value), Some(elements)) => format!("{value} ({elements} elements added up)"),
    }
}

/// A value in the report and its path.
struct ReportValue<'a> {
    /// The path in the form that `unavailable` uses.
    path: String,
    value: &'a Value,
}

impl Assertion {
    /// Checks whether the assertion holds in `report`, the JSON of a result.
    ///
    /// # Errors
    ///
    /// If the assertion does not hold. An assertion on a null never holds. The error has the value that was found.
    pub fn evaluate(&self, report: &Value) -> Result<(), NotMet> {
        let places = self.places(report)?;
        let selects = self.path.iter().any(|step| matches!(step, PathStep::Select(_)));
        let found = match places.as_slice() {
            [one] if !selects => compared(one, report)?,
            several => Bound::Number(sum(several, report)?),
        };
        if self.holds_for(found) {
            return Ok(());
        }
        Err(NotMet {
            path: Steps(&self.path).to_string(),
            value: Ok(found),
            summed: selects.then_some(places.len()),
        })
    }

    fn holds_for(&self, found: Bound) -> bool {
        match (found, self.bound) {
            (Bound::Number(found), Bound::Number(bound)) => self.operator.admits(found.compare(bound)),
            (Bound::Flag(found), Bound::Flag(bound)) => self.operator.admits(found.cmp(&bound)),
            // The check against the schema rejects such assertions.
            (Bound::Number(_), Bound::Flag(_)) | (Bound::Flag(_), Bound::Number(_)) => false,
        }
    }

    /// Returns every value that the path leads to.
    fn places<'a>(&self, report: &'a Value) -> Result<Vec<ReportValue<'a>>, NotMet> {
        let mut places = vec![ReportValue {
            path: String::new(),
            value: report,
        }];
        for (index, step) in self.path.iter().enumerate() {
            let mut next = Vec::new();
            for place in &places {
                if place.value.is_null() {
                    return Err(null(place, report));
                }
                match step {
                    PathStep::Field(name) => next.push(field(place, name)),
                    PathStep::Index(index) => next.push(element(place, *index)?),
                    PathStep::Select(conditions) => {
                        next.extend(selected(place, conditions, &self.path[..index])?);
                    }
                }
            }
            places = next;
        }
        Ok(places)
    }
}

fn field<'a>(place: &ReportValue<'a>, name: &str) -> ReportValue<'a> {
    let dot = if place.path.is_empty() { "" } else { "." };
    ReportValue {
        path: format!("{}{dot}{name}", place.path),
        // Indexing with an absent field gives null.
        value: &place.value[name],
    }
}

fn element<'a>(place: &ReportValue<'a>, index: usize) -> Result<ReportValue<'a>, NotMet> {
    let path = format!("{}[{index}]", place.path);
    match place.value.get(index) {
        Some(value) => Ok(ReportValue { path, value }),
        None => {
            let length = place.value.as_array().map_or(0, Vec::len);
            Err(NotMet {
                value: Err(format!(
                    "there is no such element, because {} has {length} elements",
                    place.path
                )),
                path,
                summed: None,
            })
        }
    }
}

/// Returns the elements that meet all conditions. Fails if the value of a condition may be misspelt. `steps` is the path of the
/// list.
fn selected<'a>(
    place: &ReportValue<'a>,
    conditions: &[Condition],
    steps: &[PathStep],
) -> Result<Vec<ReportValue<'a>>, NotMet> {
    let elements = place.value.as_array().map_or(&[][..], Vec::as_slice);
    for condition in conditions {
        let anywhere = elements.iter().any(|element| meets(element, condition));
        if !anywhere && !schema::lists_values(steps, &condition.key) {
            let list = Steps(steps);
            return Err(NotMet {
                path: format!("{list}{condition}"),
                value: Err(format!(
                    "no element of {list} has this {}{}",
                    condition.key,
                    others(elements, &condition.key)
                )),
                summed: None,
            });
        }
    }
    let meets_all = |element: &Value| conditions.iter().all(|condition| meets(element, condition));
    Ok(elements
        .iter()
        .enumerate()
        .filter(|(_, element)| meets_all(element))
        .map(|(index, value)| ReportValue {
            path: format!("{}[{index}]", place.path),
            value,
        })
        .collect())
}

fn meets(element: &Value, condition: &Condition) -> bool {
    match &element[&condition.key] {
        Value::String(text) => *text == condition.value,
        Value::Bool(flag) => condition.value == flag.to_string(),
        Value::Number(found) => match (of_json(found), parse::number(&condition.value)) {
            (Some(found), Some(wanted)) => found.compare(wanted).is_eq(),
            _ => false,
        },
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Returns the end of a message that lists the values that the elements have instead.
fn others(elements: &[Value], key: &str) -> String {
    let mut values: Vec<String> = Vec::new();
    for element in elements {
        let value = match &element[key] {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if !values.contains(&value) {
            values.push(value);
        }
    }
    let rest = values.len().saturating_sub(MAX_OTHERS_LISTED);
    values.truncate(MAX_OTHERS_LISTED);
    match (values.is_empty(), rest) {
        (true, _) => String::new(),
        (false, 0) => format!("; existing values: {}", values.join(", ")),
        (false, rest) => format!("; existing values: {} and {rest} more", values.join(", ")),
    }
}

fn compared(place: &ReportValue<'_>, report: &Value) -> Result<Bound, NotMet> {
    match place.value {
        Value::Bool(flag) => Ok(Bound::Flag(*flag)),
        Value::Number(number) => of_json(number).map(Bound::Number).ok_or_else(|| null(place, report)),
        Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => Err(null(place, report)),
    }
}

fn sum(places: &[ReportValue<'_>], report: &Value) -> Result<Number, NotMet> {
    let mut sum = Number::Whole(0);
    for place in places {
        match compared(place, report)? {
            Bound::Number(number) => sum = sum.plus(number),
            // The check against the schema rejects a path that selects elements and leads to a flag.
            Bound::Flag(_) => return Err(null(place, report)),
        }
    }
    Ok(sum)
}

fn of_json(number: &serde_json::Number) -> Option<Number> {
    number
        .as_i128()
        .map(Number::Whole)
        .or_else(|| number.as_f64().map(Number::Decimal))
}

/// Makes the error for a null. The reason comes from the report's `unavailable`.
fn null(place: &ReportValue<'_>, report: &Value) -> NotMet {
    let entries = report["unavailable"].as_array().into_iter().flatten();
    let reason = entries
        .filter(|entry| entry["path"].as_str().is_some_and(|path| covers(path, &place.path)))
        .find_map(|entry| entry["reason"].as_str());
    NotMet {
        path: place.path.clone(),
        value: Err(reason.unwrap_or("the report has no value for this figure").to_owned()),
        summed: None,
    }
}

/// Whether an entry of `unavailable` applies to a path. A `*` stands for all fields of a group.
fn covers(entry: &str, path: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(group) => path.starts_with(group),
        None => path == entry,
    }
}
