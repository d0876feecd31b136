//! Any names of threads, tasks and functions, in folded stacks and flamegraphs.
//!
//! The input is a list of frames that are separated by zero bytes. Each consists of its kind (one byte) and its name; an empty one
//! begins another stack.
#![no_main]

use ctxtrace_analysis::symbolize::stacks::{Resolved, ResolvedStack};
use ctxtrace_format::symbols::{Frame, FrameKind};

const KINDS: [FrameKind; 6] = [
    FrameKind::Doing,
    FrameKind::Thread,
    FrameKind::User,
    FrameKind::Inlined,
    FrameKind::Kernel,
    FrameKind::Reason,
];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut stacks = vec![Vec::new()];
    for line in input.split(|&byte| byte == 0) {
        match line.split_first() {
            None => stacks.push(Vec::new()),
            Some((kind, name)) => stacks.last_mut().expect("at least one stack").push(Frame {
                kind: KINDS[usize::from(*kind) % KINDS.len()],
                name: String::from_utf8_lossy(name).into(),
            }),
        }
    }
    let stacks: Vec<ResolvedStack> = stacks
        .into_iter()
        .enumerate()
        .filter(|(_, frames)| !frames.is_empty())
        .map(|(number, frames)| ResolvedStack {
            frames,
            count: number as u64,
            ns: u64::MAX >> (number % 64),
        })
        .collect();
    ctxtrace_fuzz::pictures(&Resolved {
        stacks,
        with_user_stack: 1,
        broken: 1,
    });
});
