//! Instructions that emitted code may hold, and parts of the arena that it may write.

use core::mem::offset_of;

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use paravane_engine::VcpuContext;

use crate::state::{Layout, SHARED_SLOTS, State};
use crate::walk::Walk;

/// Flags beside the six that programs compute with.
const SYSTEM_FLAGS: u32 = RflagsBits::DF | RflagsBits::IF | RflagsBits::AC;

/// Whether an instruction may be emitted at all. `is_move` says that it is for a guest's MOVS or STOS.
pub(super) fn allowed(instruction: &Instruction, is_move: bool) -> Result<(), &'static str> {
    if instruction.is_privileged() || instruction.op_code().must_be_cpl0() {
        return Err("is privileged");
    }
    if instruction.is_stack_instruction() {
        return Err("uses the host's stack, which is not there");
    }
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {}
        FlowControl::IndirectBranch if instruction.is_jmp_near_indirect() => {}
        FlowControl::IndirectBranch
        | FlowControl::Return
        | FlowControl::Call
        | FlowControl::IndirectCall
        | FlowControl::Interrupt
        | FlowControl::XbeginXabortXend
        | FlowControl::Exception => return Err("transfers control in a way that the translator does not"),
    }
    if instruction.is_jmp_far() || instruction.is_jmp_far_indirect() {
        return Err("is a far jump");
    }
    if instruction.rflags_modified() & SYSTEM_FLAGS != 0 {
        return Err("changes flags that the host has a use for");
    }
    let is_special = |register: Register| {
        register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
    };
    let names_special = (0..instruction.op_count())
        .any(|op| instruction.op_kind(op) == OpKind::Register && is_special(instruction.op_register(op)));
    if names_special {
        return Err("names a segment or control register");
    }
    let copies = matches!(
        instruction.mnemonic(),
        Mnemonic::Movsb
            | Mnemonic::Movsw
            | Mnemonic::Movsd
            | Mnemonic::Movsq
            | Mnemonic::Stosb
            | Mnemonic::Stosw
            | Mnemonic::Stosd
            | Mnemonic::Stosq
    );
    if instruction.is_string_instruction() && !(is_move && copies) {
        return Err("is a string instruction outside a string move");
    }
    if is_of_the_system(instruction.mnemonic()) {
        return Err("asks or tells the host's system");
    }
    Ok(())
}

/// Instructions that are not privileged, and are for the system all the same.
fn is_of_the_system(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cpuid
            | Mnemonic::In
            | Mnemonic::Out
            | Mnemonic::Syscall
            | Mnemonic::Sysenter
            | Mnemonic::Rdfsbase
            | Mnemonic::Rdgsbase
            | Mnemonic::Wrfsbase
            | Mnemonic::Wrgsbase
            | Mnemonic::Rdpid
            | Mnemonic::Rdpkru
            | Mnemonic::Wrpkru
            | Mnemonic::Rdpmc
            | Mnemonic::Xgetbv
            | Mnemonic::Xsetbv
            | Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
            | Mnemonic::Sgdt
            | Mnemonic::Sidt
            | Mnemonic::Sldt
            | Mnemonic::Str
            | Mnemonic::Smsw
            | Mnemonic::Lar
            | Mnemonic::Lsl
            | Mnemonic::Verr
            | Mnemonic::Verw
            | Mnemonic::Getsec
            | Mnemonic::Enclu
            | Mnemonic::Enclv
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
            | Mnemonic::Vmfunc
            | Mnemonic::Umonitor
            | Mnemonic::Umwait
            | Mnemonic::Tpause
            | Mnemonic::Monitorx
            | Mnemonic::Mwaitx
            | Mnemonic::Senduipi
            | Mnemonic::Uiret
            | Mnemonic::Clui
            | Mnemonic::Stui
    )
}

/// Offsets and sizes in the state that emitted code writes.
fn fields() -> [(usize, usize); 7] {
    let context = offset_of!(State, context);
    let expected = offset_of!(State, walk) + offset_of!(Walk, expected_env);
    [
        // R14 and R15 of the guest.
        (context + offset_of!(VcpuContext, gprs) + 14 * 8, 16),
        (offset_of!(State, status), 4),
        (offset_of!(State, direction), 4),
        (offset_of!(State, branch), 4),
        (offset_of!(State, spill), 32),
        (offset_of!(State, shared), SHARED_SLOTS * 8),
        (expected, 12),
    ]
}

/// Whether emitted code may write these bytes of the arena.
pub(super) fn writable(layout: Layout, address: u32, size: u32) -> bool {
    fields().into_iter().any(|(offset, len)| {
        let start = layout.field(offset);
        start <= address && u64::from(address) + u64::from(size) <= u64::from(start) + len as u64
    })
}

/// Whether a write there changes what the guest sees.
pub(super) fn is_guest_state(layout: Layout, address: u32) -> bool {
    let [stolen, _, direction, ..] = fields();
    [stolen, direction].into_iter().any(|(offset, len)| {
        let start = layout.field(offset);
        (u64::from(start)..u64::from(start) + len as u64).contains(&u64::from(address))
    })
}
