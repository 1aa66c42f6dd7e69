//! Fuzzes `paravane_fuzz::commands::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::commands::check(data));
