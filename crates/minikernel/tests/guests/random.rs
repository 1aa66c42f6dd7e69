//! Random guests: random hypercalls with random arguments, and random instructions. Whatever they do, nothing of
//! Paravane panics or hangs, and afterwards every frame is counted as it should be.
//!
//! A guest is made from a seed, and a failure names it: `PARAVANE_SEED=… cargo test -p paravane-minikernel --test guests random`
//! begins with that one.

use std::{collections::BTreeMap, env, time::Duration};

use iced_x86::code_asm::*;
use paravane_abi::{hypercall::Hypercall, sched::ShutdownReason};
use paravane_minikernel::{Assembled, End, Limits, Program, Setup, Way};

/// Guests of each kind in a run, unless `PARAVANE_GUESTS` says otherwise.
const GUESTS: u64 = 150;
/// Things that one guest tries.
const STEPS: u64 = 120;

/// The generator of Marsaglia's xorshift family with a multiplication behind it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }
}

/// Makes a guest out of random numbers.
struct Generator<'a> {
    random: Random,
    p: &'a mut Program,
    /// Pages of data to point at.
    pages: Vec<u64>,
}

/// Pages of the guest's own that its arguments name.
const PAGES: usize = 8;

impl<'a> Generator<'a> {
    fn new(p: &'a mut Program, seed: u64) -> Self {
        let first = p.pages(PAGES);
        let pages = (0..PAGES as u64).map(|page| first + page * 4096).collect();
        // A seed of zero would stay zero.
        Self { random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), p, pages }
    }

    /// A small number.
    fn small(&mut self) -> u64 {
        let limit = self.random.pick(&[2, 4, 16, 40, 600]);
        self.random.below(limit)
    }

    /// The address of something in the initial mapping: data, tables, rings, code, the runtime itself.
    fn address(&mut self) -> u64 {
        let layout = &self.p.layout;
        let pages = layout.plan.mapped_end.0;
        let tables = layout.plan.tables.start.0;
        let count = layout.plan.tables.end.0 - tables;
        match self.random.below(8) {
            0 => layout.page(self.random.below(pages)),
            1 | 2 => layout.page(tables + self.random.below(count)),
            3 => layout.free_page(self.random.below(20)),
            4 => layout.page(layout.plan.start_info.0 + self.random.below(3)),
            _ => self.random.pick(&self.pages),
        }
    }

    /// A pointer as a good guest, a careless one or a bad one would pass it.
    fn pointer(&mut self) -> u64 {
        let offset = self.random.pick(&[0, 0, 0, 8, 16, 4, 1, 4088, 4095]);
        match self.random.below(12) {
            0 => 0,
            1 => 0x1234_5000 + offset,
            2 => 0x8000_0000_0000_0000,
            3 => 0xffff_8000_0000_0000 + self.random.below(1 << 20) * 8,
            4 => self.random.next(),
            5 => u64::MAX - self.random.below(64),
            _ => self.address() + offset,
        }
    }

    /// The frame of something of the guest's, or one that is not.
    fn frame(&mut self) -> u64 {
        match self.random.below(16) {
            0 => self.small(),
            1 => self.p.layout.machine.frames.start.0 + self.random.below(200),
            2 => self.p.layout.machine.frames.end.0 + self.small(),
            3 => self.random.next() >> 12,
            kind => {
                // Mostly of a few pages, so that what is done to one meets what was done before.
                let own = self.random.pick(&self.pages);
                let address = if kind < 12 { own } else { self.address() };
                self.p.layout.mfn(address).0
            }
        }
    }

    /// A page-table entry.
    fn entry(&mut self) -> u64 {
        if self.random.one_in(8) {
            return self.random.pick(&[0, 2, u64::MAX, 1]);
        }
        let flags = match self.random.below(4) {
            0 => self.random.below(4096),
            1 => 0x25 | 1 << 63,
            _ => self.random.pick(&[0x67, 0x27, 0x65, 0x25, 0x63, 0xe7, 0x66]),
        };
        self.frame() << 12 | flags
    }

    /// The machine address of an entry of one of the builder's tables, or of a plain word.
    fn slot(&mut self) -> u64 {
        let level = 1 + self.random.below(4);
        let own = self.random.pick(&self.pages);
        let table = if self.random.one_in(2) { own } else { self.p.layout.table(level) };
        let index = self.random.pick(&[0, 1, 256, 257, 258, 260, 272, 510, 511, 37]);
        let index = if self.random.one_in(2) { self.random.below(512) } else { index };
        self.p.layout.maddr(table).0 + index * 8
    }

    /// A word such as one finds in the structures of the ABI.
    fn word(&mut self) -> u64 {
        match self.random.below(10) {
            0 => self.small() | self.small() << 32,
            1 | 2 => self.frame(),
            3 => self.entry(),
            4 | 5 => self.pointer(),
            6 => 0x7ff0 | self.small() << 32,
            7 => self.random.next(),
            _ => self.small(),
        }
    }

    /// An argument that is an array of such words, or whatever else.
    fn structure(&mut self, words: u64) -> u64 {
        if self.random.one_in(6) {
            return self.pointer();
        }
        let words: Vec<u64> = (0..words).map(|_| self.word()).collect();
        self.p.words(&words)
    }

    /// Arguments for `call`: those that it wants, more or less.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others get words at random")]
    fn arguments(&mut self, call: Hypercall) -> [u64; 5] {
        let count = self.random.pick(&[1, 1, 2, 3, 0, 8, 0x8000_0001]);
        let domain = match self.random.below(20) {
            0 => self.random.pick(&[0, 0x7ff1, 0x7fff, 5]),
            1 => 1,
            _ => 0x7ff0,
        };
        let done = if self.random.one_in(4) { self.pointer() } else { 0 };
        match call {
            Hypercall::MmuUpdate => {
                let requests: Vec<u64> = (0..3)
                    .flat_map(|_| [self.slot() | self.random.pick(&[0, 0, 0, 1, 2, 3, 7]), self.entry()])
                    .collect();
                [self.p.words(&requests), count.min(3), done, domain, 0]
            }
            Hypercall::MmuextOp => {
                let operations: Vec<u64> = (0..2)
                    .flat_map(|_| {
                        let op = self.random.pick(&[0, 1, 2, 3, 4, 4, 4, 5, 13, 15, 16, 17]);
                        let op = if self.random.one_in(4) { self.random.below(22) } else { op };
                        [op, self.frame(), self.word()]
                    })
                    .collect();
                [self.p.words(&operations), count.min(2), done, domain, 0]
            }
            // A page of its own, to read only: so it can become a page table or a table of descriptors.
            Hypercall::UpdateVaMapping if self.random.one_in(2) => {
                let page = self.random.pick(&self.pages);
                let entry = self.p.layout.maddr(page).0 | self.random.pick(&[0x25, 0x25, 0x67]);
                [page, entry, 2, 0, 0]
            }
            Hypercall::UpdateVaMapping => [self.address(), self.entry(), self.random.below(8), 0, 0],
            Hypercall::SetGdt => {
                let frames = [self.frame(), self.frame()];
                let entries = if self.random.one_in(4) { 1100 } else { 512 };
                [self.p.words(&frames), self.random.below(entries), 0, 0, 0]
            }
            Hypercall::UpdateDescriptor => {
                let word = self.random.next();
                [self.slot(), self.random.pick(&[0, 0x00cf_fb00_0000_ffff, word]), 0, 0, 0]
            }
            Hypercall::Multicall => {
                let mut entries = Vec::new();
                for _ in 0..4 {
                    let inner = self.hypercall();
                    let args = if inner == Hypercall::Multicall { [0; 5] } else { self.arguments(inner) };
                    entries.extend([u64::from(inner.number()), 0]);
                    entries.extend(args);
                    entries.push(0);
                }
                [self.p.words(&entries), count.min(4), 0, 0, 0]
            }
            Hypercall::SetTrapTable => {
                let table = [self.small() | 0xe033_0000, self.pointer(), 0, 0];
                [self.p.words(&table), 0, 0, 0, 0]
            }
            Hypercall::GrantTableOp => [self.random.below(14), self.structure(8), self.random.below(4), 0, 0],
            Hypercall::EventChannelOp => [self.random.below(15), self.structure(4), 0, 0, 0],
            Hypercall::VcpuOp => {
                [self.random.below(17), self.random.pick(&[0, 0, 0, 1]), self.structure(6), 0, 0]
            }
            Hypercall::MemoryOp => [self.random.below(30), self.reservations(), 0, 0, 0],
            _ => {
                let first = if self.random.one_in(2) { self.small() } else { self.structure(6) };
                [first, self.structure(6), self.word(), self.word(), self.word()]
            }
        }
    }

    /// What `memory_op` wants: a reservation, or the two of an exchange.
    fn reservations(&mut self) -> u64 {
        if self.random.one_in(3) {
            return self.structure(9);
        }
        let frames: Vec<u64> = (0..4).map(|_| self.frame()).collect();
        let lists = [self.p.words(&frames), self.p.words(&[0; 8])];
        let mut words = Vec::new();
        for list in lists {
            words.extend([list, self.random.below(5), self.random.below(3), 0x7ff0]);
        }
        words.push(0);
        self.p.words(&words)
    }

    fn hypercall(&mut self) -> Hypercall {
        const OFTEN: [Hypercall; 10] = [
            Hypercall::MmuUpdate,
            Hypercall::MmuextOp,
            Hypercall::UpdateVaMapping,
            Hypercall::Multicall,
            Hypercall::MemoryOp,
            Hypercall::GrantTableOp,
            Hypercall::EventChannelOp,
            Hypercall::VcpuOp,
            Hypercall::SetGdt,
            Hypercall::UpdateDescriptor,
        ];
        loop {
            let call = if self.random.one_in(3) {
                self.random.pick(Hypercall::ALL)
            } else {
                self.random.pick(&OFTEN)
            };
            // These end most guests at once.
            let ends = [Hypercall::Iret, Hypercall::SchedOp, Hypercall::SchedOpCompat];
            if !ends.contains(&call) || self.random.one_in(20) {
                return call;
            }
        }
    }

    fn try_hypercall(&mut self) -> Assembled {
        let call = self.hypercall();
        let arguments = self.arguments(call);
        self.p.catch(|p| p.call(call, &arguments))
    }

    /// Uses of memory, segments and registers that the hypervisor has an opinion of.
    fn try_instruction(&mut self) -> Assembled {
        let (pointer, value) = (self.pointer(), self.word());
        let selector =
            self.random.pick(&[0_u16, 3, 0x10, 0xe008, 0xe023, 0xe02b, 0xe033, 0xe040, 0x7, 0xffff]);
        let kind = self.random.below(20);
        let bytes: Vec<u8> =
            (0..self.random.below(12) + 1).map(|_| self.random.next().to_le_bytes()[3]).collect();
        self.p.catch(|p| {
            p.a.mov(rbx, pointer)?;
            p.a.mov(rax, value)?;
            match kind {
                0 => p.a.mov(qword_ptr(rbx), rax),
                1 => p.a.mov(rax, qword_ptr(rbx)),
                2 => p.a.lock().xadd(qword_ptr(rbx), rax),
                3 => p.a.call(rbx),
                4 => p.a.jmp(rbx),
                5 | 6 => {
                    p.a.mov(eax, u32::from(selector))?;
                    match value % 5 {
                        0 => p.a.mov(ds, eax),
                        1 => p.a.mov(es, eax),
                        2 => p.a.mov(fs, eax),
                        3 => p.a.mov(gs, eax),
                        _ => p.a.mov(ss, eax),
                    }
                }
                7 => {
                    p.a.push(rax)?;
                    p.a.popfq()?;
                    p.a.nop()
                }
                8 => {
                    p.a.mov(ecx, u32::from(selector) ^ 0xc000_0100)?;
                    if value % 2 == 0 { p.a.rdmsr() } else { p.a.wrmsr() }
                }
                9 if value % 8 == 0 => p.a.mov(rsp, rbx),
                10 => {
                    p.a.mov(rdi, rbx)?;
                    p.a.mov(ecx, 5000)?;
                    p.a.rep().stosb()
                }
                11 => {
                    for word in [selector.into(), value, 0x202, selector.into(), pointer] {
                        p.a.mov(rax, word)?;
                        p.a.push(rax)?;
                    }
                    if value % 2 == 0 { p.a.iretq() } else { p.a.db(&[0x48, 0xcb]) }
                }
                12 => p.a.int(i32::from(selector % 256)),
                13 => p.a.mov(cr0, rax),
                14 => p.a.mov(cr4, rax),
                15 => p.a.mov(dr7, rax),
                16 => p.a.mov(cr3, rax),
                _ => {
                    p.a.db(&bytes)?;
                    p.a.db(&[0xcc; 16])
                }
            }
        })
    }

    /// A program in user mode that does something and traps.
    fn try_program(&mut self) -> Assembled {
        let (pointer, value) = (self.pointer(), self.word());
        let kind = self.random.below(8);
        let bytes: Vec<u8> = (0..8).map(|_| self.random.next().to_le_bytes()[3]).collect();
        self.p.in_user_mode(|p| {
            p.a.mov(rbx, pointer)?;
            p.a.mov(rax, value)?;
            match kind {
                0 => p.a.syscall(),
                1 => p.a.sysenter(),
                2 => p.a.int(0x80),
                3 => p.a.mov(qword_ptr(rbx), rax),
                4 => p.a.jmp(rbx),
                5 => p.a.mov(rsp, rbx),
                _ => p.a.db(&bytes),
            }
        })
    }

    fn run(mut self, instructions: bool) -> Assembled {
        if instructions {
            self.p.set_user_root(self.p.layout.mfn(self.p.layout.table(4)))?;
        }
        for _ in 0..STEPS {
            if instructions && self.random.one_in(8) {
                self.try_program()?;
            } else if instructions && self.random.one_in(2) {
                self.try_instruction()?;
            } else {
                self.try_hypercall()?;
            }
        }
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "a failed test shows what it printed: the seed")]
fn number_of(variable: &str, otherwise: u64) -> u64 {
    let number = env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise);
    println!("{variable}={number}");
    number
}

/// Runs random guests, and expects that enough of them live long enough to do something.
#[expect(clippy::print_stdout, reason = "a failed test shows what it printed: the seed")]
fn run(instructions: bool) {
    let limits = Limits { time: Duration::from_millis(300), ..Limits::default() };
    let (first, guests) = (number_of("PARAVANE_SEED", 1), number_of("PARAVANE_GUESTS", GUESTS));
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    let mut finished = 0;
    for seed in first..first + guests {
        let way = if seed % 2 == 0 { Way::Page } else { Way::Raw };
        let kernel = Program::assemble(&Setup { way, ..Setup::default() }, |p| {
            Generator::new(p, seed).run(instructions)
        });
        println!("seed {seed}");
        let outcome = kernel.run_within(&limits);
        assert_eq!(outcome.recount, Ok(()), "seed {seed}: {outcome}");
        let end = match &outcome.end {
            End::Crash(report) => {
                report.cause.to_string().split(" at ").next().unwrap_or_default().to_owned()
            }
            End::Shutdown(reason) => format!("{reason:?}"),
            End::BlockedForever => "blocked".to_owned(),
            End::Down => "down".to_owned(),
            End::TimedOut => "timed out".to_owned(),
        };
        finished += u64::from(matches!(outcome.end, End::Shutdown(ShutdownReason::Poweroff)));
        *ends.entry(end).or_default() += 1;
    }
    println!("{ends:#?}");
    assert!(finished * 20 >= guests, "of {guests} guests only {finished} got to their end");
}

#[test]
fn random_hypercalls_leave_every_frame_counted() {
    run(false);
}

#[test]
fn random_hypercalls_and_instructions_leave_every_frame_counted() {
    run(true);
}
