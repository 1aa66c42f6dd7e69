//! MOVS and STOS, in place and in Rust, against the real CPU: every width, with and without REP, around page ends,
//! in both directions, overlapping or not.

use crate::native::compare::compare;
use crate::native::random::{Random, seed};
use crate::native::{Cpu, DATA, DATA_PAGES, End, machine};
use paravane_abi::units::PAGE_SIZE;

const CASES: usize = 1500;
const DIRECTION: u64 = 1 << 10;

/// An address near the end or the start of one of the data's inner pages, or anywhere in them.
fn near_an_end(random: &mut Random) -> u64 {
    let page = DATA + PAGE_SIZE * (2 + random.below(4));
    match random.below(3) {
        0 => page - random.below(80),
        1 => page + random.below(80),
        _ => page + random.below(PAGE_SIZE),
    }
}

#[test]
fn string_moves_do_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let mut random = Random(seed());
    let data = random.bytes(usize::try_from(DATA_PAGES * PAGE_SIZE).expect("small"));
    let stack = random.bytes(8192);
    for _ in 0..CASES {
        let mut code = Vec::new();
        // The flags that ADC leaves must survive the moves.
        code.extend([0x48, 0x11, 0xd0]);
        for _ in 0..2 {
            let width = [&[][..], &[0x66], &[], &[0x48]][usize::try_from(random.below(4)).expect("small")];
            let byte_form = u8::from(width.is_empty() && random.below(2) == 0);
            if random.below(3) != 0 {
                code.push(0xf3);
            }
            code.extend(width);
            code.push(if random.below(2) == 0 { 0xa5 } else { 0xab } - byte_form);
            // mov ecx, a small count
            code.push(0xb9);
            code.extend(u32::try_from(random.below(40)).expect("small").to_le_bytes());
        }
        let mut before = Cpu::plain(crate::native::CODE);
        before.area = crate::native::random::area(machine.mask, &mut random);
        before.gprs = std::array::from_fn(|_| random.next());
        let longest = if random.below(8) == 0 { 1200 } else { 40 };
        before.gprs[1] = random.below(longest);
        before.gprs[4] = crate::native::STACK_TOP;
        before.gprs[6] = near_an_end(&mut random);
        before.gprs[7] = match random.below(3) {
            0 => before.gprs[6] + random.below(24) - 12,
            _ => near_an_end(&mut random),
        };
        if random.below(4) == 0 {
            before.flags |= DIRECTION;
            // Far enough from the data's start for the longest run.
            before.gprs[6] += 2 * PAGE_SIZE;
            before.gprs[7] += 2 * PAGE_SIZE;
        }
        let (native, translated) = machine.both(&code, &before, &data, &stack);
        let same = compare(&native, &translated, 0);
        assert!(same.is_ok(), "{code:02x?} {:x?}: {same:?}", before.gprs);
        assert!(native.end == End::Done || native.end == translated.end);
    }
}
