//! Fuzzes `paravane_fuzz::hypercalls::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::hypercalls::check(data));
