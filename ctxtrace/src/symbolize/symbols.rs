//! Looks addresses up.
//!
//! Kernel addresses are looked up in `/proc/kallsyms`; user addresses go through the mappings kept in the capture to a file
//! and an offset in it, and from there through the file's symbols and DWARF (blazesym), inlined functions included. The
//! process may be long gone.
//!
//! Two things are cut off the inner end of kernel stacks: the frames of our own BPF program and of the tracepoint that
//! called it, all of them further in than the function that raises it.

use std::collections::HashMap;
use std::path::PathBuf;

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{Input, Reason, Symbolized, Symbolizer};
use ctxtrace_common::process::Image;

use super::{goroutine, reason};
use crate::target::held::FileIdentity;
use crate::target::mappings::{Mapping, Mappings};
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
    let wakers = aggregates.waker_sums.iter().map(|(key, _)| {
        let image = Image {
            tgid: key.from.tgid,
            number: key.from.image,
        };
        (image, key.from.user_stack, key.from.kernel_stack)
    });
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
    files: HashMap<Place, Vec<Frame>>,
}

/// Where code lies.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    /// At this offset of a file.
    InFile(FileIdentity, u64),
    /// In what the kernel shows in place of a file.
    InNoFile(PathBuf),
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
                Ok(mapping) => frames.extend(self.in_file(mapping, address).iter().cloned()),
                Err(why) => frames.push(reason(why.in_words())),
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

    fn in_file(&mut self, mapping: &Mapping, address: u64) -> &[Frame] {
        let (symbolizer, mappings) = (&self.symbolizer, self.mappings);
        let offset = mapping.offset_of(address);
        let key = match mapping.file {
            Some(file) => Place::InFile(file, offset),
            None => Place::InNoFile(mapping.path.clone()),
        };
        self.files
            .entry(key)
            .or_insert_with(|| file_function(symbolizer, mappings, mapping, offset))
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

fn file_function(symbolizer: &Symbolizer, mappings: &Mappings, mapping: &Mapping, offset: u64) -> Vec<Frame> {
    let shown = mapping.file_name();
    if mapping.file.is_none() {
        let is_kernels = mapping.path.as_os_str().as_encoded_bytes().starts_with(b"[");
        return if is_kernels {
            // [vdso] and the like: the kernel's own pages, which are in no file.
            vec![Frame {
                kind: FrameKind::User,
                name: shown,
            }]
        } else {
            vec![reason("unknown: code that is in no file (generated at run time)")]
        };
    }
    let held = match mappings.file(mapping) {
        Ok(held) => held,
        Err(why) => return vec![reason(&format!("unknown: {shown} {}", why.in_words()))],
    };
    let source = Source::Elf(Elf::new(held.path()));
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
        let (mappings, image) = this_process();
        let mapping = mappings.find(image, address).expect("mapped");
        assert_eq!(mapping.path, executable);
        let mut resolver = Resolver::new(&mappings);
        let frames = resolver.in_file(mapping, address);
        assert!(
            frames[0].name.contains("a_function_of_this_program_is_named"),
            "{frames:?}"
        );
    }

    #[test]
    fn a_file_that_is_not_held_has_no_names_but_the_reason() {
        let (mappings, _) = this_process();
        let gone = Mapping {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0,
            path: "/bin/sh".into(),
            file: Some(FileIdentity {
                major: 0,
                minor: 1,
                inode: 2,
                generation: Some(3),
            }),
        };
        let mut resolver = Resolver::new(&mappings);
        assert_eq!(
            resolver.in_file(&gone, 0x1000),
            [reason("unknown: sh could not be opened while it ran")]
        );
    }

    fn this_process() -> (Mappings, Image) {
        let image = Image {
            tgid: std::process::id(),
            number: 0,
        };
        (Mappings::of_process(image.tgid), image)
    }
}
