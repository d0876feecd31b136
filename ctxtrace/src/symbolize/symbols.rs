//! Looks addresses up.
//!
//! Kernel addresses are looked up in `/proc/kallsyms`; user addresses go through the mappings kept in the capture to a file
//! and an offset in it, and from there through the file's symbols and DWARF (blazesym), inlined functions included. The
//! process may be long gone.
//!
//! Two things are cut off the inner end of kernel stacks: the frames of our own BPF program and of the tracepoint that
//! called it, all of them further in than the function that raises it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{Input, Reason, Symbolized, Symbolizer};
use ctxtrace_common::process::Image;

use super::{goroutine, reason};
use crate::target::mappings::Mappings;
use crate::trace::Aggregates;
use crate::trace::samples::Samples;
use crate::trace::symbols::{Frame, FrameKind, Symbols};

/// The kernel's functions that raise the tracepoints: what lies further in is our own.
const TRACED_FUNCTIONS: [&str; 3] = ["__schedule", "try_to_wake_up", "wake_up_new_task"];

/// Resolves every stack of a run, and the functions that goroutines were started with.
#[must_use]
pub fn resolve(aggregates: &Aggregates, samples: &Samples) -> Symbols {
    let mut resolver = Resolver::new(&aggregates.mappings);
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
    for (image, user, kernel) in switches.chain(wakers).chain(sampled) {
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
    for (task, startpc) in goroutine::starts(aggregates) {
        let frames = resolver.user_stack(task.image, &[startpc]);
        if let Some(function) = frames.first().filter(|frame| frame.kind == FrameKind::User) {
            symbols.add_start(task, goroutine::plain_name(&function.name));
        }
    }
    symbols
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

    /// Outermost first.
    fn user_stack(&mut self, image: Image, addresses: &[u64]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for address in call_addresses(addresses).rev() {
            match self.mappings.find(image, address) {
                Some(mapping) => {
                    let offset = address - mapping.start + mapping.file_offset;
                    let file = self.mappings.file(image.tgid, &mapping.path);
                    frames.extend(self.in_file(&file, offset).iter().cloned());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_looked_up_where_they_call() {
        assert_eq!(call_addresses(&[100, 200, 300]).collect::<Vec<_>>(), [100, 199, 299]);
        assert_eq!(call_addresses(&[]).count(), 0);
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
