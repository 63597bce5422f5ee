//! See [`lance_fuzz::states`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lance_fuzz::states::run(data));
