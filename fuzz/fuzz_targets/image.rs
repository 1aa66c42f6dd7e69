//! Fuzzes `paravane_fuzz::image::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::image::check(data));
