//! Programs that try to reach the host's memory.
//!
//! Whatever code is and whatever registers hold, translated code reaches guest memory that the guest's tables map, and
//! the engine's own arena; that what it does there is right, `verify` proves of each block. Here the programs run
//! while everything else that a wrong address could mean is watched:
//!
//! * What this process has mapped at the guest's own addresses cannot be accessed meanwhile. An address that was used
//!   without translation faults on the host, which the engine reports as #MC: no program may end so.
//! * Memory at addresses that are the guest's cut to 32 bits or 4 GiB further up, on the heap, on the stack, in this
//!   program's data, and frames that no table maps, hold a pattern that must still be there.
//! * Registers hold the addresses of all these, of the arena and of guest memory in this process, and numbers
//!   nearby.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up fails")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random numbers are cut to size, addresses have 64 bits"
)]

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::{Code, Encoder, FlowControl};
use paravane_abi::units::{MachAddr, Mfn, PAGE_BYTES, PAGE_SIZE};
use paravane_engine::{Engine as _, Exception, Exit, vector};

use crate::native::generate::instance;
use crate::native::random::{Random, registers_for, seed};
use crate::native::{Bits, Cpu, DATA, DATA_BYTES, Machine, STACK, machine, real};

const PROGRAMS: usize = 25_000;
/// How many programs run between two looks at the patterns.
const BETWEEN: usize = 100;
const PATTERN: u64 = 0xc0de_cafe_5eed_f00d;
/// Frames that no table maps.
const UNMAPPED_FRAMES: core::ops::Range<u64> = 34..49;

/// Mapped in this process only: the guest's addresses cut to 32 bits, or 4 GiB further up.
const MIRRORS: [u64; 4] = [DATA & 0xffff_ffff, STACK & 0xffff_ffff, DATA + (1 << 32), STACK + (1 << 32)];
const MIRROR_PAGES: u64 = 8;

static IN_DATA: [AtomicU64; 512] = [const { AtomicU64::new(PATTERN) }; 512];

/// Everything that holds the pattern.
struct Patterns {
    heap: Vec<u64>,
}

impl Patterns {
    fn new(machine: &Machine) -> Self {
        for address in MIRRORS {
            real::map(address, MIRROR_PAGES);
            real::poke(address, &pattern(MIRROR_PAGES * PAGE_SIZE));
        }
        for frame in UNMAPPED_FRAMES {
            machine.memory.write(frame_address(frame), &pattern(PAGE_SIZE)).unwrap();
        }
        Self { heap: vec![PATTERN; 1 << 17] }
    }

    /// What is not there any more.
    fn check(&self, machine: &Machine) -> Result<(), String> {
        for address in MIRRORS {
            if real::peek(address, (MIRROR_PAGES * PAGE_SIZE) as usize) != pattern(MIRROR_PAGES * PAGE_SIZE) {
                return Err(format!("{address:#x} was written"));
            }
        }
        for frame in UNMAPPED_FRAMES {
            let mut found = vec![0; PAGE_BYTES];
            machine.memory.read(frame_address(frame), &mut found).unwrap();
            if found != pattern(PAGE_SIZE) {
                return Err(format!("frame {frame} was written"));
            }
        }
        if self.heap.iter().any(|word| *word != PATTERN) {
            return Err("the heap was written".into());
        }
        let in_data = IN_DATA.iter().all(|word| word.load(Ordering::Relaxed) == PATTERN);
        if in_data { Ok(()) } else { Err("static data was written".into()) }
    }

    /// Addresses that a program may try.
    fn targets(&self, machine: &Machine, on_stack: u64) -> Vec<u64> {
        let ram = machine.memory.frame_pointer(machine.memory.first_frame()).unwrap().as_ptr() as u64;
        let ram_end = ram + machine.memory.frame_count() * PAGE_SIZE;
        let unmapped = ram + UNMAPPED_FRAMES.start * PAGE_SIZE;
        let arenas = arenas();
        assert!(!arenas.is_empty(), "there is an arena");
        let mut targets = vec![ram, ram_end, unmapped, ram & 0xffff_ffff, on_stack];
        targets.extend([
            self.heap.as_ptr() as u64 + 4096,
            IN_DATA.as_ptr() as u64,
            0,
            1 << 47,
            u64::MAX << 47,
        ]);
        targets.extend(MIRRORS.map(|address| address + PAGE_SIZE));
        for arena in arenas {
            targets.extend([arena.start, arena.end, arena.start + (1 << 32), arena.end - (1 << 20)]);
            // Fields, tables, jump caches: all over its data.
            targets.extend((0..32).map(|part| arena.start + part * 0x8000));
        }
        targets
    }
}

impl Drop for Patterns {
    /// Other tests want nothing there.
    fn drop(&mut self) {
        MIRRORS.into_iter().for_each(|address| real::unmap(address, MIRROR_PAGES));
    }
}

fn pattern(bytes: u64) -> Vec<u8> {
    PATTERN.to_le_bytes().repeat(bytes as usize / 8)
}

fn frame_address(index: u64) -> MachAddr {
    Mfn(0x8000 + index).base().unwrap()
}

/// The engines' arenas: memory below 2 GiB that is writable and executable, as the kernel lists it.
fn arenas() -> Vec<core::ops::Range<u64>> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let range = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        (rest.starts_with("rwx") && end <= 1 << 31 && end - start > 1 << 26).then_some(start..end)
    };
    maps.lines().filter_map(range).collect()
}

/// Registers of which some point where they should not.
fn wild(before: &mut Cpu, targets: &[u64], random: &mut Random) {
    for number in 0..16 {
        if random.one_in(2) {
            let near = match random.below(3) {
                0 => 0,
                1 => random.below(64),
                _ => random.below(64).wrapping_neg(),
            };
            before.gprs[number] = random.pick(targets).wrapping_add(near);
        }
    }
    // The stack now and then; counts of strings stay small enough to wait for.
    if !random.one_in(8) {
        before.gprs[4] = STACK + PAGE_SIZE;
    }
    before.gprs[1] = random.below(40);
    if before.bits() == Bits::B32 {
        before.gprs.iter_mut().for_each(|gpr| *gpr &= 0xffff_ffff);
    }
    if random.one_in(4) && before.bits() == Bits::B64 {
        before.bases = [random.pick(targets), random.pick(targets)];
    }
    if random.one_in(2) {
        // Indices of gathers and scatters.
        for at in (160..416).step_by(8) {
            let value = if random.one_in(2) { random.pick(targets) } else { random.next() };
            before.area[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// A few instructions of any forms without jumps.
fn program(codes: &[Code], before: &Cpu, random: &mut Random) -> Vec<u8> {
    let bits = if before.bits() == Bits::B64 { 64 } else { 32 };
    let mut bytes = Vec::new();
    for _ in 0..=random.below(6) {
        let Some(instruction) = instance(random.pick(codes), before, random) else { continue };
        let mut encoder = Encoder::new(bits);
        if encoder.encode(&instruction, before.rip + bytes.len() as u64).is_ok() {
            bytes.extend(encoder.take_buffer());
        }
    }
    bytes
}

fn is_machine_check(exit: Option<Exit>) -> bool {
    matches!(exit, Some(Exit::Exception(Exception { vector: vector::MACHINE_CHECK, .. })))
}

/// Runs a program: as a whole if it is `straight`, otherwise for a while.
fn run(machine: &mut Machine, straight: bool) -> Option<Exit> {
    if straight {
        return Some(machine.engine.run());
    }
    (0..40).find_map(|_| machine.engine.step())
}

/// Runs programs; counts those that end in a page fault of the guest's.
fn attack(
    machine: &mut Machine,
    patterns: &Patterns,
    targets: &[u64],
    random: &mut Random,
) -> Result<usize, String> {
    let next = |code: &Code| code.flow_control() == FlowControl::Next && *code != Code::Popw_CS;
    let codes: Vec<Code> = Code::values().filter(next).collect();
    let wide: Vec<Code> = codes.iter().copied().filter(|code| code.op_code().mode64()).collect();
    let narrow: Vec<Code> = codes.iter().copied().filter(|code| code.op_code().mode32()).collect();
    let (data, stack) = (random.bytes(DATA_BYTES), random.bytes(2 * PAGE_BYTES));
    let mut faults = 0;
    for number in 0..PROGRAMS {
        let bits = if number % 3 == 0 { Bits::B32 } else { Bits::B64 };
        let mut before = registers_for(machine, random, bits, bits == Bits::B32 || number % 2 == 0);
        wild(&mut before, targets, random);
        let straight = number % 5 != 0;
        let code = match (straight, bits) {
            (false, _) => random.bytes(120),
            (true, Bits::B64) => program(&wide, &before, random),
            (true, Bits::B32) => program(&narrow, &before, random),
        };
        machine.fill(&code, &before, &data, &stack);
        let exit = run(machine, straight);
        if is_machine_check(exit) {
            return Err(format!("{code:02x?} with {:x?} reached for the host's memory", before.gprs));
        }
        faults += usize::from(matches!(exit, Some(Exit::PageFault(_))));
        if number % BETWEEN == 0 || number + 1 == PROGRAMS {
            patterns
                .check(machine)
                .map_err(|what| format!("{what} by one of {BETWEEN} programs up to {number}"))?;
        }
    }
    Ok(faults)
}

#[test]
fn no_program_reaches_memory_of_the_host() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0x05_71_1e);
    let on_stack = [PATTERN; 64];
    let patterns = Patterns::new(machine);
    let targets = patterns.targets(machine, on_stack.as_ptr() as u64);
    machine.hide_native(true);
    let outcome = attack(machine, &patterns, &targets, &mut random);
    machine.hide_native(false);
    assert!(on_stack.iter().all(|word| *word == PATTERN), "the stack was written");
    let faults = outcome.unwrap();
    println!("{PROGRAMS} programs, {faults} of them ended in a page fault of the guest's");
    assert!(faults > PROGRAMS / 10);
}
