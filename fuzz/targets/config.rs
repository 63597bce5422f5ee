//! See [`lance_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lance_fuzz::config::run(data));
