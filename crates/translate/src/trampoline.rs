//! The way into translated code and back.
//!
//! [`enter`] saves what the C ABI makes it save, loads the guest's vector state, status flags and registers (its
//! stack pointer too: translated code keeps the guest's RSP in the host's), and jumps to `State::resume`. Translated
//! code leaves by jumping to a stub in the arena that puts the state's address into R14 and comes here, to
//! [`leave`]. The x87 unit then keeps the guest's state: Rust code does not use it, and FNINIT takes as long as all the rest
//! of an exit's entry code. While the guest runs there is no host stack: signals are delivered on an alternate one
//! (see `signal.rs`).
#![expect(unsafe_code, reason = "entry and exit need exact control over every register")]

use core::arch::naked_asm;
use core::mem::offset_of;

use paravane_engine::VcpuContext;

use crate::state::State;

const GPRS: usize = offset_of!(State, context) + offset_of!(VcpuContext, gprs);
const FPU: usize = offset_of!(State, context) + offset_of!(VcpuContext, fpu);

/// Runs translated code until it leaves.
///
/// # Safety
///
/// `state` is the initialised state at its place in an arena, and `state.resume` is the address of code that the
/// translator emitted into the same arena. The calling thread is prepared for signals (`signal::prepare_thread`).
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn enter(state: *mut State) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {host_rsp}], rsp",
        "mov eax, [rdi + {mask}]",
        "mov edx, [rdi + {mask} + 4]",
        "xrstor64 [rdi + {fpu}]",
        // OF from AL (1 + 127 overflows), the others from AH.
        "mov eax, [rdi + {status}]",
        "add al, 127",
        "sahf",
        "mov rax, [rdi + {gprs} + 0]",
        "mov rcx, [rdi + {gprs} + 8]",
        "mov rdx, [rdi + {gprs} + 16]",
        "mov rbx, [rdi + {gprs} + 24]",
        "mov rsp, [rdi + {gprs} + 32]",
        "mov rbp, [rdi + {gprs} + 40]",
        "mov rsi, [rdi + {gprs} + 48]",
        "mov r8, [rdi + {gprs} + 64]",
        "mov r9, [rdi + {gprs} + 72]",
        "mov r10, [rdi + {gprs} + 80]",
        "mov r11, [rdi + {gprs} + 88]",
        "mov r12, [rdi + {gprs} + 96]",
        "mov r13, [rdi + {gprs} + 104]",
        "mov r14, [rdi + {scratch}]",
        "mov r15, [rdi + {resume}]",
        "mov rdi, [rdi + {gprs} + 56]",
        "jmp r15",
        host_rsp = const offset_of!(State, host_rsp),
        mask = const offset_of!(State, xsave_mask),
        fpu = const FPU,
        status = const offset_of!(State, status),
        scratch = const offset_of!(State, scratch),
        resume = const offset_of!(State, resume),
        gprs = const GPRS,
    );
}

/// The second half of leaving: R14 is the state's address, its guest value and R15's are in the state already;
/// `scratch` and `reason` are stored.
///
/// # Safety
///
/// Not a function: only jumped to, from the leave stub, after [`enter`] on the same state.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "mov [r14 + {gprs} + 0], rax",
        "mov [r14 + {gprs} + 8], rcx",
        "mov [r14 + {gprs} + 16], rdx",
        "mov [r14 + {gprs} + 24], rbx",
        "mov [r14 + {gprs} + 32], rsp",
        "mov [r14 + {gprs} + 40], rbp",
        "mov [r14 + {gprs} + 48], rsi",
        "mov [r14 + {gprs} + 56], rdi",
        "mov [r14 + {gprs} + 64], r8",
        "mov [r14 + {gprs} + 72], r9",
        "mov [r14 + {gprs} + 80], r10",
        "mov [r14 + {gprs} + 88], r11",
        "mov [r14 + {gprs} + 96], r12",
        "mov [r14 + {gprs} + 104], r13",
        "mov rsp, [r14 + {host_rsp}]",
        "mov eax, [r14 + {mask}]",
        "mov edx, [r14 + {mask} + 4]",
        "xsaveopt64 [r14 + {fpu}]",
        "ldmxcsr [r14 + {mxcsr}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        host_rsp = const offset_of!(State, host_rsp),
        mask = const offset_of!(State, xsave_mask),
        fpu = const FPU,
        mxcsr = const offset_of!(State, host_mxcsr),
        gprs = const GPRS,
    );
}

/// The address of [`leave`], for the stub.
pub(crate) fn leave_address() -> u64 {
    leave as *const () as usize as u64
}
