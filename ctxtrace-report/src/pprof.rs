//! Renders stacks as a pprof profile: the protobuf that `go tool pprof`, Pyroscope, Parca, speedscope and others read
//! (`profile.proto` in pprof's repository), compressed by gzip.
//!
//! A sample has the switch-outs with the same stack and labels: their number (`switches/count`) and their time off the CPU
//! (`off_cpu/nanoseconds`). The labels say what the thread was doing: `task`, `task type`, `class`, `reason` and `thread`. A
//! reader can group and filter by them (`pprof -tagroot=task`, `-tagfocus`). Inlined functions are lines of the location that
//! they are inlined into. A frame in brackets is not a function, but the reason why there is no function.
//!
//! The samples add up to the ledger: switch-outs that did not fit the table of sums are included with their class only.

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
use ctxtrace_analysis::correlate::ledger::{LedgerEntry, entry_of, overflowed};
use ctxtrace_analysis::correlate::tasks;
use ctxtrace_analysis::symbolize::stacks::{switched, task_types};
use ctxtrace_format::executable::reason_in_words;
use ctxtrace_format::name_of;
use ctxtrace_format::run::{Info, Run};
use ctxtrace_format::symbols::{Frame, FrameKind};

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
    /// Innermost first: an inlined function comes before the function that it was inlined into.
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
    /// The field `system_name` is left out. If it equalled the name, pprof would take the name for a mangled one, and would
    /// remove the text between `<` and `>`.
    #[prost(int64, tag = "2")]
    name: i64,
}

// Ids of the two mappings. Both declare that their functions have names, so a reader does not look for symbols.
const PROGRAM: u64 = 1;
const KERNEL: u64 = 2;

/// Distinct values, numbered from 0 in the order in which they were first added.
#[derive(Default)]
struct Numbered<T>(HashMap<T, u64>, Vec<T>);

impl<T: Clone + Eq + Hash> Numbered<T> {
    fn number(&mut self, value: T) -> u64 {
        let next = self.1.len() as u64;
        let Self(numbers, values) = self;
        *numbers.entry(value).or_insert_with_key(|value| {
            values.push(value.clone());
            next
        })
    }
}

/// A location in a stack: the id of the mapping, and its functions by the numbers of their names, innermost first.
type LocationKey = (u64, Vec<i64>);

/// The key of a sample: the ids of the locations, innermost first, and the labels.
type Key = (Vec<u64>, Vec<(i64, i64)>);

#[derive(Default)]
struct Builder {
    strings: Numbered<String>,
    functions: Numbered<i64>,
    places: Numbered<LocationKey>,
    samples: Numbered<Key>,
    values: Vec<(u64, u64)>,
}

impl Builder {
    fn new() -> Self {
        let mut builder = Self::default();
        // The format requires that the first string is empty.
        builder.string("");
        builder
    }

    fn string(&mut self, text: &str) -> i64 {
        self.strings.number(text.to_owned()) as i64
    }

    /// Returns the id of a location. Ids of locations begin with 1, as those of functions do.
    fn place(&mut self, mapping: u64, functions: Vec<i64>) -> u64 {
        for &name in &functions {
            self.functions.number(name);
        }
        self.places.number((mapping, functions)) + 1
    }

    /// Converts a stack, outermost frame first, to the ids of its locations, innermost first.
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
            // The function that these are inlined into has no name.
            places.push(self.place(PROGRAM, inlined));
        }
        places
    }

    fn labels(
        &mut self,
        entry: &LedgerEntry,
        run: &Run,
        types: &HashMap<TaskKey, String>,
        thread: &str,
    ) -> Vec<(i64, i64)> {
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
        label("class", entry.class.in_words());
        if entry.reason != Reason::None {
            label("reason", reason_in_words(entry.reason));
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

/// Renders the switch-outs of a run as a compressed profile.
///
/// # Errors
///
/// If compression fails. It writes to memory, so this is not expected.
pub fn render(info: &Info, run: &Run, labels: &Labels) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    encoder.write_all(&profile(info, run, labels).encode_to_vec())?;
    encoder.finish()
}

fn profile(info: &Info, run: &Run, labels: &Labels) -> Profile {
    let mut builder = Builder::new();
    let types = task_types(&run.aggregates, &run.symbols);
    // Sorted, because the order of the BPF map is arbitrary and the output must not depend on it.
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
                name: "[lost: the table of sums was full]".into(),
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
    let sample_type = vec![value_type("switches", "count"), value_type("off_cpu", "nanoseconds")];
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
    let location = places
        .1
        .into_iter()
        .enumerate()
        .map(|(index, (mapping_id, names))| Location {
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
    });
    let sample = samples
        .1
        .into_iter()
        .zip(values)
        .map(|((location_id, labels), (count, ns))| Sample {
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

/// Converts a number to the signed type of the format. Larger values become `i64::MAX`.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn name(frame: &Frame) -> String {
    let name = printable(&frame.name);
    if name.is_empty() { "[no name]".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use ctxtrace_common::process::Image;
    use ctxtrace_common::stack::{SumKey, SwitchSum, UserStack};
    use std::fmt::Write as _;

    use super::*;
    use crate::decode::pprof::Profile as Decoded;
    use crate::golden::golden;
    use ctxtrace_analysis::correlate::ledger::ledger;
    use ctxtrace_analysis::fixtures::info;
    use ctxtrace_format::build;
    use ctxtrace_format::workload::Mode;

    const IMAGE: Image = Image { tgid: 100, number: 0 };

    fn frame(kind: FrameKind, name: &str) -> Frame {
        Frame {
            kind,
            name: name.into(),
        }
    }

    fn key(class: Class, task: u64, (user, kernel): (u64, u64), comm: &str) -> SumKey {
        let mut key = build::sum_key(class, task);
        (key.user_stack, key.kernel_stack) = (user, kernel);
        key.comm[..comm.len()].copy_from_slice(comm.as_bytes());
        key
    }

    /// A run with a task that blocks at two places, a parked worker, a thread with a hostile name, and switch-outs that did not
    /// fit the table of sums.
    fn run() -> Run {
        let mut aggregates = build::aggregates(vec![]);
        let sum = |count, off_cpu_ns| SwitchSum { count, off_cpu_ns };
        aggregates.names.insert(IMAGE, vec![String::new(), "sender".to_owned()]);
        let mut exiting = key(Class::Exited, 0, (0, 9), "<b>\u{1b}[31m");
        exiting.user_state = UserStack::Exiting as u32;
        let mut not_read = key(Class::ThreadBlocked, 0, (1, 9), "worker");
        not_read.reason = Reason::NoTypeInfo as u8;
        aggregates.switch_sums = vec![
            (key(Class::TaskBlocked, 1, (1, 9), "worker"), sum(40, 73_000)),
            (key(Class::TaskBlocked, 1, (2, 9), "worker"), sum(2, 5_000)),
            (key(Class::WorkerParked, 0, (3, 9), "worker"), sum(7, 900_000)),
            (exiting, sum(1, 0)),
            (not_read, sum(3, 30)),
        ];
        aggregates.overflow_sums = vec![SwitchSum::default(); Class::COUNT];
        aggregates.overflow_sums[Class::TaskPreempted as usize] = sum(11, 1_100);
        for stack in [1, 2, 3, 9] {
            aggregates.stacks.insert(stack, [stack].into());
        }
        let mut run = build::run(aggregates);
        let begin = || vec![frame(FrameKind::User, "clone3")];
        let of_task = |inner: &[Frame]| {
            let mut frames = begin();
            frames.push(frame(FrameKind::User, "tokio::runtime::task::raw::poll"));
            frames.push(frame(
                FrameKind::User,
                "<app::Job<[u8; 4]> as core::future::Future>::poll",
            ));
            frames.extend_from_slice(inner);
            frames
        };
        let inlined = [frame(FrameKind::Inlined, "lock"), frame(FrameKind::Inlined, "wait")];
        run.symbols.add_user(IMAGE, 1, &of_task(&inlined));
        run.symbols
            .add_user(IMAGE, 2, &of_task(&[frame(FrameKind::User, "read")]));
        run.symbols.add_user(IMAGE, 3, &begin());
        let kernel = [
            frame(FrameKind::Kernel, "do_futex"),
            frame(FrameKind::Kernel, "__schedule"),
        ];
        run.symbols.add_kernel(9, &kernel);
        run
    }

    fn decoded(run: &Run) -> Decoded {
        let labels = Labels {
            subject: "task-pool, buffer 0".to_owned(),
            lost: Some("11 switches by stack".to_owned()),
        };
        Decoded::read(&render(&info(Mode::TaskPool), run, &labels).expect("the profile renders"))
    }

    #[test]
    fn golden_pprof() {
        let profile = decoded(&run());
        let mut text = String::new();
        for sample in &profile.samples {
            let _ = writeln!(text, "{:?}", sample.values);
            for (key, value) in &sample.labels {
                let _ = writeln!(text, "    {key}: {value}");
            }
            for function in &sample.stack {
                let _ = writeln!(text, "        {function}");
            }
        }
        let _ = writeln!(text, "types {:?}, first shown {}", profile.types, profile.default_type);
        let _ = writeln!(text, "mappings {:?}", profile.mappings);
        let _ = writeln!(text, "comments {:?}", profile.comments);
        let _ = writeln!(text, "time {}, duration {}", profile.time_ns, profile.duration_ns);
        golden("stacks.pprof.txt", text);
    }

    #[test]
    fn its_sums_are_the_ledgers() {
        let run = run();
        let profile = decoded(&run);
        let ledger = ledger(&run.aggregates);
        for of in Class::ALL {
            let sum = ledger.of(of);
            let sums = profile.sums(&[("class", of.in_words())]);
            assert_eq!(sums, [sum.count as i64, sum.off_cpu_ns as i64], "{of:?}");
        }
        assert_eq!(profile.sums(&[])[0], 64);
        assert_eq!(profile.sums(&[("task", "sender"), ("thread", "worker")]), [42, 78_000]);
    }

    #[test]
    fn what_was_added_up_apart_and_looks_the_same_is_one_sample() {
        let mut run = run();
        let (mut again, sum) = run.aggregates.switch_sums[0];
        again.image = 0;
        again.user_state = UserStack::Failed as u32;
        run.aggregates.switch_sums.push((again, sum));
        let profile = decoded(&run);
        assert_eq!(profile.samples.len(), decoded(&self::run()).samples.len());
        assert_eq!(profile.sums(&[("task", "sender")]), [82, 151_000]);
    }

    #[test]
    fn the_same_run_makes_the_same_bytes() {
        let bytes = || {
            let labels = Labels {
                subject: String::new(),
                lost: None,
            };
            render(&info(Mode::Task), &run(), &labels).expect("the profile renders")
        };
        assert!(bytes() == bytes());
    }
}
