//! Fuzzes `paravane_fuzz::page_tables::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::page_tables::check(data));
