//! Any text as the expression of `--assert`.
#![no_main]

use ctxtrace_analysis::assertion::Assertion;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(sentence) = text.parse::<Assertion>() {
        assert!(!sentence.to_string().is_empty());
    }
});
