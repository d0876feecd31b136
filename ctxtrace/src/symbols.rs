//! Looks up addresses.
//!
//! Kernel addresses are looked up in `/proc/kallsyms`. User addresses are resolved through the mappings in the capture to a file
//! and an offset in it, and then through the file's symbols and DWARF, inlined functions included. [`crate::reader`] reads the
//! files in a separate process, each file once for all addresses in it. The traced process may have ended long before.
//!
//! The inner ends of kernel stacks are cut off: the frames of ctxtrace's own BPF program and of the tracepoint that called it.
//! All of these are further in than the kernel function that raises the tracepoint.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Kernel, Source};
use blazesym::symbolize::{Input, Symbolizer};
use ctxtrace_common::process::Image;

use crate::reader::{FileReader, Places, ReadFailure, symbolized_frames};
use crate::tracee::held::HeldFiles;
use ctxtrace_analysis::symbolize::goroutine;
use ctxtrace_format::Aggregates;
use ctxtrace_format::mappings::{FileIdentity, Mapping, Mappings};
use ctxtrace_format::samples::Samples;
use ctxtrace_format::symbols::{Frame, FrameKind, Symbols};

/// The kernel functions that raise the tracepoints. Frames further in belong to ctxtrace.
const TRACED_FUNCTIONS: [&str; 3] = ["__schedule", "try_to_wake_up", "wake_up_new_task"];

/// Maximum time to look up the names of all files together.
const NAMES_TIME: Duration = Duration::from_secs(60);

/// Resolves every stack of a run, and the functions that goroutines were started with. Names are looked up in the held files, until
/// `interrupt` is readable. Frames without a name then have the reason.
#[must_use]
pub fn resolve(
    aggregates: &Aggregates,
    samples: &Samples,
    held: &HeldFiles,
    interrupt: Option<BorrowedFd<'_>>,
) -> Symbols {
    let mut resolver = Resolver::new(&aggregates.mappings, held);
    let mut symbols = Symbols::default();
    let switches = aggregates.switch_sums.iter().map(|(key, _)| {
        let image = Image {
            tgid: key.tgid,
            number: key.image,
        };
        (image, key.user_stack, key.kernel_stack)
    });
    let wakers = aggregates
        .waker_sums
        .iter()
        .map(|(key, _)| (key.from.program(), key.from.user_stack, key.from.kernel_stack));
    let sampled = samples
        .places()
        .iter()
        .map(|place| (place.image, place.user_stack, place.kernel_stack));
    let stacks: Vec<(Image, u64, u64)> = switches.chain(wakers).chain(sampled).collect();
    let starts = goroutine::starts(aggregates);
    let in_stacks = stacks.iter().filter_map(|&(image, user, _)| {
        let addresses = aggregates.stacks.get(&user)?;
        Some(call_addresses(addresses).map(move |address| (image, address)))
    });
    let in_starts = starts.iter().map(|(task, &startpc)| (task.image, startpc));
    resolver.look_up_files(in_stacks.flatten(), in_starts, interrupt);
    for (image, user, kernel) in stacks {
        if let Some(addresses) = aggregates.stacks.get(&user)
            && !symbols.has_user(image, user)
        {
            symbols.add_user(image, user, &resolver.user_stack(image, addresses));
        }
        if let Some(addresses) = aggregates.stacks.get(&kernel)
            && !symbols.has_kernel(kernel)
        {
            symbols.add_kernel(kernel, &resolver.kernel_stack(addresses));
        }
    }
    for (task, startpc) in starts {
        if let Some(function) = resolver.start(task.image, startpc) {
            symbols.add_start(task, goroutine::plain_name(&function.name));
        }
    }
    symbols
}

struct Resolver<'a> {
    symbolizer: Symbolizer,
    mappings: &'a Mappings,
    held: &'a HeldFiles,
    kernel: HashMap<u64, Vec<Frame>>,
    /// The functions that were looked up, by file and offset.
    files: HashMap<FileIdentity, HashMap<u64, Vec<Frame>>>,
    /// The functions that goroutines were started with, by file and offset.
    starts: HashMap<FileIdentity, HashMap<u64, Vec<Frame>>>,
}

impl<'a> Resolver<'a> {
    fn new(mappings: &'a Mappings, held: &'a HeldFiles) -> Self {
        Self {
            symbolizer: Symbolizer::new(),
            mappings,
            held,
            kernel: HashMap::new(),
            files: HashMap::new(),
            starts: HashMap::new(),
        }
    }

    /// The frames of a user stack, outermost first.
    fn user_stack(&mut self, image: Image, addresses: &[u64]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for address in call_addresses(addresses).rev() {
            match self.mappings.find(image, address) {
                Ok(mapping) => match self.looked_up(mapping, address) {
                    Some(functions) => frames.extend_from_slice(functions),
                    None => frames.push(in_no_file(mapping)),
                },
                Err(why) => frames.push(Frame::reason(why.in_words())),
            }
        }
        frames
    }

    /// The frames of a kernel stack, outermost first.
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
            .position(|frames| frames.iter().any(|frame| TRACED_FUNCTIONS.contains(&&*frame.name)))
            .unwrap_or(0);
        innermost_first[ours..]
            .iter()
            .rev()
            .flat_map(|frames| frames.iter().cloned())
            .collect()
    }

    /// Names the functions at all these addresses, and those that goroutines were started with. Files are read one by one, the
    /// one with the most addresses first.
    fn look_up_files(
        &mut self,
        code: impl Iterator<Item = (Image, u64)>,
        starts: impl Iterator<Item = (Image, u64)>,
        interrupt: Option<BorrowedFd<'_>>,
    ) {
        let mut files: HashMap<FileIdentity, (&Mapping, [BTreeSet<u64>; 2])> = HashMap::new();
        let code = code.map(|place| (0, place));
        for (kind, (image, address)) in code.chain(starts.map(|place| (1, place))) {
            if let Ok(mapping) = self.mappings.find(image, address)
                && let Some(identity) = mapping.file
            {
                let (_, offsets) = files.entry(identity).or_insert_with(|| (mapping, Default::default()));
                offsets[kind].insert(mapping.offset_of(address));
            }
        }
        let mut files: Vec<(FileIdentity, &Mapping, Places)> = files
            .into_iter()
            .map(|(identity, (mapping, offsets))| {
                let [code, starts] = offsets.map(|offsets| offsets.into_iter().collect());
                (identity, mapping, Places { code, starts })
            })
            .collect();
        files.sort_by_key(|(identity, _, places)| (std::cmp::Reverse(places.len()), *identity));
        let mut reader = FileReader::new();
        let until = Instant::now() + NAMES_TIME;
        let mut stopped: Option<ReadFailure> = None;
        for (identity, mapping, places) in files {
            if Instant::now() >= until {
                stopped.get_or_insert(ReadFailure::NoTimeLeft(NAMES_TIME));
            }
            let shown = mapping.file_name();
            let all_unknown = |why: &str| vec![vec![Frame::reason(&format!("unknown: {why}"))]; places.len()];
            let functions = match (&stopped, self.held.of_mapping(mapping)) {
                (Some(failure), _) => all_unknown(&failure.in_words(&shown)),
                (None, Err(why)) => all_unknown(&format!("{shown} {}", why.in_words())),
                (None, Ok(held)) => {
                    let (functions, failure) =
                        reader.functions(held.file(), held.shown_path(), &places, until, interrupt);
                    stopped = failure.filter(|failure| *failure == ReadFailure::Interrupted);
                    functions
                }
            };
            let mut functions = functions.into_iter();
            let in_code = places.code.into_iter().zip(functions.by_ref()).collect();
            self.files.insert(identity, in_code);
            self.starts
                .insert(identity, places.starts.into_iter().zip(functions).collect());
        }
    }

    /// The function that a goroutine was started with, if it has a name.
    fn start(&self, image: Image, startpc: u64) -> Option<&Frame> {
        let mapping = self.mappings.find(image, startpc).ok()?;
        let frames = self.starts.get(&mapping.file?)?.get(&mapping.offset_of(startpc))?;
        frames.first().filter(|frame| frame.kind == FrameKind::User)
    }

    /// The functions at an address of a mapping, outermost first; `None` if the mapping is not backed by a file.
    fn looked_up(&self, mapping: &Mapping, address: u64) -> Option<&[Frame]> {
        let of_file = self.files.get(&mapping.file?)?;
        of_file.get(&mapping.offset_of(address)).map(Vec::as_slice)
    }
}

/// The frame for code in a mapping without a file.
fn in_no_file(mapping: &Mapping) -> Frame {
    if mapping.path.as_os_str().as_encoded_bytes().starts_with(b"[") {
        // `[vdso]` and similar mappings: pages of the kernel, which are not in any file.
        return Frame {
            kind: FrameKind::User,
            name: mapping.file_name().into(),
        };
    }
    Frame::reason("unknown: code that is in no file (generated at run time)")
}

/// The addresses of a stack as they are looked up, innermost first. All but the innermost are return addresses. They point behind
/// the call, possibly into another line or function, so the byte before them is looked up.
fn call_addresses(addresses: &[u64]) -> impl DoubleEndedIterator<Item = u64> {
    let (innermost, callers) = addresses.split_at(addresses.len().min(1));
    let calls = callers.iter().map(|address| address.saturating_sub(1));
    innermost.iter().copied().chain(calls)
}

fn kernel_function(symbolizer: &Symbolizer, address: u64) -> Vec<Frame> {
    let source = Source::Kernel(Kernel {
        // Use only the running kernel's own table. A debug image found by a search may belong to another build.
        vmlinux: MaybeDefault::None,
        ..Kernel::default()
    });
    match symbolizer.symbolize_single(&source, Input::AbsAddr(address)) {
        Ok(symbolized) => symbolized_frames(&symbolized, FrameKind::Kernel, "kernel.kptr_restrict may hide it"),
        Err(_) => vec![Frame::reason("unknown: the kernel's symbols cannot be read")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracee::mappings::FollowedMappings;
    use std::os::fd::AsFd;

    #[test]
    fn callers_are_looked_up_where_they_call() {
        assert_eq!(call_addresses(&[100, 200, 300]).collect::<Vec<_>>(), [100, 199, 299]);
        assert_eq!(call_addresses(&[]).count(), 0);
    }

    /// Looks up this test function in its own executable, as a report would.
    #[test]
    fn a_function_of_this_program_is_named() {
        let address = a_function_of_this_program_is_named as *const () as u64;
        let (mappings, image) = this_process();
        let mapping = mappings.recorded().find(image, address).expect("the address is mapped");
        assert_eq!(
            mapping.path,
            std::env::current_exe().expect("the executable has a path")
        );
        let frames = frames_at(&mappings, image, address, None);
        assert!(
            frames[0].name.contains("a_function_of_this_program_is_named"),
            "{frames:?}"
        );
    }

    #[test]
    fn an_interrupted_lookup_has_a_reason() {
        let (mappings, image) = this_process();
        let address = an_interrupted_lookup_has_a_reason as *const () as u64;
        let (interrupt, mut signal) = std::io::pipe().expect("the pipe is created");
        std::io::Write::write_all(&mut signal, b"!").expect("the pipe is written");
        let frames = frames_at(&mappings, image, address, Some(interrupt.as_fd()));
        assert_eq!(frames[0].kind, FrameKind::Reason);
        assert!(frames[0].name.contains("a signal ended the look-up"), "{frames:?}");
    }

    #[test]
    fn a_file_that_is_not_held_has_no_names_but_the_reason() {
        let (mut mappings, mut image) = this_process();
        image.number = 1;
        let gone = FileIdentity {
            major: 0,
            minor: 1,
            inode: 2,
            generation: Some(3),
        };
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0,
            path: "/bin/sh".into(),
            file: Some(gone),
        };
        mappings.add(image, [mapping]);
        assert_eq!(
            frames_at(&mappings, image, 0x1000, None),
            [Frame::reason("unknown: sh could not be opened while it ran")]
        );
    }

    fn this_process() -> (FollowedMappings, Image) {
        let image = Image {
            tgid: std::process::id(),
            number: 0,
        };
        (FollowedMappings::of_process(image.tgid), image)
    }

    fn frames_at(
        mappings: &FollowedMappings,
        image: Image,
        address: u64,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Vec<Frame> {
        let mut resolver = Resolver::new(mappings.recorded(), mappings.held());
        resolver.look_up_files(std::iter::once((image, address)), std::iter::empty(), interrupt);
        resolver.user_stack(image, &[address])
    }
}
