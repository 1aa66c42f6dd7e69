//! Fuzzes `paravane_fuzz::hypercall_page::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::hypercall_page::check(data));
