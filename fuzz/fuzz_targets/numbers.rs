//! Fuzzes `paravane_fuzz::numbers::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::numbers::check(data));
