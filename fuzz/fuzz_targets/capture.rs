//! A file of any bytes as a capture.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ctxtrace_fuzz::report(bytes));
