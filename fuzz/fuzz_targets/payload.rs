//! Fuzzes `paravane_fuzz::payload::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::payload::check(data));
