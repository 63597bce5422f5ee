//! See [`lance_fuzz::segments`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lance_fuzz::segments::run(data));
