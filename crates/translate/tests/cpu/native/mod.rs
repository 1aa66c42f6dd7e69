//! A harness that runs the same bytes on the real CPU and in the engine.
//!
//! Code, data and stack are mapped at the same addresses in this process and in the guest, so every address an
//! instruction computes or stores is the same in both. The guest's descriptor tables hold what Linux gives its
//! processes, so selectors are the same too. Natively the code ends with a jump to a stub; in the guest with HLT. Faults
//! are caught on both sides and compared like any other outcome: vector, error code, address, all registers, flags.
//!
//! All memory is mapped twice, above 4 GiB and below ([`low`]), the latter for 32-bit code.
#![expect(clippy::unwrap_used, reason = "a harness that cannot set up has nothing to test")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random numbers are cut to size, addresses have 64 bits"
)]

pub(crate) mod compare;
pub(crate) mod generate;
pub(crate) mod random;
pub(crate) mod real;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE};
use paravane_engine::{
    Engine as _, Exception, Exit, Interrupt, Segment, SegmentRegister, TlbFlush, rflags, vector,
};
use paravane_memory::Memory;
use paravane_translate::{Options, Translator};

use real::Access;

pub(crate) const CODE: u64 = 0x20_0000_0000;
pub(crate) const DATA: u64 = 0x20_0010_0000;
pub(crate) const STACK: u64 = 0x20_0020_0000;
pub(crate) const CODE_PAGES: u64 = 2;
pub(crate) const DATA_PAGES: u64 = 8;
/// Bytes of the data.
pub(crate) const DATA_BYTES: usize = 8 * 4096;
pub(crate) const STACK_PAGES: u64 = 2;
/// The stack pointer that cases start with.
pub(crate) const STACK_TOP: u64 = STACK + PAGE_SIZE + 64;
/// Where the second mapping of an address is.
const LOW_DISTANCE: u64 = CODE - 0x2000_0000;
/// A page of native code that leads to the exit; in reach of a near jump, and of a far one from 32-bit code.
const EXIT: u64 = CODE + 0x30_0000;

/// Linux's selectors for user programs.
pub(crate) const USER_CODE_32: u16 = 0x23;
pub(crate) const USER_DATA: u16 = 0x2b;
pub(crate) const USER_CODE: u16 = 0x33;

/// What Linux has at them, and at 0x7b.
const DESCRIPTORS: [(u16, u64); 4] = [
    (USER_CODE_32, 0x00cf_fb00_0000_ffff),
    (USER_DATA, 0x00cf_f300_0000_ffff),
    (USER_CODE, 0x00af_fb00_0000_ffff),
    (0x7b, 0x0040_f500_0000_0000),
];

const FIRST: Mfn = Mfn(0x8000);
pub(crate) const AREA: usize = 4096;

/// Whether code is 64-bit or 32-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    B64,
    B32,
}

/// The address of the same memory below 4 GiB.
pub(crate) const fn low(address: u64) -> u64 {
    address - LOW_DISTANCE
}

/// Registers before or after a run.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct Cpu {
    pub(crate) area: [u8; AREA],
    pub(crate) gprs: [u64; 16],
    pub(crate) flags: u64,
    pub(crate) rip: u64,
    /// By [`SegmentRegister`].
    pub(crate) selectors: [u64; 6],
    /// FS and GS.
    pub(crate) bases: [u64; 2],
}

impl Cpu {
    /// A 64-bit CPU with everything else zero or as after FNINIT.
    pub(crate) fn plain(rip: u64) -> Self {
        let mut area = [0; AREA];
        area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        let selectors = [USER_DATA, USER_CODE, USER_DATA, USER_DATA, 0, 0].map(u64::from);
        Self { area, gprs: [0; 16], flags: 0x202, rip, selectors, bases: [0; 2] }
    }

    pub(crate) fn bits(&self) -> Bits {
        if self.selectors[SegmentRegister::Cs as usize] == u64::from(USER_CODE) {
            Bits::B64
        } else {
            Bits::B32
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// At the end of the code.
    Done,
    /// A fault or trap.
    Fault {
        vector: u64,
        rip: u64,
        error: u64,
        /// CR2, for page faults.
        address: u64,
    },
    /// Anything else the engine said.
    Other(Exit),
}

/// State, outcome and memory after a run.
pub(crate) struct After {
    pub(crate) cpu: Cpu,
    pub(crate) end: End,
    pub(crate) data: Vec<u8>,
    pub(crate) stack: Vec<u8>,
}

/// The machine: native mappings, and the guest over its own memory.
pub(crate) struct Machine {
    pub(crate) engine: Translator,
    pub(crate) memory: Arc<Memory>,
    pub(crate) mask: u64,
    /// What data pages allow.
    protection: [Access; DATA_PAGES as usize],
    next_table: u64,
}

fn lock() -> &'static Mutex<Option<Machine>> {
    static LOCK: OnceLock<Mutex<Option<Machine>>> = OnceLock::new();
    LOCK.get_or_init(|| Mutex::new(None))
}

/// The one machine of a test program. Native runs use process-wide addresses, so tests take turns.
pub(crate) fn machine() -> MutexGuard<'static, Option<Machine>> {
    let mut guard = lock().lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(Machine::new());
    }
    guard
}

fn frame(index: u64) -> Mfn {
    Mfn(FIRST.0 + index)
}

/// Where the guest keeps what: frames of code, data, stack, descriptors; tables from 64 on.
const CODE_FRAME: u64 = 1;
const DATA_FRAME: u64 = 8;
const STACK_FRAME: u64 = 24;
const GDT_FRAME: u64 = 32;
const LDT_FRAME: u64 = 33;
const TABLES: u64 = 64;
/// Entries of the LDT.
pub(crate) const LDT_ENTRIES: u16 = 16;

/// Mapped addresses: first, pages, first frame.
const REGIONS: [(u64, u64, u64); 3] =
    [(CODE, CODE_PAGES, CODE_FRAME), (DATA, DATA_PAGES, DATA_FRAME), (STACK, STACK_PAGES, STACK_FRAME)];

impl Machine {
    fn new() -> Self {
        for (address, pages, _) in REGIONS {
            real::map(address, pages);
            real::map(low(address), pages);
        }
        for address in [EXIT, low(EXIT)] {
            real::map(address, 1);
            real::poke(address, &jump_to_exit());
        }
        let memory = Arc::new(Memory::new(FIRST, 256).unwrap());
        let engine = Translator::new(Arc::clone(&memory), Options::default()).unwrap();
        real::install_fault_handler();
        let mask = engine.host().state_components();
        let protection = [Access::All; DATA_PAGES as usize];
        let mut machine = Self { engine, memory, mask, protection, next_table: TABLES + 1 };
        for (address, pages, first) in REGIONS {
            for page in 0..pages {
                machine.map(address + page * PAGE_SIZE, frame(first + page), 7);
                machine.map(low(address) + page * PAGE_SIZE, frame(first + page), 7);
            }
        }
        for (selector, descriptor) in DESCRIPTORS {
            let at = MachAddr(frame(GDT_FRAME).0 * PAGE_SIZE + u64::from(selector & !7));
            machine.memory.store_u64(at, descriptor).unwrap();
        }
        machine
    }

    fn map(&mut self, address: u64, to: Mfn, flags: u64) {
        map_page(&self.memory, frame(TABLES), address, to, flags, &mut self.next_table);
    }

    /// Changes what a data page allows, on both sides and at both addresses.
    pub(crate) fn protect(&mut self, page: usize, access: Access) {
        if self.protection[page] == access {
            return;
        }
        self.protection[page] = access;
        let flags = match access {
            Access::All => 7,
            Access::ReadOnly => 5,
            Access::NoExecute => 1 << 63 | 7,
            Access::None => 0,
        };
        let address = DATA + page as u64 * PAGE_SIZE;
        for address in [address, low(address)] {
            real::protect(address, access);
            self.map(address, frame(DATA_FRAME + page as u64), flags);
            self.engine.flush_tlb(TlbFlush::Page(GuestVirt(address)));
        }
    }

    /// Sets up the LDT on both sides.
    pub(crate) fn set_ldt(&mut self, segments: &[real::UserSegment]) {
        for segment in segments {
            real::set_ldt(segment);
        }
        for (index, descriptor) in (0..).zip(real::ldt::<{ LDT_ENTRIES as usize }>()) {
            let at = MachAddr(frame(LDT_FRAME).0 * PAGE_SIZE + 8 * index);
            self.memory.store_u64(at, descriptor).unwrap();
        }
    }

    /// Puts the engine's CPU into 64-bit user-like state with these registers.
    pub(crate) fn load(&mut self, cpu: &Cpu) {
        let xcr0 = self.mask;
        let memory = Arc::clone(&self.memory);
        let context = self.engine.context_mut();
        context.gprs = cpu.gprs;
        context.rip = cpu.rip;
        context.rflags = cpu.flags | rflags::IF;
        context.kernel_root = frame(TABLES);
        // Whatever another test left.
        context.task_switched = false;
        context.xcr0 = xcr0;
        context.cr4.0 = 1 << 18 | 1 << 16;
        context.descriptors.gdt[0] = Some(frame(GDT_FRAME));
        context.descriptors.ldt[0] = Some(frame(LDT_FRAME));
        context.descriptors.ldt_entries = LDT_ENTRIES;
        for register in SegmentRegister::ALL {
            let selector = cpu.selectors[register as usize] as u16;
            let table = if selector & 4 == 0 { GDT_FRAME } else { LDT_FRAME };
            let at = MachAddr(frame(table).0 * PAGE_SIZE + u64::from(selector & !7));
            let descriptor = memory.load_u64(at).unwrap();
            *context.segment_mut(register) = match selector & !3 {
                0 => Segment::null(selector),
                _ => Segment::of_descriptor(selector, descriptor),
            };
        }
        if cpu.bits() == Bits::B64 {
            context.segment_mut(SegmentRegister::Fs).base = cpu.bases[0];
            context.segment_mut(SegmentRegister::Gs).base = cpu.bases[1];
        }
        context.fpu.legacy.copy_from_slice(&cpu.area[..512]);
        context.fpu.extended.copy_from_slice(&cpu.area[512..]);
    }

    /// Runs `code` on both and returns native, translated.
    pub(crate) fn both(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) -> (After, After) {
        self.forget_code();
        (self.native(code, before, data, stack), self.translated(code, before, data, stack))
    }

    pub(crate) fn native(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) -> After {
        let place = |address: u64| if before.rip < 1 << 32 { low(address) } else { address };
        let mut bytes = code.to_vec();
        match before.bits() {
            Bits::B64 => {
                bytes.push(0xe9);
                let end = before.rip + bytes.len() as u64 + 4;
                bytes.extend((place(EXIT).wrapping_sub(end) as u32).to_le_bytes());
            }
            Bits::B32 => {
                bytes.push(0xea);
                bytes.extend((low(EXIT) as u32).to_le_bytes());
                bytes.extend(USER_CODE.to_le_bytes());
            }
        }
        real::poke(before.rip, &bytes);
        self.open_all(place(DATA));
        real::poke(place(DATA), data);
        self.close_all(place(DATA));
        real::poke(place(STACK), stack);
        let (cpu, fault) = real::run(before, self.mask);
        let end = match fault.vector {
            u64::MAX => End::Done,
            vector => End::Fault {
                vector,
                rip: cpu.rip,
                error: fault.error,
                address: if vector == 14 { fault.address } else { 0 },
            },
        };
        self.open_all(place(DATA));
        let data = real::peek(place(DATA), DATA_BYTES);
        self.close_all(place(DATA));
        After { cpu, end, data, stack: real::peek(place(STACK), (STACK_PAGES * PAGE_SIZE) as usize) }
    }

    /// Forbids this process the memory that it has at the guest's addresses, or allows it again.
    pub(crate) fn hide_native(&self, hide: bool) {
        for (address, pages, first) in REGIONS {
            for page in 0..pages {
                let access = match first {
                    _ if hide => Access::None,
                    DATA_FRAME => self.protection[page as usize],
                    _ => Access::All,
                };
                real::protect(address + page * PAGE_SIZE, access);
                real::protect(low(address) + page * PAGE_SIZE, access);
            }
        }
    }

    fn open_all(&self, data: u64) {
        self.protect_natively(data, |_| Access::All);
    }

    fn close_all(&self, data: u64) {
        self.protect_natively(data, |access| access);
    }

    fn protect_natively(&self, data: u64, choose: impl Fn(Access) -> Access) {
        for (page, access) in self.protection.iter().enumerate() {
            if *access != Access::All {
                real::protect(data + page as u64 * PAGE_SIZE, choose(*access));
            }
        }
    }

    pub(crate) fn translated(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) -> After {
        self.fill(code, before, data, stack);
        let exit = self.engine.run();
        self.after(exit, before.rip + code.len() as u64)
    }

    /// Puts breakpoints all over the code, on both sides: a program that jumps out of itself would find what another left.
    fn forget_code(&self) {
        let traps = [0xcc; (CODE_PAGES * PAGE_SIZE) as usize];
        for address in [CODE, low(CODE)] {
            real::poke(address, &traps);
        }
        self.memory.write(self.machine_address(CODE), &traps).unwrap();
    }

    /// Puts a case into the guest, ready to run.
    pub(crate) fn fill(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) {
        let mut bytes = code.to_vec();
        // HLT.
        bytes.push(0xf4);
        self.memory.write(self.machine_address(before.rip), &bytes).unwrap();
        self.memory.write(self.machine_address(DATA), data).unwrap();
        self.memory.write(self.machine_address(STACK), stack).unwrap();
        self.load(before);
    }

    /// What the engine's CPU and memory are after an exit.
    pub(crate) fn after(&mut self, exit: Exit, end_rip: u64) -> After {
        let context = self.engine.context();
        let end = end(exit, context.rip, end_rip);
        let mut area = [0; AREA];
        area[..512].copy_from_slice(&context.fpu.legacy);
        area[512..].copy_from_slice(&context.fpu.extended);
        let mut selectors = [0; 6];
        for register in SegmentRegister::ALL {
            selectors[register as usize] = u64::from(context.segment(register).selector);
        }
        let bases = [SegmentRegister::Fs, SegmentRegister::Gs].map(|which| context.segment(which).base);
        let rip = match end {
            End::Fault { rip, .. } => rip,
            End::Done | End::Other(_) => context.rip,
        };
        let cpu = Cpu { area, gprs: context.gprs, flags: context.rflags, rip, selectors, bases };
        let mut data = vec![0; DATA_BYTES];
        let mut stack = vec![0; (STACK_PAGES * PAGE_SIZE) as usize];
        self.memory.read(self.machine_address(DATA), &mut data).unwrap();
        self.memory.read(self.machine_address(STACK), &mut stack).unwrap();
        After { cpu, end, data, stack }
    }

    /// Machine address of one of the mapped addresses.
    pub(crate) fn machine_address(&self, address: u64) -> MachAddr {
        let address = if address < 1 << 32 { address + LOW_DISTANCE } else { address };
        let (base, first) = match address {
            a if a >= STACK => (STACK, STACK_FRAME),
            a if a >= DATA => (DATA, DATA_FRAME),
            _ => (CODE, CODE_FRAME),
        };
        MachAddr(frame(first).0 * PAGE_SIZE + (address - base))
    }
}

/// An exit in the terms of a native fault.
fn end(exit: Exit, rip: u64, end_rip: u64) -> End {
    let fault = |vector: u8, rip, error: u32, address| End::Fault {
        vector: u64::from(vector),
        rip,
        error: u64::from(error),
        address,
    };
    match exit {
        Exit::Privileged(_) if rip == end_rip => End::Done,
        // In ring 3 with nobody to emulate it.
        Exit::Privileged(_) => fault(vector::GENERAL_PROTECTION, rip, 0, 0),
        Exit::Exception(Exception { vector, error_code }) => fault(vector, rip, error_code.unwrap_or(0), 0),
        Exit::PageFault(page) => fault(vector::PAGE_FAULT, rip, page.code.0, page.address),
        // Linux lets programs reach these gates; any other is #GP with the gate's number.
        Exit::SoftwareInterrupt(Interrupt { vector, next_rip }) => match vector {
            3 | 4 => fault(vector, next_rip, 0, 0),
            _ => fault(vector::GENERAL_PROTECTION, rip, u32::from(vector) << 3 | 2, 0),
        },
        Exit::Hypercall | Exit::GuestSyscall(_) | Exit::LdtPage { .. } | Exit::Interrupted => {
            End::Other(exit)
        }
    }
}

/// `jmp [rip + 2]` to the native exit, whose address is aligned: alignment checks may be on.
fn jump_to_exit() -> Vec<u8> {
    let mut bytes = vec![0xff, 0x25, 2, 0, 0, 0, 0x90, 0x90];
    bytes.extend(real::exit_address().to_le_bytes());
    bytes
}

/// Maps one page in four-level tables, taking frames for tables from `next`.
pub(crate) fn map_page(memory: &Memory, root: Mfn, address: u64, to: Mfn, flags: u64, next: &mut u64) {
    let mut table = root;
    for level in (1..4).rev() {
        let at = MachAddr(table.0 * PAGE_SIZE + (address >> (12 + 9 * level) & 511) * 8);
        let entry = memory.load_u64(at).unwrap();
        table = if entry & 1 == 0 {
            let made = frame(*next);
            *next += 1;
            memory.store_u64(at, made.0 << 12 | 7).unwrap();
            made
        } else {
            Mfn(entry >> 12 & 0xff_ffff_ffff)
        };
    }
    memory.store_u64(MachAddr(table.0 * PAGE_SIZE + (address >> 12 & 511) * 8), to.0 << 12 | flags).unwrap();
}
