//! A file of any bytes as the executable of a target.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ctxtrace::tracee::locate::examine_bytes(bytes);
});
