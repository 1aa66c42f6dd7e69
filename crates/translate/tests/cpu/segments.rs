//! Segments of an LDT, and transfers between code segments, against the real CPU: Linux lets a program have the ones
//! and do the others.
//!
//! All code is below 4 GiB, where 64-bit code can reach 32-bit code. Transfers lead to HLT, wherever they go; see
//! `branches.rs`.
#![expect(clippy::cast_possible_truncation, reason = "numbers are cut to the width of an operand")]

use iced_x86::Code;
use paravane_abi::units::{PAGE_BYTES, PAGE_SIZE};

use crate::forms::{Forms, Place, forms};
use crate::native::random::{Random, registers_for, seed};
use crate::native::real::{Access, UserSegment};
use crate::native::{
    Bits, CODE, Cpu, DATA, DATA_BYTES, DATA_PAGES, LDT_ENTRIES, Machine, STACK, STACK_TOP, USER_CODE,
    USER_CODE_32, USER_DATA, low, machine,
};
use crate::tally::{Contents, Tally};

const HLT: u8 = 0xf4;
/// Bytes of HLT before a transfer and behind it.
const BEFORE: usize = 100;
const BEHIND: usize = 160;

/// What a segment of the LDT is.
const DATA_UP: u32 = 0;
const DATA_DOWN: u32 = 1;
const EXECUTABLE: u32 = 2;
/// Further flags: 32-bit; no writing, or no reading of code; limit in pages; not present.
const BIG: u32 = 1;
const RESTRICTED: u32 = 1 << 3;
const PAGES: u32 = 1 << 4;
const ABSENT: u32 = 1 << 5;

/// The LDT: entry, base, last offset, kind, flags.
const SEGMENTS: [(u32, u32, u32, u32, u32); 13] = [
    (1, 0, u32::MAX, DATA_UP, BIG),
    // Their ends lie in the data.
    (2, 0, low(DATA) as u32 + 0x3fff, DATA_UP, BIG),
    (3, 0, low(DATA) as u32 + 0x3fff, DATA_DOWN, BIG),
    (4, 0x1000, low(DATA) as u32 + 0x2fff, DATA_UP, BIG),
    (5, 0, u32::MAX, DATA_UP, BIG | RESTRICTED),
    (6, 0, u32::MAX, EXECUTABLE, BIG),
    (7, 0, u32::MAX, EXECUTABLE, BIG | RESTRICTED),
    // Its end lies between the two pages of code.
    (8, 0, low(CODE) as u32 + 0xfff, EXECUTABLE, BIG),
    (9, 0, u32::MAX, EXECUTABLE, BIG | ABSENT),
    (10, 0, u32::MAX, DATA_UP, BIG | ABSENT),
    (11, 0x2000, u32::MAX, EXECUTABLE, BIG),
    (12, 0, low(STACK) as u32 + 0x1fff, DATA_UP, BIG),
    (LDT_ENTRIES as u32 - 1, 0, 0, DATA_UP, BIG),
];

/// 32-bit code whose limit lies between the two pages of code.
pub(crate) const LIMITED_CODE: u16 = ldt(8);

/// An LDT selector.
const fn ldt(entry: u16) -> u16 {
    entry << 3 | 7
}

pub(crate) fn set_up(machine: &mut Machine) {
    let segments = SEGMENTS.map(|(entry, base, last, kind, flags)| -> UserSegment {
        let is_long = last > 0xf_ffff;
        let limit = if is_long { last >> 12 } else { last };
        [entry, base, limit, kind << 1 | flags | if is_long { PAGES } else { 0 } | 1 << 6]
    });
    machine.set_ldt(&segments);
}

#[test]
fn segments_with_limits_and_rights_restrict_every_form_as_on_the_cpu() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    set_up(machine);
    let mut forms = Forms { random: Random(seed() ^ 0x5e6) };
    let mut tally = Tally::default();
    let contents = forms.contents();
    let place = Place { bits: Bits::B32, is_low: true, edges: true, aligned: false };
    let any = [0, USER_DATA, ldt(1), ldt(2), ldt(3), ldt(4), ldt(5), ldt(6), ldt(11)];
    // CLFLUSH may be told an address of code that cannot be read; here it may not.
    let flushes = |code: &Code| format!("{code:?}").starts_with("Cl");
    for code in self::forms().filter(|code| !flushes(code)) {
        for _ in 0..6 {
            let Some((bytes, mut before)) = forms.case(machine, code, place) else { continue };
            for register in [0, 3, 4, 5] {
                before.selectors[register] = u64::from(forms.random.pick(&any));
            }
            let stacks = [USER_DATA, ldt(1), ldt(2), ldt(3), ldt(4), ldt(12)];
            before.selectors[2] = u64::from(forms.random.pick(&stacks));
            before.selectors[1] = u64::from(forms.random.pick(&[USER_CODE_32, ldt(6), ldt(7), ldt(8)]));
            forms.run(machine, code, &bytes, &before, &contents, &mut tally);
        }
    }
    assert!(tally.faults > 500);
    tally.finish();
}

/// A far pointer's selector: good ones, and each kind of bad one.
fn selector(random: &mut Random) -> u16 {
    const GOOD: [u16; 6] = [USER_CODE, USER_CODE_32, USER_CODE, USER_CODE_32, ldt(6), ldt(8)];
    const ANY: [u16; 19] = [
        0,
        1,
        2,
        3,
        0x10,
        0x30,
        0x31,
        0x20,
        USER_DATA,
        0x7b,
        0xfff8,
        0xffff,
        ldt(1),
        ldt(7),
        ldt(9),
        ldt(10),
        ldt(0),
        ldt(LDT_ENTRIES),
        ldt(6) & !3,
    ];
    if random.one_in(2) { random.pick(&GOOD) } else { random.pick(&ANY) }
}

fn stack_selector(random: &mut Random) -> u16 {
    const ANY: [u16; 12] =
        [0, 3, 0x28, 0x18, USER_CODE, 0xfff8, ldt(1), ldt(2), ldt(5), ldt(6), ldt(10), ldt(LDT_ENTRIES)];
    if random.one_in(2) { USER_DATA } else { random.pick(&ANY) }
}

/// A far transfer: its bytes, the width of its offset, and where its far pointer is.
struct Transfer {
    bits: Bits,
    bytes: &'static [u8],
    size: usize,
    from: From,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Behind the opcode.
    Code,
    /// At RBX.
    Memory,
    /// On the stack.
    Stack,
    /// On the stack, with flags and, in 64-bit code, another stack.
    Frame,
}

const fn transfer(bits: Bits, bytes: &'static [u8], size: usize, from: From) -> Transfer {
    Transfer { bits, bytes, size, from }
}

const TRANSFERS: [Transfer; 32] = [
    transfer(Bits::B64, &[0xff, 0x2b], 4, From::Memory),
    transfer(Bits::B64, &[0x66, 0xff, 0x2b], 2, From::Memory),
    transfer(Bits::B64, &[0x48, 0xff, 0x2b], 8, From::Memory),
    transfer(Bits::B64, &[0xff, 0x1b], 4, From::Memory),
    transfer(Bits::B64, &[0x66, 0xff, 0x1b], 2, From::Memory),
    transfer(Bits::B64, &[0x48, 0xff, 0x1b], 8, From::Memory),
    transfer(Bits::B64, &[0xcb], 4, From::Stack),
    transfer(Bits::B64, &[0x66, 0xcb], 2, From::Stack),
    transfer(Bits::B64, &[0x48, 0xcb], 8, From::Stack),
    transfer(Bits::B64, &[0xca, 0x18, 0], 4, From::Stack),
    transfer(Bits::B64, &[0x66, 0xca, 0x18, 0], 2, From::Stack),
    transfer(Bits::B64, &[0x48, 0xca, 0x18, 0], 8, From::Stack),
    transfer(Bits::B64, &[0xcf], 4, From::Frame),
    transfer(Bits::B64, &[0x66, 0xcf], 2, From::Frame),
    transfer(Bits::B64, &[0x48, 0xcf], 8, From::Frame),
    transfer(Bits::B64, &[0xea], 4, From::Code),
    transfer(Bits::B64, &[0x9a], 4, From::Code),
    transfer(Bits::B32, &[0xea], 4, From::Code),
    transfer(Bits::B32, &[0x66, 0xea], 2, From::Code),
    transfer(Bits::B32, &[0x9a], 4, From::Code),
    transfer(Bits::B32, &[0x66, 0x9a], 2, From::Code),
    transfer(Bits::B32, &[0xff, 0x2b], 4, From::Memory),
    transfer(Bits::B32, &[0x66, 0xff, 0x2b], 2, From::Memory),
    transfer(Bits::B32, &[0xff, 0x1b], 4, From::Memory),
    transfer(Bits::B32, &[0x66, 0xff, 0x1b], 2, From::Memory),
    transfer(Bits::B32, &[0xcb], 4, From::Stack),
    transfer(Bits::B32, &[0x66, 0xcb], 2, From::Stack),
    transfer(Bits::B32, &[0xca, 0x18, 0], 4, From::Stack),
    transfer(Bits::B32, &[0x66, 0xca, 0x18, 0], 2, From::Stack),
    transfer(Bits::B32, &[0xcf], 4, From::Frame),
    transfer(Bits::B32, &[0x66, 0xcf], 2, From::Frame),
    transfer(Bits::B32, &[0xff, 0xeb], 4, From::Code),
];

/// Where a transfer may lead: mostly to the HLTs around it.
fn offset(bits: Bits, rip: u64, random: &mut Random) -> u64 {
    let transfer = rip + 2 + BEFORE as u64;
    match random.below(12) {
        0 if bits == Bits::B64 => 1 << 47 | random.next() & 0xffff,
        1 => random.below(1 << 16),
        2 => low(DATA) + DATA_PAGES * PAGE_SIZE + 5,
        3..7 => transfer - 1 - random.below(90),
        _ => transfer + 16 + random.below(100),
    }
}

/// What lies at the far pointer: offset, selector, and the rest of a frame.
fn pointer(transfer: &Transfer, before: &Cpu, random: &mut Random) -> Vec<u8> {
    // Trap, nested task, alignment and identification flags among the others.
    const FLAGS: u64 = 0x24_4dd5;
    // An IRET that loads AC from a misaligned frame is taken by Linux for a split lock, and repeated for ever.
    const ALIGNMENT: u64 = 1 << 18;
    let aligned = before.gprs[4].is_multiple_of(8);
    let rip = before.rip;
    let offset = offset(transfer.bits, rip, random);
    let code = u64::from(selector(random));
    let flags = random.next() & FLAGS & if random.one_in(2) { 0xcd5 } else { u64::MAX };
    let flags = if aligned { flags } else { flags & !ALIGNMENT };
    let stack_pointer = match random.below(3) {
        0 => random.next(),
        _ => low(STACK_TOP) + 8 * random.below(8),
    };
    let stack = u64::from(stack_selector(random));
    let numbers: &[u64] = match transfer.from {
        From::Code | From::Memory | From::Stack => &[offset, code],
        From::Frame => &[offset, code, flags, stack_pointer, stack],
    };
    // In a far pointer the selector has 16 bits; on a stack it has a slot.
    let whole = |number: &u64| number.to_le_bytes()[..transfer.size].to_vec();
    match transfer.from {
        From::Code | From::Memory => [whole(&offset), code.to_le_bytes()[..2].to_vec()].concat(),
        From::Stack | From::Frame => numbers.iter().flat_map(whole).collect(),
    }
}

/// Puts bytes into the data or the stack, wherever an address is.
fn put(contents: &mut Contents, address: u64, bytes: &[u8]) {
    let data = low(DATA);
    let (start, room) = if (data..data + DATA_BYTES as u64).contains(&address) {
        (address - data, &mut contents.data)
    } else {
        (address - low(STACK), &mut contents.stack)
    };
    let start = start as usize;
    let len = bytes.len().min(room.len() - start);
    room[start..start + len].copy_from_slice(&bytes[..len]);
}

#[test]
fn far_transfers_go_and_fault_as_on_the_cpu() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    set_up(machine);
    let mut random = Random(seed() ^ 0xfa4);
    let mut tally = Tally::default();
    let mut pages = [Access::All; 8];
    (pages[3], pages[5]) = (Access::None, Access::ReadOnly);
    pages.iter().enumerate().for_each(|(page, access)| machine.protect(page, *access));
    for transfer in &TRANSFERS {
        for _ in 0..400 {
            let mut before = registers_for(machine, &mut random, transfer.bits, true);
            before.rip = low(CODE) + PAGE_SIZE - 300 + random.below(400);
            // At the end of a page, if not in the middle of one. In which order the slots of a misaligned frame are read
            // depends on where the page ends in them.
            let slot = if transfer.from == From::Frame { 8 } else { 2 };
            let border = low(DATA) + PAGE_SIZE * (2 + random.below(4)) - slot * random.below(48 / slot);
            before.gprs[4] = if random.one_in(3) { border } else { low(STACK_TOP) };
            before.gprs[3] = if random.one_in(3) { border } else { low(DATA) + PAGE_SIZE + 64 };
            if random.one_in(8) {
                before.flags |= 1 << 14;
            }
            run(machine, transfer, before, &mut random, &mut tally);
        }
    }
    pages.iter().enumerate().for_each(|(page, _)| machine.protect(page, Access::All));
    assert!(tally.cases > 5000);
    tally.finish();
}

fn run(machine: &mut Machine, transfer: &Transfer, mut before: Cpu, random: &mut Random, tally: &mut Tally) {
    if transfer.bits == Bits::B32 && random.one_in(4) {
        before.selectors[1] = u64::from(random.pick(&[ldt(6), ldt(8)]));
        before.rip = before.rip.min(low(CODE) + PAGE_SIZE - 120);
    }
    let pointer = pointer(transfer, &before, random);
    let mut contents = Contents { data: vec![HLT; DATA_BYTES], stack: vec![HLT; 2 * PAGE_BYTES] };
    let mut code = vec![0xeb, BEFORE as u8];
    code.extend([HLT; BEFORE]);
    code.extend(transfer.bytes);
    match transfer.from {
        From::Code => code.extend(&pointer),
        From::Memory => put(&mut contents, before.gprs[3], &pointer),
        From::Stack | From::Frame => put(&mut contents, before.gprs[4], &pointer),
    }
    code.extend([HLT; BEHIND]);
    let kind = format!("{:?} {:02x?}", transfer.bits, transfer.bytes);
    let told = format!("{kind} {pointer:02x?}");
    tally.run(machine, &kind, &code, &before, &contents);
    tally.explain(&kind, &told);
}
