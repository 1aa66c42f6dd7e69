//! Accesses across two pages: done without Rust where they can be, and always as the CPU does them.

use crate::native::compare::compare;
use crate::native::random::{Random, area, seed};
use crate::native::real::Access;
use crate::native::{CODE, Cpu, DATA, DATA_BYTES, STACK_TOP, machine};
use paravane_abi::units::PAGE_SIZE;
use paravane_engine::Engine as _;

/// Instructions on [rbx], their operand's bytes, and whether they write.
const CASES: [(&[u8], u64, bool); 14] = [
    // mov ax / eax / rax, [rbx]
    (&[0x66, 0x8b, 0x03], 2, false),
    (&[0x8b, 0x03], 4, false),
    (&[0x48, 0x8b, 0x03], 8, false),
    // mov [rbx], ax / eax / rax
    (&[0x66, 0x89, 0x03], 2, true),
    (&[0x89, 0x03], 4, true),
    (&[0x48, 0x89, 0x03], 8, true),
    // adc [rbx], rax; xchg [rbx], rax; lock xadd [rbx], r14; adc rax, [rbx]
    (&[0x48, 0x11, 0x03], 8, true),
    (&[0x48, 0x87, 0x03], 8, true),
    (&[0xf0, 0x4c, 0x0f, 0xc1, 0x33], 8, true),
    (&[0x48, 0x13, 0x03], 8, false),
    // movups xmm3, [rbx]; movups [rbx], xmm3
    (&[0x0f, 0x10, 0x1b], 16, false),
    (&[0x0f, 0x11, 0x1b], 16, true),
    // movaps faults before its pages are looked at.
    (&[0x0f, 0x28, 0x1b], 16, false),
    // push qword [rbx]
    (&[0xff, 0x33], 8, false),
];

/// Reads from both pages, and writes what it read: mov dl, [rcx]; mov [rcx], dl; the same with [rcx + 4096].
const TOUCH: [u8; 16] =
    [0x8a, 0x11, 0x88, 0x11, 0x8a, 0x91, 0x00, 0x10, 0x00, 0x00, 0x88, 0x91, 0x00, 0x10, 0x00, 0x00];

#[test]
fn crossings_between_known_pages_need_no_rust_but_to_write() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0xc205);
    let (data, stack) = (random.bytes(DATA_BYTES), random.bytes(8192));
    for (bytes, size, writes) in CASES {
        for before_end in 1..size {
            let mut before = Cpu::plain(CODE);
            before.area = area(machine.mask, &mut random);
            before.gprs = std::array::from_fn(|_| random.next());
            before.gprs[1] = DATA + 2 * PAGE_SIZE;
            before.gprs[3] = DATA + 3 * PAGE_SIZE - before_end;
            before.gprs[4] = STACK_TOP;
            let code = [&TOUCH[..], &[0xf9], bytes].concat();
            for page in 0..8 {
                let frame = machine.machine_address(DATA + page * PAGE_SIZE).frame();
                machine.memory.code().overwritten(frame);
            }
            // The first time translates, and sets accessed and dirty bits.
            machine.translated(&code, &before, &data, &stack);
            let earlier = machine.engine.stats();
            let (native, translated) = machine.both(&code, &before, &data, &stack);
            let later = machine.engine.stats();
            let same = compare(&native, &translated);
            assert!(same.is_ok(), "{bytes:02x?} {before_end} bytes before the end: {same:?}");
            assert_eq!(later.crossings - earlier.crossings, 1, "{bytes:02x?} {writes}");
        }
    }
}

#[test]
fn a_crossing_into_a_page_that_cannot_be_used_faults_there() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0xc206);
    let (data, stack) = (random.bytes(DATA_BYTES), random.bytes(8192));
    let kinds = [Access::All, Access::ReadOnly, Access::None];
    for (first, second) in kinds.iter().flat_map(|first| kinds.map(|second| (*first, second))) {
        machine.protect(2, first);
        machine.protect(3, second);
        for ((bytes, size, _), holds_code) in
            CASES.iter().flat_map(|case| [false, true].map(|code| (*case, code)))
        {
            let mut before = Cpu::plain(CODE);
            before.area = area(machine.mask, &mut random);
            before.gprs[3] = DATA + 3 * PAGE_SIZE - 1 - random.below(size - 1);
            before.gprs[4] = STACK_TOP;
            let native = machine.native(bytes, &before, &data, &stack);
            for _ in 0..2 {
                machine.fill(bytes, &before, &data, &stack);
                let frame = machine.machine_address(DATA + 3 * PAGE_SIZE).frame();
                machine.memory.code().overwritten(frame);
                if holds_code {
                    machine.memory.code().mark(frame, 0, 64);
                }
                let exit = machine.engine.run();
                let translated = machine.after(exit, before.rip + bytes.len() as u64);
                let same = compare(&native, &translated);
                assert!(same.is_ok(), "{bytes:02x?} {first:?} {second:?}: {same:?}");
                machine.memory.code().overwritten(frame);
            }
        }
    }
    machine.protect(2, Access::All);
    machine.protect(3, Access::All);
}
