//! A guest that does anything: thousands of random requests about its frames, and all counts right after each.
//!
//! The generator favours what gets far: entries and frames that exist, tables that were tables before. A failing run
//! prints its seed; the same seed makes the same requests.

use paravane_abi::{
    hypercall::Hypercall,
    memory::MemoryReservation,
    units::{DomId, GuestVirt, VcpuId},
    vm::VmAssistType,
};
use paravane_memory::paging::FaultCode;
use zerocopy::FromZeros;

use crate::{
    Tsc,
    domain::Verdict,
    frames::{
        Level, Use,
        entry::{PRESENT, USER, WRITABLE},
        level::below,
        test_guest::{
            BUFFER_PFN, COUNTER_PFN, L1_PFN, L4_PFN, LEAF, MAX_PAGES, PAGES, READ_ONLY, SPARE_PFN, STACK_PFN,
            TestGuest,
        },
    },
};

/// xorshift64*: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

/// The pages that requests are mostly about: few, so that they meet again.
const ARENA: core::ops::Range<u64> = SPARE_PFN..SPARE_PFN + 16;

/// A page of the guest's, mostly one of the arena's. Never one of those that the test itself needs.
fn page(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => random.below(L1_PFN + 1),
        1 => SPARE_PFN + random.below(PAGES - SPARE_PFN),
        _ => ARENA.start + random.below(ARENA.end - ARENA.start),
    }
}

/// A machine frame, sometimes none of the guest's.
fn frame(guest: &TestGuest, random: &mut Random) -> u64 {
    match random.below(30) {
        0 => guest.machine.frames.start.0 + random.below(guest.machine.frame_count()),
        1 => random.next(),
        2 => guest.machine.memory.start.0 + random.below(MAX_PAGES),
        _ => guest.mfn(page(random)).0,
    }
}

fn entry(guest: &TestGuest, random: &mut Random) -> u64 {
    let (low, high) = (random.below(12), 52 + random.below(12));
    let flags = random.of(&[
        0,
        READ_ONLY,
        READ_ONLY,
        LEAF,
        LEAF,
        PRESENT | WRITABLE | USER,
        PRESENT | USER,
        1 << low | PRESENT,
        1 << high | PRESENT,
    ]);
    if random.one_in(40) { random.next() } else { frame(guest, random) << 12 | flags }
}

/// A request that makes a table of the arena's name another: of its own level, or of the one below.
fn link(guest: &mut TestGuest, random: &mut Random) -> bool {
    let level = |guest: &TestGuest, pfn: u64| {
        guest.domain.frame_table.record(guest.mfn(pfn)).and_then(|record| record.table_level())
    };
    let tables: Vec<_> = ARENA.filter(|pfn| level(guest, *pfn) > Some(Level::L1)).collect();
    if tables.is_empty() {
        return false;
    }
    let from = random.of(&tables);
    let own = level(guest, from);
    let wanted = if random.one_in(2) { own } else { own.and_then(below) };
    let fits = |pfn: &u64| level(guest, *pfn) == wanted && (*pfn != from || pfn.is_multiple_of(4));
    let fitting: Vec<_> = ARENA.filter(fits).collect();
    if fitting.is_empty() {
        return false;
    }
    let to = random.of(&fitting);
    let list = guest.argument(&[guest.word(from, 20 + random.below(8)).0, guest.entry(to, READ_ONLY)]);
    guest.hypercall(Hypercall::MmuUpdate, &[list, 1, 0, u64::from(DomId::SELF.0)]) == 0
}

/// A request about one entry of some frame.
fn update(guest: &mut TestGuest, random: &mut Random) -> bool {
    let count = 1 + random.below(4);
    let mut list = Vec::new();
    for _ in 0..count {
        // The entries that map the test's own pages stay.
        let mapped = SPARE_PFN + random.below(16);
        let slot = random.of(&[20, 25, 255, 256, 270, 272, 509, mapped]);
        let at = frame(guest, random) << 12 | (slot * 8) | random.of(&[0, 0, 0, 0, 1, 2, 3, 5]);
        list.extend([at, entry(guest, random)]);
    }
    let list = guest.argument(list.as_slice());
    let owner = random.of(&[DomId::SELF.0, DomId::SELF.0, DomId::SELF.0, DomId::IO.0, 0, 3]);
    let counter = guest.va(COUNTER_PFN);
    guest.hypercall(Hypercall::MmuUpdate, &[list, count, counter, u64::from(owner)]) == 0
}

fn extended(guest: &mut TestGuest, random: &mut Random) -> bool {
    let any = random.below(24);
    let number = random.of(&[0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 13, 15, 16, 17, any]);
    let (mut arg1, mut arg2) = (frame(guest, random), frame(guest, random));
    match number {
        // The root has to keep mapping the test's own pages: it may only be a table with the same upper half.
        5 if guest.peek(page_of(guest, arg1), 511) & !0x60 != guest.peek(L4_PFN, 511) & !0x60 => {
            arg1 = guest.mfn(L4_PFN).0;
        }
        13 => (arg1, arg2) = (guest.va(page(random)), random.below(9000)),
        15 if random.one_in(3) => arg1 = 0,
        _ => {}
    }
    let list = guest.argument(&[number, arg1, arg2]);
    guest.hypercall(Hypercall::MmuextOp, &[list, 1, 0, u64::from(DomId::SELF.0)]) == 0
}

/// The page that a frame is at the start; page 0, which is the root, for frames that are none.
fn page_of(guest: &TestGuest, frame: u64) -> u64 {
    frame.checked_sub(guest.machine.memory.start.0).filter(|pfn| *pfn < PAGES).unwrap_or(0)
}

fn map(guest: &mut TestGuest, random: &mut Random) -> bool {
    let pfn = ARENA.start + random.below(32);
    let new = entry(guest, random);
    let va = guest.va(pfn).wrapping_add(random.of(&[0, 0, 0, 1 << 21, 1 << 30, 1 << 39]));
    guest.hypercall(Hypercall::UpdateVaMapping, &[va, new, random.of(&[0, 1, 2, 5, 6])]) == 0
}

fn memory(guest: &mut TestGuest, random: &mut Random) -> bool {
    let mut reservation = MemoryReservation::new_zeroed();
    let count = 1 + random.below(3);
    for index in 0..count {
        let extent = if random.one_in(3) { frame(guest, random) } else { guest.mfn(page(random)).0 };
        guest.poke(COUNTER_PFN, 8 + index, extent);
    }
    reservation.extent_start = guest.va(COUNTER_PFN) + 64;
    (reservation.nr_extents, reservation.extent_order) = (count, random.of(&[0, 0, 0, 1, 2]));
    reservation.domid = DomId::SELF.0;
    let argument = guest.argument(&reservation);
    // Give back less often than take.
    guest.hypercall(Hypercall::MemoryOp, &[random.of(&[0, 0, 1, 6, 6]), argument]) > 0
}

fn descriptors(guest: &mut TestGuest, random: &mut Random) -> bool {
    if random.one_in(2) {
        let frames = [frame(guest, random), frame(guest, random)];
        let list = guest.argument(&frames);
        guest.hypercall(Hypercall::SetGdt, &[list, random.of(&[0, 16, 512, 513, 1024, 7169])]) == 0
    } else {
        let at = frame(guest, random) << 12 | (random.below(512) * 8);
        let any = random.next();
        let descriptor = random.of(&[0, 0x00af_9b00_0000_ffff, 0x8900_0000_0067, any]);
        guest.hypercall(Hypercall::UpdateDescriptor, &[at, descriptor]) == 0
    }
}

/// A write to memory by the guest itself, where it has the right to: what page tables are made of.
fn scribble(guest: &mut TestGuest, random: &mut Random) -> bool {
    let pfn = page(random);
    let may_write = guest
        .domain
        .frame_table
        .record(guest.mfn(pfn))
        .is_some_and(|record| record.uses > 0 && record.usage == Use::Writable);
    if may_write {
        let words = random.of(&[1, 4, 512]);
        for _ in 0..words {
            let word = random.below(512);
            let value = if random.one_in(4) { entry(guest, random) } else { 0 };
            guest.poke(pfn, word, value);
        }
    }
    may_write
}

/// A store to a page table that is mapped read-only.
fn store(guest: &mut TestGuest, random: &mut Random) -> bool {
    let table = if random.one_in(2) { L1_PFN } else { page(random) };
    let address = guest.va(table) + 8 * (SPARE_PFN + random.below(16));
    guest.context.rip = 0x1000;
    let verdict = guest.fault(address, FaultCode::PRESENT | FaultCode::WRITE | FaultCode::USER);
    let Verdict::ShadowWrite(write) = verdict else {
        assert!(matches!(verdict, Verdict::Run), "{verdict:?}");
        return false;
    };
    let old = write.copy(&guest.domain.memory);
    let mut new = old.clone();
    let at = GuestVirt(address).offset() & !7;
    new[at..at + 8].copy_from_slice(&entry(guest, random).to_le_bytes());
    let done = guest.domain.shadow_written(VcpuId(0), &write, (&old, &new), &mut guest.context, Tsc(0));
    assert!(matches!(done, Verdict::Run), "{done:?}");
    guest.check();
    true
}

/// What a run came across.
#[derive(Debug, Default)]
struct Seen {
    /// Requests that got somewhere, by kind.
    successes: [u32; 16],
    /// Steps after which a page was in use as a table of each level, beyond the builder's, and as descriptors.
    uses: [u32; 5],
    /// Steps after which a recursive entry existed.
    recursive: u32,
}

impl Seen {
    fn look(&mut self, guest: &TestGuest) {
        let records = ARENA.filter_map(|pfn| guest.domain.frame_table.record(guest.mfn(pfn)));
        for record in records.filter(|record| record.uses > 0) {
            let kinds = [Use::L1, Use::L2, Use::L3, Use::L4, Use::SegmentDescriptors];
            for (count, kind) in self.uses.iter_mut().zip(kinds) {
                *count += u32::from(record.usage == kind);
            }
            self.recursive += u32::from(record.linear > 0);
        }
    }
}

/// Plays `steps` requests.
fn play(seed: u64, steps: u32, seen: &mut Seen) {
    let mut random = Random(seed | 1);
    let mut guest = TestGuest::with_vcpus(2);
    guest.domain.assists |= 1 << VmAssistType::WritablePagetables.number();
    if seed.is_multiple_of(4) {
        guest.domain.assists |= 1 << VmAssistType::M2pStrict.number();
    }
    guest.handle_page_faults();
    // Some pages can become tables at once.
    ARENA.step_by(2).for_each(|pfn| guest.protect(pfn));
    for _ in 0..steps {
        // A fault leaves its frame on the stack; go back to its top.
        guest.context.set_gpr(paravane_engine::Gpr::Rsp, guest.va(STACK_PFN + 1));
        let kind = random.below(16);
        let success = match kind {
            0..=2 => link(&mut guest, &mut random),
            3 | 4 => update(&mut guest, &mut random),
            5..=7 => extended(&mut guest, &mut random),
            8..=10 => map(&mut guest, &mut random),
            11 => memory(&mut guest, &mut random),
            12 => descriptors(&mut guest, &mut random),
            13 | 14 => scribble(&mut guest, &mut random),
            _ => store(&mut guest, &mut random),
        };
        seen.successes[usize::try_from(kind).unwrap()] += u32::from(success);
        seen.look(&guest);
        guest.domain.take_flushes();
        // The buffer is the test's way in.
        assert!(guest.call().space().read_value::<u64>(GuestVirt(guest_va(BUFFER_PFN))).is_ok());
    }
}

fn guest_va(pfn: u64) -> u64 {
    crate::frames::test_guest::BASE + pfn * 4096
}

#[test]
fn random_requests_leave_all_counts_right() {
    let mut seen = Seen::default();
    for seed in 0..16 {
        println!("seed {seed}");
        play(seed, 400, &mut seen);
    }
    // The generator is worth something only if its requests are granted now and then, and tables come about.
    assert!(seen.successes.iter().chain(&seen.uses).all(|count| *count >= 50), "{seen:?}");
    assert!(seen.recursive >= 50, "{seen:?}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 4, ..Default::default() })]
    #[test]
    fn random_requests_of_any_seed_leave_all_counts_right(seed: u64) {
        play(seed, 200, &mut Seen::default());
    }
}
