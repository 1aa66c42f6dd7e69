//! A harness that runs the same bytes on the real CPU and in the engine.
//!
//! Code, data and stack are mapped at the same addresses in this process and in the guest, so every address an
//! instruction computes or stores is the same in both. Natively the code ends with a jump to a stub; in the guest with
//! HLT. Faults are caught on both sides and compared like any other outcome.
#![expect(unsafe_code, reason = "loads every register of the real CPU and jumps")]
#![expect(clippy::unwrap_used, reason = "a harness that cannot set up has nothing to test")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random numbers are cut to size, addresses have 64 bits"
)]
#![expect(clippy::print_stdout, reason = "the seed, so that a failure can be repeated")]

pub(crate) mod generate;

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use paravane_abi::units::{MachAddr, Mfn, PAGE_SIZE};
use paravane_engine::{Engine as _, Exit, Segment, SegmentRegister, rflags};
use paravane_memory::Memory;
use paravane_translate::{Options, Translator};

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
/// Flags that are compared.
pub(crate) const FLAGS: u64 = rflags::STATUS | rflags::DF;

const FIRST: Mfn = Mfn(0x8000);
const AREA: usize = 4096;

/// Registers before or after a run.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct Cpu {
    pub(crate) area: [u8; AREA],
    pub(crate) gprs: [u64; 16],
    pub(crate) flags: u64,
    pub(crate) rip: u64,
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// At the end of the code.
    Done,
    /// A fault: vector and RIP.
    Fault(u64, u64),
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

#[repr(C, align(64))]
struct Native {
    cpu: Cpu,
    host_rsp: u64,
    mask: u64,
    vector: u64,
}

/// The registers of native runs, at an address that the entry code knows.
#[repr(transparent)]
struct Shared(UnsafeCell<Native>);

// SAFETY: only used under the machine's lock, and by the fault handler of the thread that holds it.
unsafe impl Sync for Shared {}

static NATIVE: Shared = Shared(UnsafeCell::new(Native {
    cpu: Cpu { area: [0; AREA], gprs: [0; 16], flags: 0, rip: 0 },
    host_rsp: 0,
    mask: 0,
    vector: u64::MAX,
}));

const GPRS: usize = offset_of!(Cpu, gprs);

#[unsafe(naked)]
unsafe extern "sysv64" fn native_enter() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {n} + {host}], rsp",
        "mov eax, [rip + {n} + {mask}]",
        "mov edx, [rip + {n} + {mask} + 4]",
        "xrstor64 [rip + {n}]",
        "push qword ptr [rip + {n} + {flags}]",
        "popfq",
        "mov rax, [rip + {n} + {g} + 0]",
        "mov rcx, [rip + {n} + {g} + 8]",
        "mov rdx, [rip + {n} + {g} + 16]",
        "mov rbx, [rip + {n} + {g} + 24]",
        "mov rsp, [rip + {n} + {g} + 32]",
        "mov rbp, [rip + {n} + {g} + 40]",
        "mov rsi, [rip + {n} + {g} + 48]",
        "mov rdi, [rip + {n} + {g} + 56]",
        "mov r8, [rip + {n} + {g} + 64]",
        "mov r9, [rip + {n} + {g} + 72]",
        "mov r10, [rip + {n} + {g} + 80]",
        "mov r11, [rip + {n} + {g} + 88]",
        "mov r12, [rip + {n} + {g} + 96]",
        "mov r13, [rip + {n} + {g} + 104]",
        "mov r14, [rip + {n} + {g} + 112]",
        "mov r15, [rip + {n} + {g} + 120]",
        "jmp qword ptr [rip + {n} + {rip_}]",
        n = sym NATIVE, host = const offset_of!(Native, host_rsp), mask = const offset_of!(Native, mask),
        flags = const offset_of!(Cpu, flags), rip_ = const offset_of!(Cpu, rip), g = const GPRS,
    );
}

#[unsafe(naked)]
unsafe extern "sysv64" fn native_exit() {
    naked_asm!(
        "mov [rip + {n} + {g} + 0], rax",
        "mov [rip + {n} + {g} + 8], rcx",
        "mov [rip + {n} + {g} + 16], rdx",
        "mov [rip + {n} + {g} + 24], rbx",
        "mov [rip + {n} + {g} + 32], rsp",
        "mov [rip + {n} + {g} + 40], rbp",
        "mov [rip + {n} + {g} + 48], rsi",
        "mov [rip + {n} + {g} + 56], rdi",
        "mov [rip + {n} + {g} + 64], r8",
        "mov [rip + {n} + {g} + 72], r9",
        "mov [rip + {n} + {g} + 80], r10",
        "mov [rip + {n} + {g} + 88], r11",
        "mov [rip + {n} + {g} + 96], r12",
        "mov [rip + {n} + {g} + 104], r13",
        "mov [rip + {n} + {g} + 112], r14",
        "mov [rip + {n} + {g} + 120], r15",
        "mov rsp, [rip + {n} + {host}]",
        "pushfq",
        "pop qword ptr [rip + {n} + {flags}]",
        "cld",
        "mov eax, [rip + {n} + {mask}]",
        "mov edx, [rip + {n} + {mask} + 4]",
        "xsave64 [rip + {n}]",
        "fninit",
        "push 0x1f80", "ldmxcsr [rsp]", "pop rax",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        n = sym NATIVE, host = const offset_of!(Native, host_rsp), mask = const offset_of!(Native, mask),
        flags = const offset_of!(Cpu, flags), g = const GPRS,
    );
}

extern "C" fn on_fault(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize].cast_unsigned();
    if !(CODE..CODE + CODE_PAGES * PAGE_SIZE).contains(&rip) {
        // SAFETY: resets the handler so that the fault ends the program.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the only thread that runs native code is the one in this handler.
    let native = unsafe { &mut *NATIVE.0.get() };
    native.vector = registers[libc::REG_TRAPNO as usize].cast_unsigned();
    native.cpu.rip = rip;
    registers[libc::REG_RIP as usize] = native_exit as *const () as i64;
}

/// The machine: native mappings, and the guest over its own memory.
pub(crate) struct Machine {
    pub(crate) engine: Translator,
    pub(crate) memory: Arc<Memory>,
    pub(crate) mask: u64,
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

/// Where the guest keeps what: frames of code, data, stack; tables from 64 on.
const CODE_FRAME: u64 = 1;
const DATA_FRAME: u64 = 8;
const STACK_FRAME: u64 = 24;
const TABLES: u64 = 64;

impl Machine {
    fn new() -> Self {
        map_native(CODE, CODE_PAGES);
        map_native(DATA, DATA_PAGES);
        map_native(STACK, STACK_PAGES);
        install_fault_handler();
        let memory = Arc::new(Memory::new(FIRST, 256).unwrap());
        let mut next = TABLES + 1;
        for (address, pages, first) in [
            (CODE, CODE_PAGES, CODE_FRAME),
            (DATA, DATA_PAGES, DATA_FRAME),
            (STACK, STACK_PAGES, STACK_FRAME),
        ] {
            for page in 0..pages {
                map_page(
                    &memory,
                    frame(TABLES),
                    address + page * PAGE_SIZE,
                    frame(first + page),
                    7,
                    &mut next,
                );
            }
        }
        let engine = Translator::new(Arc::clone(&memory), Options::default()).unwrap();
        let mask = engine.host().state_components();
        Self { engine, memory, mask }
    }

    /// Puts the engine's CPU into 64-bit user-like state with these registers.
    pub(crate) fn load(&mut self, cpu: &Cpu) {
        let xcr0 = self.mask;
        let context = self.engine.context_mut();
        context.gprs = cpu.gprs;
        context.rip = cpu.rip;
        context.rflags = cpu.flags | rflags::IF;
        context.kernel_root = frame(TABLES);
        context.xcr0 = xcr0;
        context.cr4.0 = 1 << 18 | 1 << 16;
        *context.segment_mut(SegmentRegister::Cs) = Segment::of_descriptor(0xe033, 0x00af_fb00_0000_ffff);
        *context.segment_mut(SegmentRegister::Ss) = Segment::of_descriptor(0xe02b, 0x00cf_f300_0000_ffff);
        context.fpu.legacy.copy_from_slice(&cpu.area[..512]);
        context.fpu.extended.copy_from_slice(&cpu.area[512..]);
    }

    /// Runs `code` on both and returns native, translated.
    pub(crate) fn both(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) -> (After, After) {
        (self.native(code, before, data, stack), self.translated(code, before, data, stack))
    }

    pub(crate) fn native(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) -> After {
        let mut bytes = code.to_vec();
        bytes.extend([0xff, 0x25, 0, 0, 0, 0]);
        bytes.extend((native_exit as *const () as u64).to_le_bytes());
        poke(before.rip, &bytes);
        poke(DATA, data);
        poke(STACK, stack);
        // SAFETY: the caller holds the machine's lock, so nobody else uses the static.
        let native = unsafe { &mut *NATIVE.0.get() };
        native.cpu = before.clone();
        native.cpu.flags |= 2;
        native.mask = self.mask;
        native.vector = u64::MAX;
        // SAFETY: the code only touches the mappings made for it, or faults into the handler.
        unsafe { native_enter() };
        // SAFETY: as above; taken anew, because the run wrote it.
        let native = unsafe { &mut *NATIVE.0.get() };
        let (cpu, vector) = (native.cpu.clone(), native.vector);
        let end = if vector == u64::MAX { End::Done } else { End::Fault(vector, cpu.rip) };
        After {
            cpu,
            end,
            data: peek(DATA, (DATA_PAGES * PAGE_SIZE) as usize),
            stack: peek(STACK, (STACK_PAGES * PAGE_SIZE) as usize),
        }
    }

    pub(crate) fn translated(&mut self, code: &[u8], before: &Cpu, data: &[u8], stack: &[u8]) -> After {
        let mut bytes = code.to_vec();
        // HLT.
        bytes.push(0xf4);
        self.memory.write(self.machine_address(before.rip), &bytes).unwrap();
        self.memory.write(self.machine_address(DATA), data).unwrap();
        self.memory.write(self.machine_address(STACK), stack).unwrap();
        self.load(before);
        let exit = self.engine.run();
        let end_rip = before.rip + code.len() as u64;
        let context = self.engine.context();
        let end = match exit {
            Exit::Privileged(_) if context.rip == end_rip => End::Done,
            Exit::Exception(exception) => End::Fault(u64::from(exception.vector), context.rip),
            Exit::PageFault(_) => End::Fault(14, context.rip),
            Exit::Hypercall
            | Exit::GuestSyscall(_)
            | Exit::SoftwareInterrupt(_)
            | Exit::Privileged(_)
            | Exit::LdtPage { .. }
            | Exit::Interrupted => End::Other(exit),
        };
        let mut area = [0; AREA];
        area[..512].copy_from_slice(&context.fpu.legacy);
        area[512..].copy_from_slice(&context.fpu.extended);
        let cpu = Cpu { area, gprs: context.gprs, flags: context.rflags, rip: context.rip };
        let mut data = vec![0; (DATA_PAGES * PAGE_SIZE) as usize];
        let mut stack = vec![0; (STACK_PAGES * PAGE_SIZE) as usize];
        self.memory.read(self.machine_address(DATA), &mut data).unwrap();
        self.memory.read(self.machine_address(STACK), &mut stack).unwrap();
        After { cpu, end, data, stack }
    }

    /// Machine address of one of the mapped addresses.
    pub(crate) fn machine_address(&self, address: u64) -> MachAddr {
        let (base, first) = match address {
            a if a >= STACK => (STACK, STACK_FRAME),
            a if a >= DATA => (DATA, DATA_FRAME),
            _ => (CODE, CODE_FRAME),
        };
        MachAddr(frame(first).0 * PAGE_SIZE + (address - base))
    }
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

fn map_native(address: u64, pages: u64) {
    // SAFETY: NOREPLACE refuses rather than overlap.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(address as usize),
            (pages * PAGE_SIZE) as usize,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(mapped as u64, address, "the test's addresses are free");
}

fn install_fault_handler() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: zeroed is a valid sigaction.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is initialised.
        let set = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
        assert_eq!(set, 0);
    }
}

fn poke(address: u64, bytes: &[u8]) {
    let to: *mut u8 = ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the tests' own mappings.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

fn peek(address: u64, len: usize) -> Vec<u8> {
    let from: *const u8 = ptr::with_exposed_provenance(address as usize);
    // SAFETY: the tests' own mappings.
    unsafe { core::slice::from_raw_parts(from, len) }.to_vec()
}

/// The seed to use: from the environment, so that a failure can be repeated. Printed.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PARAVANE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9);
    println!("PARAVANE_SEED={seed}");
    seed
}

/// A small generator with a printed seed.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 33) as u8).collect()
    }
}

impl Machine {
    /// Random vector state that XRSTOR accepts: x87 initial, everything else arbitrary.
    pub(crate) fn random_area(&self, random: &mut Random) -> [u8; AREA] {
        let mut area = [0; AREA];
        area.copy_from_slice(&random.bytes(AREA));
        area[..32].fill(0);
        area[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        area[32..160].fill(0);
        area[416..512].fill(0);
        area[512..576].fill(0);
        area[512..520].copy_from_slice(&self.mask.to_le_bytes());
        // Vectors 1 to 3 hold small numbers, for use as indices.
        for start in [160 + 16, 576 + 16, 1152 + 32] {
            for qword in area[start..start + if start == 1184 { 96 } else { 48 }].chunks_mut(8) {
                let small = random.below(400);
                qword.copy_from_slice(&small.to_le_bytes());
            }
        }
        area
    }
}

/// Compares two outcomes; `Err` says what differs.
pub(crate) fn compare(native: &After, translated: &After, ignored_flags: u64) -> Result<(), String> {
    if native.end != translated.end {
        return Err(format!("ends: native {:x?}, translated {:x?}", native.end, translated.end));
    }
    for (index, (n, t)) in native.cpu.gprs.iter().zip(&translated.cpu.gprs).enumerate() {
        if n != t {
            return Err(format!("register {index}: native {n:#x}, translated {t:#x}"));
        }
    }
    let compared = FLAGS & !ignored_flags;
    if matches!(native.end, End::Done) && (native.cpu.flags ^ translated.cpu.flags) & compared != 0 {
        return Err(format!(
            "flags: native {:#x}, translated {:#x}",
            native.cpu.flags & compared,
            translated.cpu.flags & compared
        ));
    }
    for (name, n, t) in
        [("data", &native.data, &translated.data), ("stack", &native.stack, &translated.stack)]
    {
        if n != t
            && let Some(at) = n.iter().zip(t).position(|(n, t)| n != t)
        {
            return Err(format!("{name}+{at:#x}: native {:#x}, translated {:#x}", n[at], t[at]));
        }
    }
    compare_vectors(&native.cpu.area, &translated.cpu.area)
}

fn compare_vectors(native: &[u8; AREA], translated: &[u8; AREA]) -> Result<(), String> {
    let in_use = |area: &[u8; AREA]| u64::from_le_bytes(area[512..520].try_into().unwrap());
    // Component, range: FIP and FDP (8..24) are the host's own.
    let ranges = [
        (0, 0..6),
        (0, 32..160),
        (1, 160..416),
        (1, 24..28),
        (2, 576..832),
        (5, 1088..1152),
        (6, 1152..1664),
        (7, 1664..2688),
    ];
    for (component, range) in ranges {
        let value = |area: &[u8; AREA]| {
            if in_use(area) >> component & 1 != 0 || range.start == 24 {
                area[range.clone()].to_vec()
            } else if component == 0 && range.start == 0 {
                vec![0x7f, 3, 0, 0, 0, 0]
            } else {
                vec![0; range.len()]
            }
        };
        let (n, t) = (value(native), value(translated));
        if let Some(at) = n.iter().zip(&t).position(|(n, t)| n != t) {
            return Err(format!(
                "state component {component} + {at}: native {:#x}, translated {:#x}",
                n[at], t[at]
            ));
        }
    }
    Ok(())
}
