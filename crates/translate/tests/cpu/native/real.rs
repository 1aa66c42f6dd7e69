//! The real CPU's side: every register is loaded, the code runs in this very process, every register is saved.
//!
//! Entry is by IRETQ, which loads CS, SS, RSP, RFLAGS and RIP at once: so code can start with the trap flag set, and
//! in a 32-bit segment (a 64-bit Linux process may use selector 0x23). FS and GS are the test's while its code runs,
//! so the fault handler first gives this thread its own back; only then may Rust run.
#![expect(unsafe_code, reason = "loads every register of the real CPU and jumps")]

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr;

use paravane_abi::units::PAGE_SIZE;

use super::{AREA, Cpu, USER_CODE};

/// Registers, and what the entry and exit code keep for themselves.
#[repr(C, align(64))]
struct Native {
    cpu: Cpu,
    host_rsp: u64,
    mask: u64,
    fault: Fault,
    /// Whether the test's code runs: its FS and GS are loaded.
    running: u64,
    /// Whether FS and GS bases can be set without the kernel.
    has_bases: u64,
    host_bases: [u64; 2],
    previous: u64,
}

/// A fault as the kernel reports it. Vector `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Fault {
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) address: u64,
}

const NO_FAULT: Fault = Fault { vector: u64::MAX, error: 0, address: 0 };

/// The registers of native runs, at an address that the entry code knows.
#[repr(transparent)]
struct Shared(UnsafeCell<Native>);

// SAFETY: only used under the machine's lock, and by the fault handler of the thread that holds it.
unsafe impl Sync for Shared {}

static NATIVE: Shared = Shared(UnsafeCell::new(Native {
    cpu: Cpu { area: [0; AREA], gprs: [0; 16], flags: 0, rip: 0, selectors: [0; 6], bases: [0; 2] },
    host_rsp: 0,
    mask: 0,
    fault: NO_FAULT,
    running: 0,
    has_bases: 0,
    host_bases: [0; 2],
    previous: 0,
}));

const GPRS: usize = offset_of!(Cpu, gprs);
const SELECTORS: usize = offset_of!(Cpu, selectors);
const BASES: usize = offset_of!(Cpu, bases);

#[unsafe(naked)]
unsafe extern "sysv64" fn native_enter() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {n} + {host}], rsp",
        "mov eax, [rip + {n} + {mask}]",
        "mov edx, [rip + {n} + {mask} + 4]",
        "xrstor64 [rip + {n}]",
        "push qword ptr [rip + {n} + {s} + 16]",
        "push qword ptr [rip + {n} + {g} + 32]",
        "push qword ptr [rip + {n} + {flags}]",
        "push qword ptr [rip + {n} + {s} + 8]",
        "push qword ptr [rip + {n} + {rip_}]",
        "cmp dword ptr [rip + {n} + {has}], 0",
        "je 2f",
        "rdfsbase rax",
        "mov [rip + {n} + {hb}], rax",
        "rdgsbase rax",
        "mov [rip + {n} + {hb} + 8], rax",
        "mov dword ptr [rip + {n} + {running}], 1",
        "mov eax, [rip + {n} + {s} + 32]",
        "mov fs, eax",
        "mov eax, [rip + {n} + {s} + 40]",
        "mov gs, eax",
        "cmp dword ptr [rip + {n} + {s} + 8], 0x33",
        "jne 2f",
        "mov rax, [rip + {n} + {b}]",
        "wrfsbase rax",
        "mov rax, [rip + {n} + {b} + 8]",
        "wrgsbase rax",
        "2:",
        "mov dword ptr [rip + {n} + {running}], 1",
        "mov eax, [rip + {n} + {s} + 0]",
        "mov es, eax",
        "mov eax, [rip + {n} + {s} + 24]",
        "mov ds, eax",
        "mov rax, [rip + {n} + {g} + 0]",
        "mov rcx, [rip + {n} + {g} + 8]",
        "mov rdx, [rip + {n} + {g} + 16]",
        "mov rbx, [rip + {n} + {g} + 24]",
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
        "iretq",
        n = sym NATIVE, host = const offset_of!(Native, host_rsp), mask = const offset_of!(Native, mask),
        flags = const offset_of!(Cpu, flags), rip_ = const offset_of!(Cpu, rip), g = const GPRS,
        s = const SELECTORS, b = const BASES, hb = const offset_of!(Native, host_bases),
        has = const offset_of!(Native, has_bases), running = const offset_of!(Native, running),
    );
}

#[unsafe(naked)]
unsafe extern "sysv64" fn native_exit() {
    naked_asm!(
        "mov [rip + {n} + {g} + 32], rsp",
        "mov rsp, [rip + {n} + {host}]",
        "pushfq",
        // Trap, alignment and direction flags must not follow into Rust.
        "push 2",
        "popfq",
        "mov [rip + {n} + {g} + 0], rax",
        "mov [rip + {n} + {g} + 8], rcx",
        "mov [rip + {n} + {g} + 16], rdx",
        "mov [rip + {n} + {g} + 24], rbx",
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
        "pop rcx",
        "cmp dword ptr [rip + {n} + {running}], 0",
        // A fault's handler has recorded flags, selectors and bases.
        "je 2f",
        "mov [rip + {n} + {flags}], rcx",
        "call {release}",
        "2:",
        "mov eax, [rip + {n} + {mask}]",
        "mov edx, [rip + {n} + {mask} + 4]",
        "xsave64 [rip + {n}]",
        "fninit",
        "push 0x1f80", "ldmxcsr [rsp]", "pop rax",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        n = sym NATIVE, host = const offset_of!(Native, host_rsp), mask = const offset_of!(Native, mask),
        flags = const offset_of!(Cpu, flags), g = const GPRS,
        running = const offset_of!(Native, running), release = sym release,
    );
}

/// Records segment registers and gives the thread its own back. Clobbers RAX only.
#[unsafe(naked)]
unsafe extern "sysv64" fn release() {
    naked_asm!(
        "mov eax, es",
        "mov [rip + {n} + {s} + 0], rax",
        "mov eax, ds",
        "mov [rip + {n} + {s} + 24], rax",
        "mov eax, fs",
        "mov [rip + {n} + {s} + 32], rax",
        "mov eax, gs",
        "mov [rip + {n} + {s} + 40], rax",
        "cmp dword ptr [rip + {n} + {has}], 0",
        "je 2f",
        "rdfsbase rax",
        "mov [rip + {n} + {b}], rax",
        "rdgsbase rax",
        "mov [rip + {n} + {b} + 8], rax",
        "xor eax, eax",
        "mov fs, eax",
        "mov gs, eax",
        "mov rax, [rip + {n} + {hb}]",
        "wrfsbase rax",
        "mov rax, [rip + {n} + {hb} + 8]",
        "wrgsbase rax",
        "2:",
        "mov dword ptr [rip + {n} + {running}], 0",
        "ret",
        n = sym NATIVE, s = const SELECTORS, b = const BASES, hb = const offset_of!(Native, host_bases),
        has = const offset_of!(Native, has_bases), running = const offset_of!(Native, running),
    );
}

/// The signal handler: a fault of the test's code goes to [`on_fault`], any other to who was there before.
#[unsafe(naked)]
unsafe extern "sysv64" fn fault_entry() {
    naked_asm!(
        "cmp dword ptr [rip + {n} + {running}], 0",
        "jne 2f",
        "jmp qword ptr [rip + {n} + {previous}]",
        "2:",
        // The kernel leaves AC as the test's code had it.
        "push 2",
        "popfq",
        "call {release}",
        "jmp {on_fault}",
        n = sym NATIVE, running = const offset_of!(Native, running),
        previous = const offset_of!(Native, previous), release = sym release, on_fault = sym on_fault,
    );
}

extern "sysv64" fn on_fault(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let get = |index: i32| registers[usize::try_from(index).unwrap_or(0)].cast_unsigned();
    // SAFETY: the only thread that runs native code is the one in this handler.
    let native = unsafe { &mut *NATIVE.0.get() };
    native.fault =
        Fault { vector: get(libc::REG_TRAPNO), error: get(libc::REG_ERR), address: get(libc::REG_CR2) };
    native.cpu.rip = get(libc::REG_RIP);
    native.cpu.flags = get(libc::REG_EFL);
    let selectors = get(libc::REG_CSGSFS);
    native.cpu.selectors[1] = selectors & 0xffff;
    native.cpu.selectors[2] = selectors >> 48;
    // Continue in 64-bit code, on the flat stack segment.
    let flat = selectors & 0xffff_ffff_0000 | u64::from(USER_CODE) | 0x2b << 48;
    registers[libc::REG_CSGSFS as usize] = flat.cast_signed();
    registers[libc::REG_EFL as usize] = 0x202;
    registers[libc::REG_RIP as usize] = native_exit as *const () as i64;
}

/// Runs from `cpu` until its code reaches [`exit_address`] or faults.
pub(crate) fn run(cpu: &Cpu, mask: u64) -> (Cpu, Fault) {
    // SAFETY: the caller holds the machine's lock, so nobody else uses the static.
    let native = unsafe { &mut *NATIVE.0.get() };
    native.cpu = cpu.clone();
    native.cpu.flags |= 0x202;
    native.mask = mask;
    native.fault = NO_FAULT;
    // SAFETY: the code only touches the mappings made for it, or faults into the handler.
    unsafe { native_enter() };
    // SAFETY: as above; taken anew, because the run wrote it.
    let native = unsafe { &*NATIVE.0.get() };
    (native.cpu.clone(), native.fault)
}

/// Whether FS and GS bases can be part of a case.
pub(crate) fn has_bases() -> bool {
    // SAFETY: reads a value the kernel gave the process.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

/// Where native code ends.
pub(crate) fn exit_address() -> u64 {
    native_exit as *const () as u64
}

pub(crate) fn map(address: u64, pages: u64) {
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

/// Takes a mapping of the tests away again.
pub(crate) fn unmap(address: u64, pages: u64) {
    let start = ptr::without_provenance_mut(address as usize);
    // SAFETY: mapped by `map`, and used through no reference.
    let done = unsafe { libc::munmap(start, (pages * PAGE_SIZE) as usize) };
    assert_eq!(done, 0);
}

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    All,
    ReadOnly,
    /// Everything else.
    NoExecute,
    None,
}

pub(crate) fn protect(address: u64, access: Access) {
    let allowed = match access {
        Access::All => libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        Access::ReadOnly => libc::PROT_READ | libc::PROT_EXEC,
        Access::NoExecute => libc::PROT_READ | libc::PROT_WRITE,
        Access::None => libc::PROT_NONE,
    };
    // SAFETY: one of the tests' own pages.
    let set = unsafe { libc::mprotect(ptr::without_provenance_mut(address as usize), 4096, allowed) };
    assert_eq!(set, 0);
}

/// Installs the handler above whatever handles the signals now.
pub(crate) fn install_fault_handler() {
    let mut previous = 0;
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: zeroed is a valid sigaction.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = fault_entry as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: zeroed is a valid sigaction.
        let mut old: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: both are initialised.
        let set = unsafe { libc::sigaction(signal, &raw const action, &raw mut old) };
        assert_eq!(set, 0);
        assert!(previous == 0 || previous == old.sa_sigaction, "the engine has one handler for all");
        previous = old.sa_sigaction;
    }
    // SAFETY: the caller holds the machine's lock, so nobody else uses the static.
    let native = unsafe { &mut *NATIVE.0.get() };
    native.previous = previous as u64;
    native.has_bases = u64::from(has_bases());
}

pub(crate) fn poke(address: u64, bytes: &[u8]) {
    let to: *mut u8 = ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the tests' own mappings.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

pub(crate) fn peek(address: u64, len: usize) -> Vec<u8> {
    let from: *const u8 = ptr::with_exposed_provenance(address as usize);
    // SAFETY: the tests' own mappings.
    unsafe { core::slice::from_raw_parts(from, len) }.to_vec()
}

/// A segment as modify_ldt(2) takes it: entry, base, limit, flags.
pub(crate) type UserSegment = [u32; 4];

/// Sets an entry of this process's LDT.
pub(crate) fn set_ldt(segment: &UserSegment) {
    const WRITE: i32 = 0x11;
    // SAFETY: the kernel reads the 16 bytes of a `user_desc`.
    let set = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, segment.as_ptr(), size_of_val(segment)) };
    assert_eq!(set, 0, "the host's kernel lets programs set up an LDT");
}

/// This process's LDT, as the CPU sees it.
pub(crate) fn ldt<const ENTRIES: usize>() -> [u64; ENTRIES] {
    const READ: i32 = 0;
    let mut entries = [0_u64; ENTRIES];
    // SAFETY: the kernel writes no more than the array's bytes.
    unsafe { libc::syscall(libc::SYS_modify_ldt, READ, entries.as_mut_ptr(), size_of_val(&entries)) };
    entries
}
