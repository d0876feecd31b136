//! Addresses to names, with the reason where there is none.
//!
//! Kernel addresses are looked up in `/proc/kallsyms`; user addresses go through the mappings kept in the capture to a file
//! and an offset in it, and from there through the file's symbols and DWARF (blazesym), inlined functions included. The
//! process may be long gone.
//!
//! Two things are cut off the inner end of kernel stacks: the frames of our own BPF program and of the tracepoint that
//! called it, all of them further in than the function that raises it.

mod future;
mod goroutine;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{Input, Reason, Symbolized, Symbolizer};
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{OTHER_TASKS, Reason as Unattributed};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::{SumKey, UserStack};
use ctxtrace_common::wakeup::Origin;

use crate::analyze::attribution::class;
use crate::correlate::ledger::{Entry, entry_of};
use crate::correlate::tasks;
use crate::correlate::wakeups::Names;
use crate::target::locate;
use crate::target::mappings::Mappings;
use crate::trace::{Aggregates, name_of};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameKind {
    /// What the thread was doing: the task, or the class of the ledger. The root of all stacks.
    Doing,
    /// The thread, by name.
    Thread,
    /// A function of the program.
    User,
    /// A function inlined into the one before it.
    Inlined,
    /// A function of the kernel.
    Kernel,
    /// No function: the reason why there is none.
    Reason,
}

/// One frame of a resolved stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Its name.
    pub name: String,
}

/// Switch-outs with the same resolved stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedStack {
    /// From what the thread was doing, and its name, to the innermost kernel function.
    pub frames: Vec<Frame>,
    /// Switch-outs.
    pub count: u64,
    /// Their off-CPU time.
    pub off_cpu_ns: u64,
}

/// All stacks of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Distinct ones, in the order of their frames.
    pub stacks: Vec<ResolvedStack>,
    /// Switch-outs with a user stack.
    pub with_user_stack: u64,
    /// Of those, the ones whose user stack does not reach a thread's or program's entry: code without frame pointers.
    pub broken: u64,
}

/// The outermost functions of complete user stacks: where a program, a thread of glibc or musl, or a goroutine begins.
const ENTRY_POINTS: [&str; 13] = [
    "_start",
    "__clone",
    "clone",
    "__clone3",
    "clone3",
    "start_thread",
    "__libc_start_main",
    "__libc_start_call_main",
    "_start_c",
    "runtime.goexit",
    "runtime.goexit.abi0",
    "runtime.rt0_go",
    "runtime.rt0_go.abi0",
];

/// The kernel's functions that raise the tracepoints: what lies further in is our own.
const TRACED_FUNCTIONS: [&str; 3] = ["__schedule", "try_to_wake_up", "wake_up_new_task"];

/// Stacks with the same frames, added up.
#[derive(Default)]
struct Merged(BTreeMap<Vec<Frame>, (u64, u64)>);

impl Merged {
    fn add(&mut self, frames: Vec<Frame>, count: u64, off_cpu_ns: u64) {
        let sum = self.0.entry(frames).or_default();
        sum.0 += count;
        sum.1 += off_cpu_ns;
    }

    fn into_stacks(self) -> Vec<ResolvedStack> {
        let stacks = self.0.into_iter().map(|(frames, (count, off_cpu_ns))| ResolvedStack {
            frames,
            count,
            off_cpu_ns,
        });
        stacks.collect()
    }
}

fn image_of(key: &SumKey) -> Image {
    Image {
        tgid: key.tgid,
        number: key.image,
    }
}

/// What a thread was doing at a switch-out, as the outermost frames of its stack: `task: sender` and then `blocked` or
/// `preempted`, or the class alone.
fn doing(entry: &Entry, aggregates: &Aggregates) -> Vec<Frame> {
    let frame = |name: String| Frame {
        kind: FrameKind::Doing,
        name,
    };
    let class = class(entry.class).in_words();
    match entry.task {
        Some(task) => vec![
            frame(format!("task: {}", tasks::name(aggregates, task))),
            frame(class.trim_start_matches("task ").to_owned()),
        ],
        None if entry.class == Class::Unattributed => {
            vec![frame(class.to_owned()), reason(locate::in_words(entry.reason))]
        }
        None => vec![frame(class.to_owned())],
    }
}

/// Resolves every stack of a capture.
#[must_use]
pub fn resolve(aggregates: &Aggregates) -> Resolved {
    Resolver::new(&aggregates.mappings).resolve(aggregates)
}

/// Resolves the stacks of the makers of wakeups: under what the woken thread had been doing, who woke it, and from where.
#[must_use]
pub fn resolve_wakers(aggregates: &Aggregates) -> Resolved {
    Resolver::new(&aggregates.mappings).resolve_wakers(aggregates)
}

/// The type of each task's future, or the `async fn` it comes from, as far as stacks tell: of a task that was switched out
/// while it was polled, the function that the runtime calls to poll it. Of a goroutine: the function it was started with.
#[must_use]
pub fn task_types(aggregates: &Aggregates) -> HashMap<TaskKey, String> {
    Resolver::new(&aggregates.mappings).task_types(aggregates)
}

struct Resolver<'a> {
    symbolizer: Symbolizer,
    mappings: &'a Mappings,
    kernel: HashMap<u64, Vec<Frame>>,
    files: HashMap<(PathBuf, u64), Vec<Frame>>,
}

impl<'a> Resolver<'a> {
    fn new(mappings: &'a Mappings) -> Self {
        Self {
            symbolizer: Symbolizer::builder()
                .enable_code_info(true)
                .enable_inlined_fns(true)
                .build(),
            mappings,
            kernel: HashMap::new(),
            files: HashMap::new(),
        }
    }

    fn resolve(mut self, aggregates: &Aggregates) -> Resolved {
        let mut resolved = Resolved::default();
        let mut merged = Merged::default();
        for (key, sum) in &aggregates.switch_sums {
            let mut frames = doing(&entry_of(key, aggregates), aggregates);
            frames.push(Frame {
                kind: FrameKind::Thread,
                name: name_of(&key.comm),
            });
            let user = aggregates.stacks.get(&key.user_stack);
            match user {
                Some(user) => {
                    let user = self.user_stack(image_of(key), user);
                    resolved.with_user_stack += sum.count;
                    if !is_complete(&user) {
                        resolved.broken += sum.count;
                    }
                    frames.extend(user);
                }
                None => frames.push(reason(no_user_stack(key.user_state))),
            }
            match aggregates.stacks.get(&key.kernel_stack) {
                Some(kernel) => frames.extend(self.kernel_stack(kernel)),
                None => frames.push(reason("no kernel stack: lost")),
            }
            merged.add(frames, sum.count, sum.off_cpu_ns);
        }
        resolved.stacks = merged.into_stacks();
        resolved
    }

    fn resolve_wakers(mut self, aggregates: &Aggregates) -> Resolved {
        let names = Names::new(aggregates);
        let mut resolved = Resolved::default();
        let mut merged = Merged::default();
        for (key, sum) in &aggregates.waker_sums {
            let woken = Entry {
                class: Class::from_number(key.to_class).unwrap_or(Class::Unattributed),
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
                name: format!("woken by {}", names.of_waker(from)),
            });
            let image = Image {
                tgid: from.tgid,
                number: from.image,
            };
            if Origin::from_number(from.origin) == Origin::Task {
                let task = TaskKey { task: from.task, image };
                frames.push(Frame {
                    kind: FrameKind::Doing,
                    name: format!("task: {}", tasks::name(aggregates, task)),
                });
            }
            // A waker of another program is not followed, so where its functions lie is not known.
            if let Some(user) = aggregates.stacks.get(&from.user_stack).filter(|_| from.tgid != 0) {
                let user = self.user_stack(image, user);
                resolved.with_user_stack += sum.count;
                if !is_complete(&user) {
                    resolved.broken += sum.count;
                }
                frames.extend(user);
            }
            match aggregates.stacks.get(&from.kernel_stack) {
                Some(kernel) => frames.extend(self.kernel_stack(kernel)),
                None => frames.push(reason("no kernel stack: lost")),
            }
            merged.add(frames, sum.count, sum.off_cpu_ns);
        }
        resolved.stacks = merged.into_stacks();
        resolved
    }

    fn task_types(mut self, aggregates: &Aggregates) -> HashMap<TaskKey, String> {
        // Of a broken stack the function next to the runtime's may be any; the one met most often is the future's.
        let mut met: BTreeMap<TaskKey, BTreeMap<String, u64>> = BTreeMap::new();
        for (key, sum) in &aggregates.switch_sums {
            if key.task == 0 || key.task == OTHER_TASKS {
                continue;
            }
            let image = image_of(key);
            if let Some(addresses) = aggregates.stacks.get(&key.user_stack) {
                let frames = self.user_stack(image, addresses);
                if let Some(name) = future::type_of(frames.iter().map(|frame| frame.name.as_str())) {
                    let task = TaskKey { task: key.task, image };
                    *met.entry(task).or_default().entry(name).or_default() += sum.count;
                }
            }
        }
        let mut types: HashMap<TaskKey, String> = met
            .into_iter()
            .filter_map(|(task, names)| Some((task, names.into_iter().max_by_key(|&(_, count)| count)?.0)))
            .collect();
        for (task, startpc) in goroutine::starts(aggregates) {
            let frames = self.user_stack(task.image, &[startpc]);
            if let Some(function) = frames.first().filter(|frame| frame.kind == FrameKind::User) {
                types.insert(task, goroutine::plain_name(&function.name));
            }
        }
        types
    }

    /// Outermost first.
    fn user_stack(&mut self, image: Image, addresses: &[u64]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for address in call_addresses(addresses).rev() {
            match self.mappings.find(image, address) {
                Some(mapping) => {
                    let offset = address - mapping.start + mapping.file_offset;
                    frames.extend(self.in_file(&mapping.path, offset).iter().cloned());
                }
                None if !self.mappings.knows(image) => frames.push(reason("unknown: the process was not followed")),
                None => frames.push(reason("unknown: not in any file")),
            }
        }
        frames
    }

    /// Outermost first.
    fn kernel_stack(&mut self, addresses: &[u64]) -> Vec<Frame> {
        let calls: Vec<u64> = call_addresses(addresses).collect();
        for &address in &calls {
            if !self.kernel.contains_key(&address) {
                let frames = kernel_function(&self.symbolizer, address);
                self.kernel.insert(address, frames);
            }
        }
        let innermost_first: Vec<&[Frame]> = calls.iter().map(|address| self.kernel[address].as_slice()).collect();
        let ours = innermost_first
            .iter()
            .position(|frames| {
                frames
                    .iter()
                    .any(|frame| TRACED_FUNCTIONS.contains(&frame.name.as_str()))
            })
            .unwrap_or(0);
        innermost_first[ours..]
            .iter()
            .rev()
            .flat_map(|frames| frames.iter().cloned())
            .collect()
    }

    fn in_file(&mut self, path: &Path, offset: u64) -> &[Frame] {
        let symbolizer = &self.symbolizer;
        self.files
            .entry((path.to_owned(), offset))
            .or_insert_with(|| file_function(symbolizer, path, offset))
    }
}

/// A stack's addresses as they are looked up, innermost first. All but the innermost are return addresses, which point
/// behind the call and maybe into another line or function: the call itself lies before them.
fn call_addresses(addresses: &[u64]) -> impl DoubleEndedIterator<Item = u64> {
    let (innermost, callers) = addresses.split_at(addresses.len().min(1));
    let calls = callers.iter().map(|address| address.saturating_sub(1));
    innermost.iter().copied().chain(calls)
}

fn kernel_function(symbolizer: &Symbolizer, address: u64) -> Vec<Frame> {
    let source = Source::Kernel(Kernel {
        // Only the running kernel's own table: no search for a debug image that may be another build's.
        vmlinux: MaybeDefault::None,
        ..Kernel::default()
    });
    match symbolizer.symbolize_single(&source, Input::AbsAddr(address)) {
        Ok(symbolized) => frames_of(&symbolized, FrameKind::Kernel, "kernel.kptr_restrict hides it?"),
        Err(_) => vec![reason("unknown: the kernel's symbols cannot be read")],
    }
}

fn file_function(symbolizer: &Symbolizer, path: &Path, offset: u64) -> Vec<Frame> {
    let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    if path.as_os_str().as_encoded_bytes().starts_with(b"[") {
        // [vdso] and the like: the kernel's own pages, which are in no file.
        return vec![Frame {
            kind: FrameKind::User,
            name: shown.into_owned(),
        }];
    }
    if path.starts_with("//anon") {
        return vec![reason("unknown: code that is in no file (generated at run time)")];
    }
    let source = Source::Elf(Elf::new(path));
    match symbolizer.symbolize_single(&source, Input::FileOffset(offset)) {
        Ok(symbolized) => frames_of(&symbolized, FrameKind::User, &shown),
        Err(error) => vec![reason(&format!("unknown: {shown} cannot be read ({})", error.kind()))],
    }
}

/// The function, and what is inlined in it, outermost first.
fn frames_of(symbolized: &Symbolized<'_>, kind: FrameKind, place: &str) -> Vec<Frame> {
    match symbolized {
        Symbolized::Sym(symbol) => std::iter::once(Frame {
            kind,
            name: symbol.name.to_string(),
        })
        .chain(symbol.inlined.iter().map(|inlined| Frame {
            kind: FrameKind::Inlined,
            name: inlined.name.to_string(),
        }))
        .collect(),
        Symbolized::Unknown(why) => vec![reason(&format!("unknown: {} ({place})", in_words(*why)))],
    }
}

fn in_words(why: Reason) -> &'static str {
    match why {
        Reason::MissingSyms => "no symbols",
        Reason::UnknownAddr => "no symbol there",
        Reason::InvalidFileOffset => "not code",
        Reason::MissingComponent => "no file",
        Reason::Unmapped => "not mapped",
        _ => "not supported",
    }
}

fn reason(text: &str) -> Frame {
    Frame {
        kind: FrameKind::Reason,
        name: format!("[{text}]"),
    }
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
    user.first()
        .is_some_and(|frame| ENTRY_POINTS.contains(&frame.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::build;
    use ctxtrace_common::stack::SwitchSum;

    fn frame(kind: FrameKind, name: &str) -> Frame {
        Frame {
            kind,
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_task_is_the_root_of_its_stacks() {
        let mut aggregates = build::aggregates(vec![]);
        let image = Image { tgid: 100, number: 0 };
        aggregates.names.insert(image, vec![String::new(), "sender".to_owned()]);
        let task = |class| Entry {
            class,
            reason: Unattributed::None,
            task: Some(TaskKey { task: 1, image }),
        };
        let names = |entry| {
            doing(&entry, &aggregates)
                .into_iter()
                .map(|frame| frame.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(task(Class::TaskPreempted)), ["task: sender", "preempted"]);
        assert_eq!(names(task(Class::Yielded)), ["task: sender", "yielded"]);
        let parked = Entry {
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
    fn callers_are_looked_up_where_they_call() {
        assert_eq!(call_addresses(&[100, 200, 300]).collect::<Vec<_>>(), [100, 199, 299]);
        assert_eq!(call_addresses(&[]).count(), 0);
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
        let resolved = resolve(&aggregates);
        assert_eq!(resolved.stacks.len(), 1);
        assert_eq!((resolved.stacks[0].count, resolved.stacks[0].off_cpu_ns), (3, 70));
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
    fn an_address_outside_every_mapping_says_so() {
        let mut aggregates = build::aggregates(vec![]);
        let mut key = build::sum_key(Class::WorkerParked, 0);
        key.user_stack = 1;
        key.tgid = 42;
        aggregates.stacks.insert(1, vec![0xdead_0000]);
        aggregates.switch_sums = vec![(
            key,
            SwitchSum {
                count: 1,
                off_cpu_ns: 0,
            },
        )];
        let resolved = resolve(&aggregates);
        assert_eq!(
            resolved.stacks[0].frames[2].name,
            "[unknown: the process was not followed]"
        );
        assert_eq!((resolved.with_user_stack, resolved.broken), (1, 1));
    }

    /// This very function, found through its own executable as a report would find it.
    #[test]
    fn a_function_of_this_program_is_named() {
        let executable = std::env::current_exe().expect("a path");
        let address = a_function_of_this_program_is_named as *const () as u64;
        let mut mappings = Mappings::default();
        mappings.add_process(std::process::id());
        let image = Image {
            tgid: std::process::id(),
            number: 0,
        };
        let mapping = mappings.find(image, address).expect("mapped");
        assert_eq!(mapping.path, executable);
        let mut resolver = Resolver::new(&mappings);
        let frames = resolver.in_file(&mapping.path, address - mapping.start + mapping.file_offset);
        assert!(
            frames[0].name.contains("a_function_of_this_program_is_named"),
            "{frames:?}"
        );
    }
}
