//! Stacks as a profile: the protobuf that `go tool pprof`, Pyroscope, Parca, speedscope and many others read
//! (`profile.proto` in pprof's repository), packed by gzip.
//!
//! A sample is the switch-outs with one stack: how many (`switches/count`) and their time off the CPU
//! (`off_cpu/nanoseconds`). What the thread was doing is in its labels, where a reader can group and filter by it
//! (`pprof -tagroot=task`, `-tagfocus`): `task`, `task type`, `class`, `reason` and `thread`. Inlined functions are lines of the place they are
//! inlined into. A frame in brackets is no function but the reason why there is none.
//!
//! The samples add up to the ledger: what did not fit the table of sums is there with its class.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, Write};

use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::Reason;
use ctxtrace_common::process::TaskKey;
use flate2::{Compression, GzBuilder};
use prost::Message;

use super::flamegraph::Labels;
use super::printable;
use crate::analyze::attribution::class;
use crate::correlate::ledger::{Entry, entry_of, overflowed};
use crate::correlate::tasks;
use crate::symbolize::stacks::{switched, task_types};
use crate::target::locate;
use crate::trace::name_of;
use crate::trace::run::{Info, Run};
use crate::trace::symbols::{Frame, FrameKind};

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    /// Innermost first: what was inlined before what it was inlined into.
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
}

// Functions have their names already, so a reader need not look for any.
const PROGRAM: u64 = 1;
const KERNEL: u64 = 2;

/// Things by number, in the order in which they were first met.
#[derive(Default)]
struct Numbered<T>(HashMap<T, u64>, Vec<T>);

impl<T: Clone + Eq + Hash> Numbered<T> {
    fn number(&mut self, thing: T) -> u64 {
        let next = self.1.len() as u64;
        let Self(numbers, things) = self;
        *numbers.entry(thing).or_insert_with_key(|thing| {
            things.push(thing.clone());
            next
        })
    }
}

/// A place in a stack: the mapping, and the functions by the numbers of their names, innermost first.
type Place = (u64, Vec<i64>);

/// What samples are told apart by: the places, innermost first, and the labels.
type Key = (Vec<u64>, Vec<(i64, i64)>);

#[derive(Default)]
struct Builder {
    strings: Numbered<String>,
    functions: Numbered<i64>,
    places: Numbered<Place>,
    samples: Numbered<Key>,
    values: Vec<(u64, u64)>,
}

impl Builder {
    fn new() -> Self {
        let mut builder = Self::default();
        // The format wants the first one to be empty.
        builder.string("");
        builder
    }

    fn string(&mut self, text: &str) -> i64 {
        self.strings.number(text.to_owned()) as i64
    }

    /// Places are numbered from 1 on, as functions are.
    fn place(&mut self, mapping: u64, functions: Vec<i64>) -> u64 {
        for &name in &functions {
            self.functions.number(name);
        }
        self.places.number((mapping, functions)) + 1
    }

    /// A stack, outermost frame first, as places, innermost first.
    fn stack(&mut self, frames: &[Frame]) -> Vec<u64> {
        let mut places = Vec::new();
        let mut inlined = Vec::new();
        for frame in frames.iter().rev() {
            let name = self.string(&name(frame));
            match frame.kind {
                FrameKind::Inlined => inlined.push(name),
                FrameKind::User | FrameKind::Doing | FrameKind::Thread | FrameKind::Reason => {
                    inlined.push(name);
                    places.push(self.place(PROGRAM, std::mem::take(&mut inlined)));
                }
                FrameKind::Kernel => {
                    inlined.push(name);
                    places.push(self.place(KERNEL, std::mem::take(&mut inlined)));
                }
            }
        }
        if !inlined.is_empty() {
            // What it was inlined into has no name.
            places.push(self.place(PROGRAM, inlined));
        }
        places
    }

    fn labels(&mut self, entry: &Entry, run: &Run, types: &HashMap<TaskKey, String>, thread: &str) -> Vec<(i64, i64)> {
        let mut labels = Vec::new();
        let mut label = |key: &str, value: &str| {
            let label = (self.string(key), self.string(&printable(value)));
            labels.push(label);
        };
        if let Some(task) = entry.task {
            label("task", &tasks::name(&run.aggregates, task));
            if let Some(of) = types.get(&task) {
                label("task type", of);
            }
        }
        label("class", class(entry.class).in_words());
        if entry.reason != Reason::None {
            label("reason", locate::in_words(entry.reason));
        }
        if !thread.is_empty() {
            label("thread", thread);
        }
        labels
    }

    fn add(&mut self, key: Key, count: u64, off_cpu_ns: u64) {
        let sample = self.samples.number(key) as usize;
        if sample == self.values.len() {
            self.values.push((0, 0));
        }
        let sum = &mut self.values[sample];
        *sum = (sum.0.saturating_add(count), sum.1.saturating_add(off_cpu_ns));
    }
}

/// Renders the switch-outs of a run.
///
/// # Errors
///
/// If it cannot be packed, which takes nothing but memory.
pub fn render(info: &Info, run: &Run, labels: &Labels) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    encoder.write_all(&profile(info, run, labels).encode_to_vec())?;
    encoder.finish()
}

fn profile(info: &Info, run: &Run, labels: &Labels) -> Profile {
    let mut builder = Builder::new();
    let types = task_types(&run.aggregates, &run.symbols);
    // The order of the kernel's table is any.
    let mut sums: Vec<_> = run.aggregates.switch_sums.iter().collect();
    sums.sort_by_key(|(key, _)| key);
    for (key, sum) in sums {
        let labels = builder.labels(&entry_of(key, &run.aggregates), run, &types, &name_of(&key.comm));
        let stack = builder.stack(&switched(run, key));
        builder.add((stack, labels), sum.count, sum.off_cpu_ns);
    }
    for (number, sum) in run.aggregates.overflow_sums.iter().enumerate() {
        if let (Some(class), true) = (Class::from_number(number as u32), sum.count > 0) {
            let labels = builder.labels(&overflowed(class), run, &types, "");
            let stack = builder.stack(&[Frame {
                kind: FrameKind::Reason,
                name: "[lost: the table of sums was full]".to_owned(),
            }]);
            builder.add((stack, labels), sum.count, sum.off_cpu_ns);
        }
    }
    finished(builder, info, run, labels)
}

fn finished(mut builder: Builder, info: &Info, run: &Run, labels: &Labels) -> Profile {
    let mut value_type = |r#type, unit| ValueType {
        r#type: builder.string(r#type),
        unit: builder.string(unit),
    };
    let sample_type = vec![
        value_type("switches", "count"),
        value_type("off_cpu", "nanoseconds"),
    ];
    let subject = printable(&labels.subject);
    let lost = labels.lost.as_deref().unwrap_or("nothing");
    let comment = vec![
        builder.string(&format!("ctxtrace {}: {subject}", printable(&info.ctxtrace_version))),
        builder.string(&format!("lost: {}", printable(lost))),
    ];
    let mut mapping = |id, filename| Mapping {
        id,
        filename: builder.string(filename),
        has_functions: true,
        has_inline_frames: true,
    };
    let mapping = vec![mapping(PROGRAM, &subject), mapping(KERNEL, "[kernel.kallsyms]")];
    let Builder {
        mut functions,
        places,
        samples,
        values,
        strings,
    } = builder;
    let location = places.1.into_iter().enumerate().map(|(index, (mapping_id, names))| Location {
        id: index as u64 + 1,
        mapping_id,
        line: names
            .into_iter()
            .map(|name| Line {
                function_id: functions.number(name) + 1,
            })
            .collect(),
    });
    let location = location.collect();
    let function = functions.1.into_iter().enumerate().map(|(index, name)| Function {
        id: index as u64 + 1,
        name,
        system_name: name,
    });
    let sample = samples.1.into_iter().zip(values).map(|((location_id, labels), (count, ns))| Sample {
        location_id,
        value: vec![signed(count), signed(ns)],
        label: labels.into_iter().map(|(key, str)| Label { key, str }).collect(),
    });
    Profile {
        default_sample_type: sample_type[1].r#type,
        sample_type,
        sample: sample.collect(),
        mapping,
        location,
        function: function.collect(),
        string_table: strings.1,
        time_nanos: signed(info.started.realtime_ns),
        duration_nanos: signed(run.recorded_ns),
        comment,
    }
}

/// The format has no other numbers.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn name(frame: &Frame) -> String {
    let name = printable(&frame.name);
    if name.is_empty() { "[no name]".to_owned() } else { name }
}
