//! Addresses to names, with the reason where there is none.
//!
//! Kernel addresses are looked up in `/proc/kallsyms`; user addresses go through the mappings kept in the capture to a file
//! and an offset in it, and from there through the file's symbols and DWARF (blazesym), inlined functions included. The
//! process may be long gone.
//!
//! Two things are cut off the inner end of kernel stacks: the frames of our own BPF program and of the tracepoint that
//! called it, all of them further in than `__schedule`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{Input, Reason, Symbolized, Symbolizer};
use ctxtrace_common::stack::{StackKey, UserStack};

use crate::correlate::reconcile::name_of;
use crate::target::mappings::{Image, Mappings};
use crate::trace::Aggregates;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameKind {
    /// The thread, by name: the root of its stacks.
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
    /// From the thread's name to the innermost kernel function.
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

/// The outermost functions of complete user stacks: where a program, or a thread of glibc or musl, begins.
const ENTRY_POINTS: [&str; 9] = [
    "_start",
    "__clone",
    "clone",
    "__clone3",
    "clone3",
    "start_thread",
    "__libc_start_main",
    "__libc_start_call_main",
    "_start_c",
];

/// Resolves every stack of a capture.
#[must_use]
pub fn resolve(aggregates: &Aggregates) -> Resolved {
    Resolver::new(&aggregates.mappings).resolve(aggregates)
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
        let mut merged: BTreeMap<Vec<Frame>, (u64, u64)> = BTreeMap::new();
        for (key, sum) in &aggregates.stack_sums {
            let mut frames = vec![Frame {
                kind: FrameKind::Thread,
                name: name_of(&key.comm),
            }];
            let user = aggregates.stacks.get(&key.user_stack);
            match user {
                Some(user) => {
                    let user = self.user_stack(key, user);
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
            let entry = merged.entry(frames).or_default();
            entry.0 += sum.count;
            entry.1 += sum.off_cpu_ns;
        }
        resolved.stacks = merged
            .into_iter()
            .map(|(frames, (count, off_cpu_ns))| ResolvedStack {
                frames,
                count,
                off_cpu_ns,
            })
            .collect();
        resolved
    }

    /// Outermost first.
    fn user_stack(&mut self, key: &StackKey, addresses: &[u64]) -> Vec<Frame> {
        let image = Image {
            tgid: key.tgid,
            number: key.image,
        };
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
            .position(|frames| frames.iter().any(|frame| frame.name == "__schedule"))
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
    use ctxtrace_common::stack::StackSum;

    fn frame(kind: FrameKind, name: &str) -> Frame {
        Frame {
            kind,
            name: name.to_owned(),
        }
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
        let mut key = StackKey::EMPTY;
        key.comm[..4].copy_from_slice(b"main");
        key.user_state = UserStack::Exiting as u32;
        aggregates.stack_sums = vec![(
            key,
            StackSum {
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
        let mut key = StackKey::EMPTY;
        key.user_stack = 1;
        key.tgid = 42;
        aggregates.stacks.insert(1, vec![0xdead_0000]);
        aggregates.stack_sums = vec![(
            key,
            StackSum {
                count: 1,
                off_cpu_ns: 0,
            },
        )];
        let resolved = resolve(&aggregates);
        assert_eq!(
            resolved.stacks[0].frames[1].name,
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
