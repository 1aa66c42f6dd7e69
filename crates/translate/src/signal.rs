//! Faults that the host CPU raises in translated code.
//!
//! Most instructions run as they are, so the host CPU detects division by zero, undefined instructions, misaligned
//! vector operands, unmasked floating-point exceptions. The kernel turns these into SIGFPE, SIGILL, SIGSEGV,
//! SIGBUS and SIGTRAP. The handler, if the faulting instruction lies in the running engine's arena, notes where and
//! what, puts the guest's status flags away, and makes the thread continue in the leave stub; the run loop does the
//! rest. Any other fault goes to whoever handled the signal before.
//!
//! The guest's stack pointer is the host's while translated code runs. So the handlers use an alternate stack, and all
//! other signals are blocked on a thread that runs an engine: a handler without SA_ONSTACK would write to an
//! address of the guest's choice.
//!
//! The handler touches only: its own arguments, a thread-local pointer, the engine's `State`, and constants.
#![expect(unsafe_code, reason = "signal handlers, alternate stacks and ucontext exist only in C's terms")]

use core::cell::Cell;
use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::ptr;
use std::io;
use std::sync::OnceLock;

use crate::arena::Cpu;
use crate::flags;
use crate::state::{HostFault, State, part};

/// The signals that faults become.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// Bytes of a thread's alternate stack: the kernel's frame with AVX-512 state is about 4 KiB, debug builds are greedy.
const STACK_BYTES: usize = 64 << 10;

/// What a thread's handler must know.
#[derive(Clone, Copy)]
struct Running {
    state: *mut State,
    leave: u64,
}

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(Running { state: ptr::null_mut(), leave: 0 }) };
    static PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// Who handled the signals before.
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Installs the handlers, once per process.
pub(crate) fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let outcome = DONE.get_or_init(|| {
        let mut previous = [const { MaybeUninit::<libc::sigaction>::zeroed() }; SIGNALS.len()];
        for (signal, old) in SIGNALS.into_iter().zip(&mut previous) {
            // SAFETY: all-zero bytes are a valid `sigaction` (empty mask, default handler).
            let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: both pointers are to live values; the handler keeps to what this module's head lists.
            if unsafe { libc::sigaction(signal, &raw const action, old.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
            }
        }
        // SAFETY: zeroed bytes are valid, and `sigaction` filled them.
        PREVIOUS.get_or_init(|| previous.map(|old| unsafe { old.assume_init() }));
        Ok(())
    });
    (*outcome).map_err(io::Error::from_raw_os_error)
}

/// Makes the calling thread fit to run `cpu`, and names it to the handler.
pub(crate) fn prepare_thread(cpu: &mut Cpu) {
    let state: *mut State = cpu.state_mut();
    let leave = cpu.fault_entry();
    RUNNING.set(Running { state, leave: u64::from(leave) });
    if !PREPARED.replace(true) {
        prepare_once();
    }
}

fn prepare_once() {
    // The stack lives as long as the thread can get signals: until the process ends.
    let stack = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the stack is live, writable and of the stated size for ever.
    let set = unsafe { libc::sigaltstack(&raw const alternate, ptr::null_mut()) };
    debug_assert_eq!(set, 0, "sigaltstack with a sufficient stack");
    let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set.
    unsafe { libc::sigfillset(blocked.as_mut_ptr()) };
    for signal in SIGNALS {
        // SAFETY: the set is filled and the signal number valid.
        unsafe { libc::sigdelset(blocked.as_mut_ptr(), signal) };
    }
    // SAFETY: the set is initialised; only this thread's mask changes.
    let masked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), ptr::null_mut()) };
    debug_assert_eq!(masked, 0, "pthread_sigmask with a valid set");
}

/// The handler of all five signals.
extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let running = RUNNING.get();
    let user = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext to SA_SIGINFO handlers.
    let registers = unsafe { &mut (*user).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize].cast_unsigned();
    let base = running.state as usize as u64;
    let code = base + part::CODE as u64..base + part::TOTAL as u64;
    if running.state.is_null() || !code.contains(&rip) {
        pass_on(signal, info, context);
        return;
    }
    let vector = registers[libc::REG_TRAPNO as usize].cast_unsigned();
    let eflags = registers[libc::REG_EFL as usize].cast_unsigned();
    // SAFETY: the state outlives the engine's run, and the thread that runs it is in this handler, so nobody else
    // uses it.
    let state = unsafe { &mut *running.state };
    let address = registers[libc::REG_CR2 as usize].cast_unsigned();
    state.fault = HostFault { host_rip: rip, vector, pending: 1, address };
    state.kept_status = state.status;
    state.status = flags::pack(eflags);
    registers[libc::REG_RIP as usize] = running.leave.cast_signed();
    // Trap and direction flags must not follow into Rust code.
    registers[libc::REG_EFL as usize] &= !0x0004_0500;
}

/// A fault that is not the guest's.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = SIGNALS
        .iter()
        .position(|known| *known == signal)
        .and_then(|index| PREVIOUS.get().map(|previous| &previous[index]));
    let Some(previous) = previous else {
        restore_default(signal);
        return;
    };
    match previous.sa_sigaction {
        libc::SIG_DFL => restore_default(signal),
        libc::SIG_IGN => {}
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Action = extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: the process installed this address as an SA_SIGINFO handler.
            let action: Action = unsafe { core::mem::transmute(address) };
            action(signal, info, context);
        }
        address => {
            // SAFETY: the process installed this address as a plain handler.
            let action: extern "C" fn(c_int) = unsafe { core::mem::transmute(address) };
            action(signal);
        }
    }
}

/// Lets the fault happen again with nobody to catch it.
fn restore_default(signal: c_int) {
    // SAFETY: `signal` is a valid number; SIG_DFL needs no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
