//! See [`lance_fuzz::peers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lance_fuzz::peers::run(data));
