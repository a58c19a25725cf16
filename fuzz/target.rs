//! One target of `chainwriter::fuzzing`: that of this binary's name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    chainwriter::fuzzing::run(env!("CARGO_BIN_NAME"), bytes);
});
