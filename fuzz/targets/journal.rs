//! See [`lance_fuzz::journal`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lance_fuzz::journal::run(data));
