//! A decoder for pprof profiles.

use std::io::Read;

use flate2::read::GzDecoder;

use super::{children, decode, field, number, numbers};
use protobuf::MessageDyn;
use protobuf::reflect::ReflectValueRef;

/// A sample: the switch-outs with the same stack and labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The names of the functions, innermost first. The name of a function that is inlined into the next one ends in ` (inlined)`.
    pub(crate) stack: Vec<String>,
    /// One value for each of the types of the profile.
    pub(crate) values: Vec<i64>,
    /// The labels, as pairs of key and value.
    pub(crate) labels: Vec<(String, String)>,
}

/// A decoded profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    /// The types of values, as pairs of type and unit.
    pub(crate) types: Vec<(String, String)>,
    pub(crate) default_type: String,
    pub(crate) samples: Vec<Sample>,
    pub(crate) mappings: Vec<String>,
    pub(crate) comments: Vec<String>,
    pub(crate) time_ns: i64,
    pub(crate) duration_ns: i64,
}

impl Profile {
    /// Decodes a file.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut unpacked = Vec::new();
        GzDecoder::new(bytes)
            .read_to_end(&mut unpacked)
            .expect("a valid gzip stream");
        let profile = decode("profile.proto", "Profile", &unpacked);
        let profile = &*profile;
        let strings = strings(profile);
        assert_eq!(strings[0], "", "the format requires that the first string is empty");
        let text = |of: &dyn MessageDyn, name: &str| strings[number(of, name).unwrap_or(0) as usize].clone();
        let functions: Vec<String> = numbered(profile, "function")
            .iter()
            .map(|of| text(&**of, "name"))
            .collect();
        let locations: Vec<Vec<String>> = numbered(profile, "location")
            .iter()
            .map(|location| {
                assert!(number(&**location, "mapping_id").is_some_and(|id| id > 0));
                let lines = children(&**location, "line");
                let names = lines.iter().enumerate().map(|(index, line)| {
                    let function = number(&**line, "function_id").expect("a function") as usize;
                    let inlined = if index + 1 < lines.len() { " (inlined)" } else { "" };
                    format!("{}{inlined}", functions[function - 1])
                });
                names.collect()
            })
            .collect();
        let samples = children(profile, "sample").into_iter().map(|sample| Sample {
            stack: numbers(&*sample, "location_id")
                .into_iter()
                .flat_map(|id| locations[id as usize - 1].clone())
                .collect(),
            values: numbers(&*sample, "value"),
            labels: children(&*sample, "label")
                .into_iter()
                .map(|label| (text(&*label, "key"), text(&*label, "str")))
                .collect(),
        });
        Self {
            types: children(profile, "sample_type")
                .into_iter()
                .map(|of| (text(&*of, "type"), text(&*of, "unit")))
                .collect(),
            default_type: text(profile, "default_sample_type"),
            samples: samples.collect(),
            mappings: children(profile, "mapping")
                .into_iter()
                .map(|of| text(&*of, "filename"))
                .collect(),
            comments: numbers(profile, "comment")
                .into_iter()
                .map(|index| strings[index as usize].clone())
                .collect(),
            time_ns: number(profile, "time_nanos").unwrap_or(0),
            duration_ns: number(profile, "duration_nanos").unwrap_or(0),
        }
    }

    /// Returns the sum of each value over the samples with all of these labels.
    pub(crate) fn sums(&self, labels: &[(&str, &str)]) -> Vec<i64> {
        let has = |sample: &Sample, (key, value): (&str, &str)| {
            sample
                .labels
                .iter()
                .any(|label| (label.0.as_str(), label.1.as_str()) == (key, value))
        };
        let mut sums = vec![0; self.types.len()];
        for sample in &self.samples {
            if labels.iter().all(|&label| has(sample, label)) {
                for (sum, value) in sums.iter_mut().zip(&sample.values) {
                    *sum += value;
                }
            }
        }
        sums
    }
}

fn strings(profile: &dyn MessageDyn) -> Vec<String> {
    let values = field(profile, "string_table").get_repeated(profile);
    let text = |value: ReflectValueRef<'_>| match value {
        ReflectValueRef::String(text) => text.to_owned(),
        other => panic!("{other:?} is not a text"),
    };
    values.into_iter().map(text).collect()
}

/// Returns the messages in a repeated field. Panics unless their ids are 1, 2, 3 and so on.
fn numbered<'a>(profile: &'a dyn MessageDyn, name: &str) -> Vec<protobuf::reflect::MessageRef<'a>> {
    let all = children(profile, name);
    for (index, one) in all.iter().enumerate() {
        assert_eq!(number(&**one, "id"), Some(index as i64 + 1), "{name}");
    }
    all
}
