//! `paravane explain gdt`: whose entry is whose, what Xen's hold, and what Xen lets a guest install.

use paravane_x86::{
    descriptor::{Descriptor, Kind, SystemType, bits},
    gdt::{self, Access, Contents, ReservedEntry},
    install::Route,
    mode::{Guest, Mode},
    segments::{FLAT_RING1_CS, FLAT_RING3_CS64, HYPERVISOR_CS},
    selector::{Ring, Selector},
    submit::{Refusal, Submission, submit},
};

use super::{corrections, install, summary};
use crate::output::page::{Block, MapDiagram, MapRegion, Page, Tone};

/// The page for `modes`. With all modes, those of today's Xen are drawn and the others compared with them.
pub(super) fn page(modes: &[Mode]) -> Page {
    let mut page = Page::new(match modes {
        [mode] => format!("The GDT of a {mode}"),
        _ => "The GDT of a Xen x86 PV guest".to_owned(),
    });
    page.text(format!(
        "A guest owns the first {guest_pages} pages of its GDT, entries 0 to {last_guest}. Page {first_page} is Xen's: \
         entry {first}, byte {byte:#06x}, is its first, and the CPU's limit is always {limit:#06x}, the end of that page. \
         So every selector from {byte:#06x} on names something of Xen's, among it the flat segments on which guests run.",
        guest_pages = gdt::FIRST_RESERVED_PAGE,
        last_guest = gdt::FIRST_RESERVED_ENTRY - 1,
        first_page = gdt::FIRST_RESERVED_PAGE,
        first = gdt::FIRST_RESERVED_ENTRY,
        byte = gdt::FIRST_RESERVED_BYTE,
        limit = gdt::HARDWARE_LIMIT,
    ));
    let drawn: &[Mode] = if modes.len() == 1 { modes } else { &[Mode::Guest64, Mode::Guest32On64] };
    for &mode in drawn {
        page.heading(mode.to_string());
        page.push(Block::Map(map(mode)));
        names(&mut page, mode);
    }
    if modes.len() > 1 {
        comparison(&mut page);
    }
    guest_part(&mut page, modes);
    for &mode in drawn {
        submissions(&mut page, mode);
    }
    corrections(&mut page);
    super::see_also(&mut page, &["explain segments", "decode gdt", "decode descriptor", "encode descriptor"]);
    page.sources([
        "xen/include/public/arch-x86/xen.h (FIRST_RESERVED_GDT_*)",
        "xen/arch/x86/desc.c",
        "xen/arch/x86/include/asm/desc.h",
        "xen/arch/x86/pv/descriptor-tables.c",
        "xen/arch/x86/boot/x86_32.S of Xen 3.0 and 4.2",
    ]);
    page
}

fn map(mode: Mode) -> MapDiagram {
    let per_page = gdt::ENTRIES_PER_PAGE;
    let last = gdt::FIRST_RESERVED_PAGE - 1;
    let region = |page: u16, contents: String, label: String, tone| MapRegion {
        start: format!("{:#06x}", u32::from(page) * 4096),
        label,
        contents,
        tone,
    };
    let beyond = gdt::FIRST_RESERVED_PAGE + gdt::RESERVED_PAGES;
    let overview = vec![
        region(0, "page 0".to_owned(), "guest; entry 0 is the null descriptor".to_owned(), Tone::Address),
        region(
            1,
            format!("pages 1 to {last}"),
            format!("guest, up to entry {}", gdt::FIRST_RESERVED_ENTRY - 1),
            Tone::Address,
        ),
        region(
            gdt::FIRST_RESERVED_PAGE,
            format!("page {}", gdt::FIRST_RESERVED_PAGE),
            format!(
                "Xen, entries {} to {}; see below",
                gdt::FIRST_RESERVED_ENTRY,
                gdt::FIRST_RESERVED_ENTRY + gdt::RESERVED_PAGES * per_page - 1
            ),
            Tone::Privilege,
        ),
        region(
            beyond,
            format!("page {beyond}"),
            format!("nobody: beyond the limit {:#06x}", gdt::HARDWARE_LIMIT),
            Tone::Reserved,
        ),
    ];
    let detail = gdt::reserved_entries(mode).iter().map(|entry| MapRegion {
        start: format!("{} {}", entry.index(), entry.selector),
        label: entry.purpose.to_owned(),
        contents: contents(entry),
        tone: tone(entry),
    });
    MapDiagram {
        overview,
        detail: detail.collect(),
        detail_title: format!("Xen's page {}: entry, selector, descriptor", gdt::FIRST_RESERVED_PAGE),
    }
}

fn contents(entry: &ReservedEntry) -> String {
    match entry.contents {
        Contents::Hole | Contents::FormerlyUsed { .. } => "0".to_owned(),
        Contents::Fixed { current, .. } => current.to_string(),
        Contents::PerCpu { .. } => "differs per CPU".to_owned(),
        Contents::PerCpuWide => "16 bytes, per CPU".to_owned(),
    }
}

fn tone(entry: &ReservedEntry) -> Tone {
    match (entry.access, entry.contents) {
        (Access::Guest, _) => Tone::Flag,
        (Access::XenOnly, Contents::Hole | Contents::FormerlyUsed { .. }) => Tone::Reserved,
        (Access::XenOnly, Contents::Fixed { .. } | Contents::PerCpu { .. } | Contents::PerCpuWide) => {
            Tone::Privilege
        }
    }
}

/// The entries that have names, with what the drawing has no room for.
fn names(page: &mut Page, mode: Mode) {
    page.table(
        &["Selector", "Loadable", "What it is", "Older value", "Names in Xen's headers"],
        gdt::reserved_entries(mode).iter().filter(|entry| !entry.names.is_empty()).map(|entry| {
            let (what, older) = match entry.contents {
                Contents::Fixed { current, older } => (summary(current), older),
                Contents::FormerlyUsed { older } => ("nothing".to_owned(), Some(older)),
                Contents::Hole => ("nothing".to_owned(), None),
                Contents::PerCpu { fixed } => (fixed.kind().to_string(), None),
                Contents::PerCpuWide => ("system descriptor".to_owned(), None),
            };
            vec![
                entry.selector.to_string(),
                match entry.access {
                    Access::Guest => format!("yes, ring {}", entry.selector.rpl()),
                    Access::XenOnly => "no".to_owned(),
                },
                what,
                older.map_or_else(|| "-".to_owned(), |older| older.to_string()),
                entry.names.join(", "),
            ]
        }),
    );
}

/// Entry by entry, what each mode has there.
fn comparison(page: &mut Page) {
    page.heading("Every mode side by side");
    let rows: std::collections::BTreeSet<u16> = Mode::ALL
        .iter()
        .flat_map(|&mode| gdt::reserved_entries(mode))
        .flat_map(|entry| (0..entry.entry_count()).map(|part| entry.index() + part))
        .collect();
    page.table(
        &["Byte", "Entry", "Old", "64 on 64", "32 on 64", "32 on 32 PAE", "32 on 32 non-PAE"],
        rows.into_iter().map(|index| {
            let mut row = vec![
                format!("{:#06x}", index * 8),
                index.to_string(),
                gdt::old_index(index).map_or_else(String::new, |old| old.to_string()),
            ];
            row.extend(Mode::ALL.map(|mode| match gdt::reserved_entry(mode, index) {
                Some(entry) if entry.contents == Contents::PerCpuWide && entry.index() != index => {
                    "its upper half".to_owned()
                }
                Some(entry) => contents(entry),
                None => String::new(),
            }));
            row
        }),
    );
    page.text(format!(
        "The column Old has the number by which old texts call the entry: they count from {}, where Xen's entries began \
         until May 2005. Selectors 0xe02b and 0xe033 change places between the ABIs: data and code in a 64-bit guest, \
         code and data in a 32-bit one.",
        gdt::OLD_FIRST_RESERVED_ENTRY,
    ));
}

fn guest_part(page: &mut Page, modes: &[Mode]) {
    page.heading("The guest's own descriptors");
    page.text(format!(
        "A guest needs none. Until it calls set_gdt, its {} pages of the GDT read as zeros; the LDT, of up to {} entries, is \
         the guest's alone. A fault on the table's own memory reaches the guest as #GP(selector).",
        gdt::FIRST_RESERVED_PAGE,
        gdt::LDT_MAX_ENTRIES
    ));
    for route in [Route::SetGdt, Route::UpdateDescriptor, Route::SetLdt] {
        install::section(page, route, modes);
    }
}

/// What Xen makes of typical descriptors: the check itself is asked.
fn submissions(page: &mut Page, mode: Mode) {
    page.heading(format!("What Xen stores when a {} submits a descriptor", mode.guest()));
    page.text(
        "set_gdt, update_descriptor and the first use of an LDT page pass each descriptor through the same check. What \
         the guest reads back can therefore differ from what it wrote:",
    );
    page.table(
        &["Submitted", "What it is", "Stored", "Why"],
        examples(mode).into_iter().map(|descriptor| {
            let (stored, why) = match submit(mode, descriptor) {
                Submission::Refused(refusal) => ("-EINVAL".to_owned(), refusal.to_string()),
                Submission::Accepted { stored, changes, rule } if changes.is_empty() => {
                    debug_assert!(stored == descriptor, "no change, no difference");
                    ("as it is".to_owned(), rule.to_string())
                }
                Submission::Accepted { stored, changes, .. } => {
                    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
                    (stored.to_string(), changes.join("; "))
                }
            };
            vec![descriptor.to_string(), description(descriptor), stored, why]
        }),
    );
    let refused = SystemType::ALL.into_iter().filter(|&system| {
        matches!(submit(mode, system_descriptor(system)), Submission::Refused(Refusal::SystemType(_)))
    });
    page.text(format!(
        "Refused whatever they hold, while P is set: {}.",
        refused.map(SystemType::name).collect::<Vec<_>>().join("; ")
    ));
}

/// A present descriptor of that type and nothing else.
fn system_descriptor(system: SystemType) -> Descriptor {
    Descriptor(u64::from(system.type_bits()) << 40 | bits::P)
}

fn description(descriptor: Descriptor) -> String {
    if !descriptor.is_present() {
        return "anything with P = 0".to_owned();
    }
    match descriptor.kind() {
        Kind::System(SystemType::CallGate) => {
            // The mask leaves sixteen bits.
            let target = Selector((descriptor.0 >> 16 & 0xffff) as u16);
            format!("call gate to {target}, DPL {}", descriptor.dpl())
        }
        Kind::System(system) => system.name().to_owned(),
        Kind::Code(_) | Kind::Data(_) => format!("{}, DPL {}", summary(descriptor), descriptor.dpl()),
    }
}

/// One descriptor for each thing that the check does.
fn examples(mode: Mode) -> Vec<Descriptor> {
    let gate = |target: Selector| {
        let present =
            Descriptor(u64::from(SystemType::CallGate.type_bits()) << 40 | bits::P).with_dpl(Ring::R3);
        Descriptor(present.0 | u64::from(target.0) << 16)
    };
    let kernel_code = match mode.guest() {
        Guest::Bits64 => FLAT_RING3_CS64,
        Guest::Bits32 => FLAT_RING1_CS,
    };
    let supplied = |mode, selector| gdt::supplied_descriptor(mode, selector).unwrap_or_default();
    let code64 = supplied(Mode::Guest64, FLAT_RING3_CS64);
    let mut examples = vec![Descriptor::NULL, code64, code64.with_dpl(Ring::R0)];
    // What a 32-bit kernel has in its own GDT, and what the 32-bit hypervisors made of it.
    let flat32 = supplied(Mode::Guest32On64, FLAT_RING1_CS);
    examples.push(flat32.with_dpl(Ring::R0));
    match mode {
        Mode::Guest64 => {}
        Mode::Guest32On64 | Mode::Guest32On32Pae | Mode::Guest32On32NonPae => {
            examples.extend([flat32, supplied(Mode::Guest32On32Pae, FLAT_RING1_CS)]);
        }
    }
    examples.extend([gate(kernel_code), gate(HYPERVISOR_CS)]);
    examples.push(system_descriptor(SystemType::TssAvailable));
    examples
}
