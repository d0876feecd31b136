//! The stacks of a run by their names, below frames that say what the threads were doing. Pure functions: the names come from
//! [`Symbols`].

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::{BTreeMap, HashMap};

use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{OTHER_TASKS, Reason as Unattributed};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::{SumKey, UserStack};
use ctxtrace_common::wakeup::WakeupOrigin;

use super::{ENTRY_POINTS, future};
use crate::correlate::ledger::{LedgerEntry, entry_of};
use crate::correlate::tasks;
use crate::correlate::wakeups::ThreadNames;
use ctxtrace_format::executable::reason_in_words;
use ctxtrace_format::run::Run;
use ctxtrace_format::samples::SamplePlace;
use ctxtrace_format::symbols::{Frame, FrameKind, Symbols};
use ctxtrace_format::{Aggregates, name_of};

/// Switch-outs, wakeups or samples with the same resolved stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedStack {
    /// The frames, from what the thread was doing and its name to the innermost kernel function.
    pub frames: Vec<Frame>,
    /// Number of switch-outs, wakeups or samples.
    pub count: u64,
    /// Their total time in nanoseconds: off-CPU time, or for samples the time on a CPU that they represent.
    pub ns: u64,
}

/// All stacks of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The distinct stacks, ordered by their frames.
    pub stacks: Vec<ResolvedStack>,
    /// Number of switch-outs, wakeups or samples that have a user stack.
    pub with_user_stack: u64,
    /// Number of these whose user stack does not reach the entry of a thread or program, because of code without frame pointers.
    pub broken: u64,
}

/// Sums of stacks by their frames.
#[derive(Default)]
struct Merged(BTreeMap<Vec<Frame>, (u64, u64)>);

impl Merged {
    fn add(&mut self, frames: Vec<Frame>, count: u64, ns: u64) {
        let sum = self.0.entry(frames).or_default();
        add(&mut sum.0, count);
        add(&mut sum.1, ns);
    }

    fn into_stacks(self) -> Vec<ResolvedStack> {
        let stacks = self
            .0
            .into_iter()
            .map(|(frames, (count, ns))| ResolvedStack { frames, count, ns });
        stacks.collect()
    }
}

pub(super) fn image_of(key: &SumKey) -> Image {
    Image {
        tgid: key.tgid,
        number: key.image,
    }
}

/// What a thread was doing at a switch-out, as the outermost frames of its stack: `task: sender` followed by `blocked` or
/// `preempted`, or the class alone.
fn doing(entry: &LedgerEntry, aggregates: &Aggregates) -> Vec<Frame> {
    let frame = |name: String| Frame {
        kind: FrameKind::Doing,
        name: name.into(),
    };
    let class = entry.class.in_words();
    match entry.task {
        Some(task) => vec![
            frame(format!("task: {}", tasks::name(aggregates, task))),
            frame(class.trim_start_matches("task ").to_owned()),
        ],
        None if entry.class == Class::Unattributed => {
            vec![frame(class.to_owned()), Frame::reason(reason_in_words(entry.reason))]
        }
        None => vec![frame(class.to_owned())],
    }
}

/// A user stack with its names. If the capture ended before names were looked up, the frames are files and offsets.
fn user_stack(run: &Run, image: Image, key: u64) -> Option<Vec<Frame>> {
    let addresses = run.aggregates.stacks.get(&key)?;
    Some(run.symbols.user(image, key).unwrap_or_else(|| {
        let place = |&address: &u64| match run.aggregates.mappings.find(image, address) {
            Ok(mapping) => Frame {
                kind: FrameKind::User,
                name: mapping.place(address).into(),
            },
            Err(why) => Frame::reason(why.in_words()),
        };
        addresses.iter().rev().map(place).collect()
    }))
}

fn kernel_stack(run: &Run, key: u64) -> Vec<Frame> {
    match run.symbols.kernel(key) {
        Some(frames) => frames,
        None if run.aggregates.stacks.contains_key(&key) => {
            vec![Frame::reason("the capture ended before names were looked up")]
        }
        None => vec![Frame::reason("no kernel stack: lost")],
    }
}

impl Resolved {
    /// Counts a user stack, and whether it is incomplete.
    fn with_user(&mut self, user: Vec<Frame>, count: u64) -> Vec<Frame> {
        add(&mut self.with_user_stack, count);
        if !is_complete(&user) {
            add(&mut self.broken, count);
        }
        user
    }
}

/// The stacks of a run's switch-outs.
#[must_use]
pub fn switches(run: &Run) -> Resolved {
    let aggregates = &run.aggregates;
    let mut resolved = Resolved::default();
    let mut merged = Merged::default();
    for (key, sum) in &aggregates.switch_sums {
        let mut frames = doing(&entry_of(key, aggregates), aggregates);
        frames.push(Frame {
            kind: FrameKind::Thread,
            name: name_of(&key.comm).into(),
        });
        match user_stack(run, image_of(key), key.user_stack) {
            Some(user) => frames.extend(resolved.with_user(user, sum.count)),
            None => frames.push(Frame::reason(no_user_stack(key.user_state))),
        }
        frames.extend(kernel_stack(run, key.kernel_stack));
        merged.add(frames, sum.count, sum.off_cpu_ns);
    }
    resolved.stacks = merged.into_stacks();
    resolved
}

/// The stacks of a run's samples. `places` has the number of samples of each place; all samples together represent `on_cpu_ns`.
#[must_use]
pub fn samples(run: &Run, places: &BTreeMap<SamplePlace, u64>, on_cpu_ns: u64) -> Resolved {
    let mut resolved = Resolved::default();
    let mut merged = Merged::default();
    let total: u64 = places.values().saturating_sum();
    for (place, &count) in places {
        let frames = sampled(run, place);
        if place.user_stack != 0 {
            add(&mut resolved.with_user_stack, count);
            add(&mut resolved.broken, if is_complete(&frames) { 0 } else { count });
        }
        let ns = u128::from(on_cpu_ns) * u128::from(count) / u128::from(total.max(1));
        merged.add(frames, count, ns as u64);
    }
    resolved.stacks = merged.into_stacks();
    resolved
}

/// The stack of a switch-out, outermost frame first.
#[must_use]
pub fn switched(run: &Run, key: &SumKey) -> Vec<Frame> {
    let mut frames = user_stack(run, image_of(key), key.user_stack)
        .unwrap_or_else(|| vec![Frame::reason(no_user_stack(key.user_state))]);
    frames.extend(kernel_stack(run, key.kernel_stack));
    frames
}

/// The stack of a sample, outermost frame first.
#[must_use]
pub fn sampled(run: &Run, place: &SamplePlace) -> Vec<Frame> {
    let mut frames =
        user_stack(run, place.image, place.user_stack).unwrap_or_else(|| vec![Frame::reason("no user stack")]);
    if place.in_kernel {
        frames.extend(kernel_stack(run, place.kernel_stack));
    }
    frames
}

/// The stacks of wakers. The outermost frames say what the woken thread had been doing, what woke it and in which task.
#[must_use]
pub fn wakers(run: &Run) -> Resolved {
    let aggregates = &run.aggregates;
    let names = ThreadNames::new(aggregates);
    let mut resolved = Resolved::default();
    let mut merged = Merged::default();
    for (key, sum) in &aggregates.waker_sums {
        let woken = LedgerEntry {
            class: Class::from_number(key.to_class.into()).unwrap_or(Class::Unattributed),
            reason: Unattributed::None,
            task: (key.to_task != 0).then_some(TaskKey {
                task: key.to_task,
                image: Image {
                    tgid: key.to_tgid,
                    number: key.to_image,
                },
            }),
        };
        let mut frames = doing(&woken, aggregates);
        let from = &key.from;
        frames.push(Frame {
            kind: FrameKind::Thread,
            name: format!("woken by {}", names.of_waker(from)).into(),
        });
        let image = from.program();
        if WakeupOrigin::from_number(from.origin) == WakeupOrigin::Task {
            let task = TaskKey {
                task: from.task(),
                image,
            };
            frames.push(Frame {
                kind: FrameKind::Doing,
                name: format!("task: {}", tasks::name(aggregates, task)).into(),
            });
        }
        // A waker in another program is not followed, so its mappings, and therefore its functions, are not known.
        if from.is_of_target()
            && let Some(user) = user_stack(run, image, from.user_stack)
        {
            frames.extend(resolved.with_user(user, sum.count));
        }
        frames.extend(kernel_stack(run, from.kernel_stack));
        merged.add(frames, sum.count, sum.off_cpu_ns);
    }
    resolved.stacks = merged.into_stacks();
    resolved
}

/// The type of each task's future, or the `async fn` it comes from, if stacks show it: for a task that was switched out while it
/// was polled, the function that the runtime calls to poll it. For a goroutine: the function it was started with.
#[must_use]
pub fn task_types(aggregates: &Aggregates, symbols: &Symbols) -> HashMap<TaskKey, String> {
    // In a broken stack any function may be next to the runtime's. The function found most often is taken for the future's.
    let mut met: BTreeMap<TaskKey, BTreeMap<String, u64>> = BTreeMap::new();
    for (key, sum) in &aggregates.switch_sums {
        if key.task == 0 || key.task == OTHER_TASKS {
            continue;
        }
        let image = image_of(key);
        if let Some(frames) = symbols.user(image, key.user_stack)
            && let Some(name) = future::type_of(frames.iter().map(|frame| &*frame.name))
        {
            let task = TaskKey { task: key.task, image };
            add(met.entry(task).or_default().entry(name).or_default(), sum.count);
        }
    }
    let types = met
        .into_iter()
        .filter_map(|(task, names)| Some((task, names.into_iter().max_by_key(|&(_, count)| count)?.0)));
    let started = symbols.starts().map(|(task, function)| (task, function.to_owned()));
    types.chain(started).collect()
}

fn no_user_stack(state: u32) -> &'static str {
    const EXITING: u32 = UserStack::Exiting as u32;
    const TABLE_FULL: u32 = UserStack::TableFull as u32;
    match state {
        EXITING => "no user stack: the thread is exiting",
        TABLE_FULL => "no user stack: the stack table was full",
        _ => "no user stack: it could not be read",
    }
}

fn is_complete(user: &[Frame]) -> bool {
    user.first().is_some_and(|frame| ENTRY_POINTS.contains(&&*frame.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_common::stack::SwitchSum;
    use ctxtrace_format::build;
    use ctxtrace_format::mappings::Mapping;

    fn frame(kind: FrameKind, name: &str) -> Frame {
        Frame {
            kind,
            name: name.into(),
        }
    }

    fn resolve(aggregates: Aggregates) -> Resolved {
        switches(&build::run(aggregates))
    }

    #[test]
    fn a_task_is_the_root_of_its_stacks() {
        let mut aggregates = build::aggregates(vec![]);
        let image = Image { tgid: 100, number: 0 };
        aggregates.names.insert(image, vec![String::new(), "sender".to_owned()]);
        let task = |class| LedgerEntry {
            class,
            reason: Unattributed::None,
            task: Some(TaskKey { task: 1, image }),
        };
        let names = |entry| {
            doing(&entry, &aggregates)
                .into_iter()
                .map(|frame| frame.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(task(Class::TaskPreempted)), ["task: sender", "preempted"]);
        assert_eq!(names(task(Class::Yielded)), ["task: sender", "yielded"]);
        let parked = LedgerEntry {
            task: None,
            ..task(Class::WorkerParked)
        };
        assert_eq!(names(parked), ["worker parked"]);
    }

    #[test]
    fn a_stack_is_complete_if_it_begins_where_threads_begin() {
        assert!(is_complete(&[
            frame(FrameKind::User, "clone3"),
            frame(FrameKind::User, "poll")
        ]));
        assert!(!is_complete(&[frame(FrameKind::User, "poll")]));
        assert!(!is_complete(&[]));
    }

    #[test]
    fn what_has_no_name_says_why() {
        let mut aggregates = build::aggregates(vec![]);
        let mut key = build::sum_key(Class::WorkerParked, 0);
        key.comm[..4].copy_from_slice(b"main");
        key.user_state = UserStack::Exiting as u32;
        aggregates.switch_sums = vec![(
            key,
            SwitchSum {
                count: 3,
                off_cpu_ns: 70,
            },
        )];
        let resolved = resolve(aggregates);
        assert_eq!(resolved.stacks.len(), 1);
        assert_eq!((resolved.stacks[0].count, resolved.stacks[0].ns), (3, 70));
        assert_eq!(
            resolved.stacks[0].frames,
            [
                frame(FrameKind::Doing, "worker parked"),
                frame(FrameKind::Thread, "main"),
                frame(FrameKind::Reason, "[no user stack: the thread is exiting]"),
                frame(FrameKind::Reason, "[no kernel stack: lost]"),
            ]
        );
        assert_eq!((resolved.with_user_stack, resolved.broken), (0, 0));
    }

    #[test]
    fn unmapped_addresses_have_reasons() {
        let mut aggregates = build::aggregates(vec![]);
        let mut key = build::sum_key(Class::WorkerParked, 0);
        key.user_stack = 1;
        key.tgid = 42;
        aggregates.stacks.insert(1, [0xdead_0000].into());
        aggregates.switch_sums = vec![(
            key,
            SwitchSum {
                count: 1,
                off_cpu_ns: 0,
            },
        )];
        let resolved = resolve(aggregates);
        assert_eq!(
            &*resolved.stacks[0].frames[2].name,
            "[unknown: the process was not followed]"
        );
        assert_eq!((resolved.with_user_stack, resolved.broken), (1, 1));
    }

    #[test]
    fn a_stack_that_was_never_looked_up_is_shown_by_file_and_offset() {
        let mut aggregates = build::aggregates(vec![]);
        let mut key = build::sum_key(Class::ThreadBlocked, 0);
        (key.user_stack, key.kernel_stack) = (1, 2);
        aggregates.stacks.insert(1, [0x1010, 0x1234].into());
        aggregates.stacks.insert(2, [0xffff_ffff_8000_0000].into());
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0x500,
            path: "/usr/bin/server".into(),
            file: None,
        };
        aggregates.mappings.add(image_of(&key), &mapping);
        aggregates.switch_sums = vec![(
            key,
            SwitchSum {
                count: 1,
                off_cpu_ns: 5,
            },
        )];
        let resolved = switches(&build::run(aggregates));
        let names: Vec<_> = resolved.stacks[0].frames[2..]
            .iter()
            .map(|frame| &*frame.name)
            .collect();
        assert_eq!(
            names,
            [
                "server+0x734",
                "server+0x510",
                "[the capture ended before names were looked up]"
            ]
        );
    }
}
