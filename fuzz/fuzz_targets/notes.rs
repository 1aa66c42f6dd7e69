//! Fuzzes `paravane_fuzz::notes::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::notes::check(data));
