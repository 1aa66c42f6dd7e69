//! `paravane explain iret`: the hypercall by which a guest kernel returns to a program, or to itself.

use paravane_abi::{hypercall::Hypercall, vcpu_context::ContextFlag};
use paravane_x86::{
    hypercall_page::{self, Form, SLOT_BYTES, Slot},
    iret_frame::{self, Present, Pusher},
    mode::{Guest, Mode},
};

use crate::{
    commands::hypercall_page::listing,
    output::page::{Block, Page},
};

/// The page for `modes`.
pub(super) fn page(modes: &[Mode]) -> Page {
    let number = Hypercall::Iret.number();
    let mut page = Page::new(format!("Hypercall {number}: {}", Hypercall::Iret));
    let flag = ContextFlag::InSyscall;
    page.text(format!(
        "Hypercall {number} takes the place of the instruction IRET: by it a guest kernel returns to a program, or to \
         itself, and sets its event mask in the same step. It takes no arguments in registers: what to load lies on the \
         stack, in the frame below. The kernel pushes its part and jumps to slot {number} of the hypercall page, byte \
         {offset:#x}, which pushes the rest and does not return. (Every other slot is called.)",
        offset = number as usize * SLOT_BYTES,
    ));
    for guest in [Guest::Bits64, Guest::Bits32] {
        let Some(&mode) = modes.iter().find(|mode| mode.guest() == guest) else {
            continue;
        };
        page.heading(format!("A {guest}'s frame, from low to high"));
        frame(&mut page, guest);
        let slots: Vec<Slot> =
            hypercall_page::slots(Form::of(mode)).filter(|slot| slot.number == number).collect();
        page.push(Block::Verbatim(listing(&slots.iter().collect::<Vec<_>>())));
        match guest {
            Guest::Bits64 => page.text(format!(
                "Bit {} of flags, {flag}, is for the way back from a system call: Xen leaves by SYSRET, which is quicker \
                 but takes CS and SS from STAR, RIP from RCX and RFLAGS from R11. Without it Xen leaves by IRETQ, and all \
                 nine words count. A guest kernel that executes IRETQ itself stays in kernel mode, whatever RPL its CS \
                 asks for: both are ring 3 to the CPU.",
                flag.number(),
            )),
            Guest::Bits32 => page.text(
                "A 32-bit kernel may use the instruction IRET too: it runs in ring 1, and the CPU checks the return to ring \
                 3. But IRET leaves the event mask alone: such a kernel writes the mask first, and copes with an event between \
                 the two.",
            ),
        }
    }
    page.heading("Events");
    page.text(
        "A PV guest's interrupt flag is the byte evtchn_upcall_mask, and IF in the frame stands for it: when the \
         hypercall has set or cleared the mask, events that are pending are delivered before the next instruction of \
         the target. The CPU's own IF is always set while a guest runs.",
    );
    page.text(
        "A frame that cannot be read, and a return to user mode before there is a user page-table root, end the domain.",
    );
    super::see_also(&mut page, &["explain transition", "explain hypercall-page", "explain segments"]);
    page.sources([
        "xen/include/public/arch-x86/xen-x86_64.h (HYPERVISOR_iret)",
        "xen/arch/x86/pv/iret.c",
        "xen/arch/x86/x86_64/entry.S (restore_all_guest)",
    ]);
    page
}

fn frame(page: &mut Page, guest: Guest) {
    page.table(
        &["Offset", "Word", "Pushed by", "What becomes of it"],
        iret_frame::frame(guest).into_iter().map(|word| {
            let mut effect = word.effect.to_owned();
            if word.present == Present::OuterRing {
                effect.push_str(" (only there if CS asks for ring 2 or 3)");
            }
            vec![
                word.offset.to_string(),
                word.name.to_owned(),
                match word.pusher {
                    Pusher::Stub => "the page's stub",
                    Pusher::Guest => "the kernel",
                }
                .to_owned(),
                effect,
            ]
        }),
    );
}
