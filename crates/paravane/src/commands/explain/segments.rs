//! `paravane explain segments`: the segment registers a guest starts with, and how it gets others.

use paravane_abi::{
    start_of_day::{INITIAL_VCPU, InitialValue},
    vm::SegmentBase,
};
use paravane_x86::{
    gdt,
    install::Route,
    mode::{Guest, Mode},
    segments::{self, FLAT_RING3_CS32, FLAT_RING3_SS64, Segment},
    selector::{Ring, Selector},
};

use super::{corrections, install, summary};
use crate::output::page::Page;

/// The page for `modes`.
pub(super) fn page(modes: &[Mode]) -> Page {
    let mut page = Page::new(match modes {
        [mode] => format!("Segments of a {mode}"),
        _ => "Segments of a Xen x86 PV guest".to_owned(),
    });
    page.text(opening(modes));
    for &mode in modes {
        page.heading(format!("{mode}: at the start"));
        segment_table(&mut page, &segments::initial_segments(mode));
        user_programs(&mut page, mode);
    }
    rings(&mut page, modes);
    page.heading("How a guest gets other segments");
    page.text(
        "A PV guest cannot execute LGDT or LLDT, nor write to a table that is in use. It asks Xen, which checks what it is \
         given; `paravane explain gdt` has the steps. Loading a segment register is then the CPU's ordinary instruction.",
    );
    install::routes(&mut page, modes);
    if modes.contains(&Mode::Guest64) {
        bases(&mut page);
        install::section(&mut page, Route::SegmentBase, modes);
    }
    corrections(&mut page);
    super::see_also(
        &mut page,
        &["explain gdt", "explain transition", "decode selector", "decode descriptor"],
    );
    page.sources([
        "xen/tools/libs/guest/xg_dom_x86.c (vcpu_x86_64, vcpu_x86_32)",
        "xen/include/public/arch-x86/xen-x86_64.h and xen-x86_32.h",
        "xen/arch/x86/desc.c",
        "AMD APM vol. 2, \"SYSCALL and SYSRET\"",
    ]);
    page
}

/// The answer in one paragraph.
fn opening(modes: &[Mode]) -> String {
    let mut sentences = Vec::new();
    for guest in [Guest::Bits64, Guest::Bits32] {
        let Some(&mode) = modes.iter().find(|mode| mode.guest() == guest) else {
            continue;
        };
        let (null, loaded): (Vec<Group>, Vec<Group>) = groups(&segments::initial_segments(mode))
            .into_iter()
            .partition(|group| group.first.selector.is_null());
        let loaded: Vec<String> =
            loaded.iter().map(|group| format!("{} = {}", group.registers, group.first.selector)).collect();
        let null: Vec<String> = null.into_iter().map(|group| group.registers).collect();
        let rest = if null.is_empty() { String::new() } else { format!("; {} are null", null.join(", ")) };
        sentences.push(format!(
            "A {guest} starts with {}, in ring {}{rest}.",
            super::enumerate(&loaded),
            gdt::kernel_ring(mode)
        ));
    }
    format!(
        "{} They are flat segments that Xen keeps in the reserved end of every guest's GDT, from \
         entry {} (selector {:#06x}) on. They are there before the guest has installed anything, so a guest can run \
         without a GDT of its own.",
        sentences.join(" "),
        gdt::FIRST_RESERVED_ENTRY,
        gdt::FIRST_RESERVED_BYTE,
    )
}

/// Neighbouring registers that hold the same.
struct Group {
    registers: String,
    first: Segment,
}

fn groups(segments: &[Segment]) -> Vec<Group> {
    segments
        .chunk_by(|left, right| left.selector == right.selector && left.note == right.note)
        .map(|alike| Group {
            registers: super::enumerate(
                &alike.iter().map(|segment| segment.register.to_string()).collect::<Vec<_>>(),
            ),
            first: alike[0],
        })
        .collect()
}

fn segment_table(page: &mut Page, segments: &[Segment]) {
    let groups = groups(segments);
    page.table(
        &["Register", "Selector", "GDT entry", "Descriptor", "Ring", "What it is and covers"],
        groups.iter().map(|Group { registers, first }| {
            let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            vec![
                registers.clone(),
                first.selector.to_string(),
                or_none(first.index.map(|index| index.to_string())),
                or_none(first.descriptor.map(|descriptor| descriptor.to_string())),
                or_none(first.ring.map(|ring| ring.to_string())),
                first.descriptor.map_or_else(|| "null: no segment".to_owned(), summary),
            ]
        }),
    );
    page.list(
        groups
            .iter()
            .filter_map(|Group { registers, first }| first.note.map(|note| format!("{registers}: {note}."))),
    );
}

fn user_programs(page: &mut Page, mode: Mode) {
    let user = segments::user_segments(mode);
    if user == segments::initial_segments(mode) {
        page.text(format!(
            "User programs run on the same segments. For 32-bit programs of a 64-bit guest Xen has CS = {FLAT_RING3_CS32} \
             (entry {}, {}), with {FLAT_RING3_SS64} for SS, DS and ES.",
            FLAT_RING3_CS32.index(),
            supplied(mode, FLAT_RING3_CS32),
        ));
    } else {
        page.text("User programs run on these, unless the guest gives them its own:");
        segment_table(page, &user);
    }
}

fn supplied(mode: Mode, selector: Selector) -> String {
    gdt::supplied_descriptor(mode, selector)
        .map_or_else(|| "nothing".to_owned(), |descriptor| descriptor.to_string())
}

fn rings(page: &mut Page, modes: &[Mode]) {
    page.heading("Rings");
    let mut rows = Vec::new();
    for guest in [Guest::Bits64, Guest::Bits32] {
        let Some(&mode) = modes.iter().find(|mode| mode.guest() == guest) else {
            continue;
        };
        let kernel = gdt::kernel_ring(mode);
        let apart = if kernel == Ring::R3 {
            "kernel and user share the ring: Xen remembers which of the two runs, and gives each its own page-table \
             root and GS base"
        } else {
            "kernel and user differ in ring, as on bare hardware; paging keeps ring 3 out of kernel pages"
        };
        rows.push(vec![guest.to_string(), kernel.to_string(), Ring::R3.to_string(), apart.to_owned()]);
    }
    page.table(&["Guest", "Kernel", "User", "What keeps them apart"], rows);
    page.text(format!(
        "Xen itself runs in ring {}. In whatever descriptor or selector a guest hands over, Xen raises DPL and RPL to at \
         least the guest kernel's ring.",
        Ring::R0
    ));
}

fn bases(page: &mut Page) {
    page.heading("FS and GS base (64-bit guests)");
    let zero: Vec<&str> = INITIAL_VCPU
        .iter()
        .filter(|row| row.name.contains("_base") && row.value.bits64 == Some(InitialValue::Fixed(0)))
        .map(|row| row.name)
        .collect();
    page.text(format!("{} start at 0. set_segment_base sets them:", zero.join(", ")));
    page.table(
        &["which", "Name", "Effect"],
        SegmentBase::ALL.iter().map(|base| {
            vec![base.number().to_string(), format!("SEGBASE_{base}"), base.meaning().to_owned()]
        }),
    );
}
