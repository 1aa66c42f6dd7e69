//! Fuzzes `paravane_fuzz::gdt_dump::check`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::gdt_dump::check(data));
