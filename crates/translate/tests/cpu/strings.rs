//! MOVS and STOS, in place and in Rust, against the real CPU: every width, with and without REP, around page ends,
//! in both directions, overlapping or not.

use crate::native::compare::compare;
use crate::native::random::{Random, seed};
use crate::native::real::Access;
use crate::native::{CODE, Cpu, DATA, DATA_BYTES, DATA_PAGES, End, STACK_TOP, machine};
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
        let mut before = Cpu::plain(CODE);
        before.area = crate::native::random::area(machine.mask, &mut random);
        before.gprs = std::array::from_fn(|_| random.next());
        let longest = if random.below(8) == 0 { 1200 } else { 40 };
        before.gprs[1] = random.below(longest);
        before.gprs[4] = STACK_TOP;
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
        let same = compare(&native, &translated);
        assert!(same.is_ok(), "{code:02x?} {:x?}: {same:?}", before.gprs);
        assert!(native.end == End::Done || native.end == translated.end);
    }
}

/// What the middle page of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Middle {
    Plain,
    ReadOnly,
    Missing,
    /// It holds code that the engine has seen.
    Code,
}

#[test]
fn long_runs_end_where_the_cpu_ends_them() {
    const FROM: u64 = 2;
    const TO: u64 = 5;
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let mut random = Random(seed() ^ 0x10e6);
    let data = random.bytes(DATA_BYTES);
    let stack = random.bytes(8192);
    let middles = [Middle::Plain, Middle::ReadOnly, Middle::Missing, Middle::Code];
    // REP MOVS, REP STOS, REPE CMPS, REPNE SCAS, REP LODS, of bytes.
    let kinds = [[0xf3, 0xa4], [0xf3, 0xaa], [0xf3, 0xa6], [0xf2, 0xae], [0xf3, 0xac]];
    let mut cases = 0;
    for (source, target) in middles.iter().flat_map(|one| middles.map(|other| (*one, other))) {
        for (page, middle) in [(FROM, source), (TO, target)] {
            machine.protect(usize::try_from(page).expect("small"), access(middle));
        }
        for ([prefix, code], width) in kinds.iter().flat_map(|kind| [0, 1, 2, 3].map(|width| (*kind, width)))
        {
            for down in [false, true] {
                let mut data = data.clone();
                if code == 0xa6 {
                    // Equal but for one byte, somewhere, or for none.
                    let from = data[0x1000..0x4000].to_vec();
                    data[0x4000..0x7000].copy_from_slice(&from);
                    data[0x4000 + usize::try_from(random.below(0x3000)).expect("small")] ^= 1;
                }
                let size = 1_u64 << width;
                let mut before = Cpu::plain(CODE);
                before.area = crate::native::random::area(machine.mask, &mut random);
                before.gprs = std::array::from_fn(|_| random.next());
                before.gprs[4] = STACK_TOP;
                // Nearly all of three pages, aligned or not.
                let skip = [random.below(64), random.below(64), size * random.below(8)];
                let place = |page: u64, skip: u64| DATA + (page - 1) * PAGE_SIZE + skip;
                let aligned = random.below(2) == 0;
                let offsets = if aligned { [skip[2]; 2] } else { [skip[0], skip[1]] };
                before.gprs[1] = (3 * PAGE_SIZE - 64) / size - random.below(4);
                let back = if down { (before.gprs[1] - 1) * size } else { 0 };
                before.gprs[6] = place(FROM, offsets[0]) + back;
                before.gprs[7] = place(TO, offsets[1]) + back;
                before.flags |= if down { DIRECTION } else { 0 };
                let prefixes: &[&[u8]] = &[&[], &[0x66], &[], &[0x48]];
                let opcode = code + u8::from(width > 0);
                let bytes = [prefixes[width], &[prefix], &[opcode]].concat();
                // A prefix before REX, as encoders put them.
                let bytes = if width == 3 { vec![prefix, 0x48, opcode] } else { bytes };
                let native = machine.native(&bytes, &before, &data, &stack);
                machine.fill(&bytes, &before, &data, &stack);
                for (page, middle) in [(FROM, source), (TO, target)] {
                    if middle == Middle::Code {
                        let frame = machine.machine_address(DATA + page * PAGE_SIZE).frame();
                        machine.memory.code().mark(frame, 128, 8);
                    }
                }
                let exit = paravane_engine::Engine::run(&mut machine.engine);
                let translated = machine.after(exit, before.rip + bytes.len() as u64);
                let same = compare(&native, &translated);
                assert!(same.is_ok(), "{bytes:02x?} {source:?} {target:?} {:x?}: {same:?}", before.gprs);
                for page in [FROM, TO] {
                    let frame = machine.machine_address(DATA + page * PAGE_SIZE).frame();
                    machine.memory.code().overwritten(frame);
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 16 * 5 * 4 * 2);
    for page in [FROM, TO] {
        machine.protect(usize::try_from(page).expect("small"), Access::All);
    }
}

fn access(middle: Middle) -> Access {
    match middle {
        Middle::Plain | Middle::Code => Access::All,
        Middle::ReadOnly => Access::ReadOnly,
        Middle::Missing => Access::None,
    }
}

#[test]
fn long_runs_need_no_rust() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let data = vec![7; DATA_BYTES];
    for (code, in_place) in [([0xf3, 0xa4], true), ([0xf3, 0xaa], true), ([0xfd, 0xf3], false)] {
        let code = if in_place { code.to_vec() } else { [code.as_slice(), &[0xa4]].concat() };
        let mut before = Cpu::plain(CODE);
        before.gprs[1] = 3 * PAGE_SIZE;
        before.gprs[6] = DATA + PAGE_SIZE + 5;
        before.gprs[7] = DATA + 4 * PAGE_SIZE + 9;
        if !in_place {
            before.gprs[6] += 3 * PAGE_SIZE;
            before.gprs[7] += 3 * PAGE_SIZE;
        }
        for page in 0..DATA_PAGES {
            let frame = machine.machine_address(DATA + page * PAGE_SIZE).frame();
            machine.memory.code().overwritten(frame);
        }
        // The first time sets accessed and dirty bits.
        machine.translated(&code, &before, &data, &data);
        machine.fill(&code, &before, &data, &data);
        let earlier = machine.engine.stats();
        paravane_engine::Engine::run(&mut machine.engine);
        let later = machine.engine.stats();
        assert_eq!(later.string_runs - earlier.string_runs, u64::from(in_place), "{code:02x?}");
    }
}
