//! A real capture that is taken apart, altered in its records, and put together again with valid checksums. It tests the code
//! behind the decoder.
//!
//! The first byte of the input chooses the capture, and the rest chooses the alterations.
#![no_main]

use std::sync::LazyLock;

#[path = "../../ctxtrace/tests/hostile/mod.rs"]
#[expect(dead_code, reason = "the tests alter captures in other ways too")]
mod hostile;

use hostile::{Choices, Parts};

static CAPTURES: LazyLock<[Parts; 4]> = LazyLock::new(|| {
    [
        &include_bytes!("../../ctxtrace/tests/captures/v1-go.ctx")[..],
        &include_bytes!("../../ctxtrace/tests/captures/v1-polls.ctx")[..],
        &include_bytes!("../../ctxtrace/tests/captures/v1-stacks.ctx")[..],
        &include_bytes!("../../ctxtrace/tests/captures/v1-timeline.ctx")[..],
    ]
    .map(Parts::read)
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else { return };
    let mut parts = CAPTURES[usize::from(which) % CAPTURES.len()].clone();
    parts.mutate(&mut Choices(rest));
    ctxtrace_fuzz::report(&parts.written());
});
