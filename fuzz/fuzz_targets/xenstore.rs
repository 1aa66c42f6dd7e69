//! Fuzzes `paravane_fuzz::xenstore::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::xenstore::check(data));
