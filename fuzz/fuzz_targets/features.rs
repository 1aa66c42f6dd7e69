//! Fuzzes `paravane_fuzz::features::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::features::check(data));
