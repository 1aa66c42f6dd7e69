//! The stack frame of the iret hypercall, and what becomes of each word.
//!
//! A PV guest cannot return to user mode by itself: it has no ring to change. So it lays down what IRET would
//! take, adds a flags word, and jumps to slot 23 of the hypercall page, which pushes RCX, R11 and RAX and
//! enters the hypervisor. From there every register has its final value except those in the frame.
//!
//! The flags word decides how the hypervisor leaves. With bit 8 (`VGCF_in_syscall`) it leaves by SYSRET: that
//! is quicker, but SYSRET needs RCX and R11 for itself and takes CS and SS from STAR, so four of the nine
//! words are thrown away. A guest may set the bit only where the program expects RCX and R11 to be lost, as
//! after a system call. Without it the hypervisor leaves by IRETQ and all nine words count.
//!
//! Sources: `xen/include/public/arch-x86/xen-x86_64.h` (`HYPERVISOR_iret`), `xen/arch/x86/pv/iret.c`,
//! `restore_all_guest` in `xen/arch/x86/x86_64/entry.S`.

use paravane_abi::layout::Layout;
use paravane_abi::vcpu_context::IretContext;
use serde::Serialize;

use crate::mode::Guest;

/// Who put a word of the frame there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pusher {
    /// The hypercall page's stub.
    Stub,
    /// The guest, before it jumps to the stub.
    Guest,
}

/// When the hypervisor reads a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Present {
    /// Always.
    Always,
    /// Only if the target is ring 2 or 3, as with the CPU's own IRET.
    OuterRing,
}

/// One word of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FrameWord {
    /// The register.
    pub name: &'static str,
    /// Bytes above the stack pointer at the hypercall.
    pub offset: u32,
    /// Who pushed it.
    pub pusher: Pusher,
    /// When it is there.
    pub present: Present,
    /// What the word says.
    pub meaning: &'static str,
    /// What the hypervisor does with it.
    pub effect: &'static str,
}

/// The row before the layout has given its offset and meaning.
struct Row {
    name: &'static str,
    pusher: Pusher,
    present: Present,
    effect: &'static str,
}

/// A row that is always present.
const fn always(name: &'static str, pusher: Pusher, effect: &'static str) -> Row {
    Row { name, pusher, present: Present::Always, effect }
}

/// A row that is read only on the way to an outer ring.
const fn outer(name: &'static str, effect: &'static str) -> Row {
    Row { name, pusher: Pusher::Guest, present: Present::OuterRing, effect }
}

/// The 64-bit frame, from low to high.
const ROWS_64: [Row; 9] = [
    always("rax", Pusher::Stub, "restored"),
    always("r11", Pusher::Stub, "restored; with bit 8 of flags dropped, and R11 becomes RFLAGS"),
    always("rcx", Pusher::Stub, "restored; with bit 8 of flags dropped, and RCX becomes RIP"),
    always("flags", Pusher::Guest, "bit 8, VGCF_in_syscall: leave by SYSRET; other bits are ignored"),
    always("rip", Pusher::Guest, "loaded; not canonical with bit 8: leave by IRETQ after all"),
    always(
        "cs",
        Pusher::Guest,
        "RPL 3: to user mode (the user root, user GS base; without a user root the domain is crashed); RPL \
         0 to 2: to kernel mode. Loaded with RPL 3. With bit 8 only its being 0xe023 counts: SYSRETL, else \
         SYSRETQ",
    ),
    always(
        "rflags",
        Pusher::Guest,
        "IF clear sets the event mask, IF set clears it; loaded with IF set, IOPL 0 and VM clear. With \
         assist architectural_iopl its IOPL becomes the virtual one",
    ),
    always("rsp", Pusher::Guest, "loaded"),
    always("ss", Pusher::Guest, "loaded with RPL 3; with bit 8 dropped, and SS comes from STAR"),
];

/// The 32-bit frame, from low to high.
const ROWS_32: [Row; 6] = [
    always("eax", Pusher::Stub, "restored"),
    always("eip", Pusher::Guest, "loaded"),
    always(
        "cs",
        Pusher::Guest,
        "loaded; RPL 1: the frame ends after eflags and the vCPU stays in the kernel; RPL 2 or 3: esp and ss \
         follow; RPL 0: the domain is crashed",
    ),
    always(
        "eflags",
        Pusher::Guest,
        "IF clear sets the event mask, IF set clears it; loaded with IF set and IOPL 0. VM set: 64-bit Xen \
         has no virtual-8086 mode and raises #GP there; 32-bit Xen took es, ds, fs and gs above the frame \
         too",
    ),
    outer("esp", "loaded; to ring 1 ESP is just moved past the frame"),
    outer("ss", "loaded"),
];

/// The frame of a guest, from low to high addresses.
///
/// ```
/// use paravane_x86::iret_frame::frame;
/// use paravane_x86::mode::Guest;
///
/// let cs = frame(Guest::Bits64).into_iter().find(|word| word.name == "cs");
/// assert_eq!(cs.map(|word| word.offset), Some(40));
/// ```
pub fn frame(guest: Guest) -> Vec<FrameWord> {
    let abi = guest.abi();
    let rows: &[Row] = match guest {
        Guest::Bits64 => &ROWS_64,
        Guest::Bits32 => &ROWS_32,
    };
    const LAYOUT: &Layout = IretContext::LAYOUT;
    rows.iter()
        .filter_map(|row| {
            let field = LAYOUT.field(row.name, abi)?;
            Some(FrameWord {
                name: row.name,
                offset: field.offset.get(abi)?,
                pusher: row.pusher,
                present: row.present,
                meaning: field.meaning,
                effect: row.effect,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall_page::{Form, Operation};

    #[test]
    fn every_word_of_the_layout_has_its_effect() {
        for guest in [Guest::Bits64, Guest::Bits32] {
            let names: Vec<&str> = frame(guest).iter().map(|word| word.name).collect();
            let fields: Vec<&str> =
                IretContext::LAYOUT.fields_of(guest.abi()).map(|field| field.name).collect();
            assert_eq!(names, fields);
        }
    }

    #[test]
    fn the_64_bit_frame_is_nine_words() {
        let offsets: Vec<(&str, u32)> =
            frame(Guest::Bits64).iter().map(|word| (word.name, word.offset)).collect();
        assert_eq!(
            offsets,
            [
                ("rax", 0),
                ("r11", 8),
                ("rcx", 16),
                ("flags", 24),
                ("rip", 32),
                ("cs", 40),
                ("rflags", 48),
                ("rsp", 56),
                ("ss", 64)
            ]
        );
    }

    #[test]
    fn the_stub_pushes_what_the_frame_says_it_pushes() {
        for (guest, form) in [(Guest::Bits64, Form::Syscall), (Guest::Bits32, Form::Int82)] {
            let mut pushed: Vec<&str> = form
                .stub(23)
                .iter()
                .filter_map(|instruction| match instruction.operation {
                    Operation::PushRcx => Some("rcx"),
                    Operation::PushR11 => Some("r11"),
                    Operation::PushRax => Some("rax"),
                    Operation::PushEax => Some("eax"),
                    Operation::Pushf
                    | Operation::Cli
                    | Operation::MovEax(_)
                    | Operation::Syscall
                    | Operation::Int82
                    | Operation::FarCall { .. }
                    | Operation::PopR11
                    | Operation::PopRcx
                    | Operation::Ret => None,
                })
                .collect();
            // The last push is the lowest address.
            pushed.reverse();
            let stub: Vec<&str> = frame(guest)
                .iter()
                .filter(|word| word.pusher == Pusher::Stub)
                .map(|word| word.name)
                .collect();
            assert_eq!(pushed, stub);
        }
    }

    #[test]
    fn to_ring_1_the_frame_ends_after_16_bytes() {
        let always = frame(Guest::Bits32).into_iter().filter(|word| word.present == Present::Always);
        assert_eq!(always.map(|word| word.offset + 4).max(), Some(16));
    }
}
