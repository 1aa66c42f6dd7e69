//! Fuzzes `paravane_fuzz::descriptors::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::descriptors::check(data));
