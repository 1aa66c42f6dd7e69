//! `paravane explain hypercall-page`: what is in the page, how a guest gets it, how one does without.

use paravane_abi::{
    elfnote::{ElfNote, LEGACY_KEYS, LEGACY_SECTION},
    hypercall::Hypercall,
};
use paravane_x86::{
    cpuid::{FIRST_LEAF, HYPERVISOR_LEAVES},
    hypercall_page::{self, FILLER, Form, HYPERCALL_VECTOR, SLOT_BYTES, SLOTS, Slot},
    mode::{Guest, Mode},
    msr::{self, HYPERCALL_PAGE_MSR, Write},
    segments::HYPERVISOR_CS,
};

use crate::{
    commands::hypercall_page::{SOURCES, listing},
    output::page::{Block, Page},
};

/// The page for `modes`.
pub(super) fn page(modes: &[Mode]) -> Page {
    let mut page = Page::new(match modes {
        [mode] => format!("The hypercall page of a {mode}"),
        _ => "The hypercall page".to_owned(),
    });
    let iret = Hypercall::Iret;
    page.text(format!(
        "The hypercall page is a page of code that the hypervisor writes and the guest calls: {SLOTS} slots of \
         {SLOT_BYTES} bytes, slot n at byte n * {SLOT_BYTES}, makes hypercall n. In a 64-bit guest a slot executes \
         SYSCALL, in a 32-bit one INT {HYPERCALL_VECTOR:#04x}. All slots are filled, whether or not their number means \
         anything, and the rest of each is {FILLER:#04x} (int3). Slot {number}, {iret}, at byte {offset:#x}, has a form of \
         its own: it is jumped to, and does not return.",
        number = iret.number(),
        offset = iret.number() as usize * SLOT_BYTES,
    ));
    for guest in [Guest::Bits64, Guest::Bits32] {
        if let Some(&mode) = modes.iter().find(|mode| mode.guest() == guest) {
            page.heading(format!("A {guest}'s stubs"));
            stubs(&mut page, Form::of(mode));
        }
    }
    super::hypercalls::registers(&mut page, &super::abis(modes));
    routes(&mut page);
    if modes.contains(&Mode::Guest32On32Pae) || modes.contains(&Mode::Guest32On32NonPae) {
        page.heading("The removed form for a 32-bit kernel in ring 0");
        page.text(
            "32-bit Xen could be built to run its first domain in ring 0 (supervisor_mode_kernel). There a stub makes a \
             far call instead of an interrupt. The address is that of Xen's entry point and differed from build to \
             build; 0 stands for it here.",
        );
        stubs(&mut page, Form::FarCall { selector: HYPERVISOR_CS, offset: 0 });
    }
    super::see_also(
        &mut page,
        &["hypercall-page", "explain hypercalls", "explain iret", "explain transition", "explain elf-notes"],
    );
    page.sources(SOURCES.into_iter().chain(["xen/include/public/arch-x86/cpuid.h"]));
    page
}

/// An ordinary stub and that of iret.
fn stubs(page: &mut Page, form: Form) {
    let slots: Vec<Slot> = hypercall_page::slots(form)
        .filter(|slot| [Hypercall::XenVersion.number(), Hypercall::Iret.number()].contains(&slot.number))
        .collect();
    page.push(Block::Verbatim(listing(&slots.iter().collect::<Vec<_>>())));
}

fn routes(page: &mut Page) {
    page.heading("How a guest gets the page, or does without");
    let legacy = LEGACY_KEYS.iter().find(|row| row.note == ElfNote::HypercallPage);
    let mut rows = vec![(
        format!("ELF note {}", ElfNote::HypercallPage),
        format!("{} The domain builder asks Xen to fill it.", ElfNote::HypercallPage.meaning()),
    )];
    rows.extend(
        legacy
            .map(|row| (format!("{}= in {LEGACY_SECTION}", row.key), format!("the same by {}.", row.quirk))),
    );
    rows.extend(by_msr().map(|text| ("MSR".to_owned(), text)));
    rows.push((
        "Not at all".to_owned(),
        "What makes a hypercall is the instruction, executed in kernel mode, wherever it stands. 64-bit Linux has stubs \
         of its own and no note today; a guest with a page calls the same hypercalls."
            .to_owned(),
    ));
    page.fields(rows);
}

/// The hypervisor's CPUID leaf about the page, counted from the first.
const HYPERCALL_PAGE_LEAF: u32 = 2;

/// How a running guest asks for the page.
fn by_msr() -> Option<String> {
    let leaf = HYPERVISOR_LEAVES.iter().find(|leaf| leaf.leaf == HYPERCALL_PAGE_LEAF)?;
    let msr = msr::find(HYPERCALL_PAGE_MSR)?;
    let Write::Told(effect) = msr.write else { return None };
    Some(format!(
        "CPUID leaf {:#x} tells how: EAX ({}) and EBX ({}). The value for WRMSR: {effect}.",
        FIRST_LEAF + leaf.leaf,
        leaf.eax,
        leaf.ebx
    ))
}
