//! See [`lance_fuzz::batches`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lance_fuzz::batches::run(data));
