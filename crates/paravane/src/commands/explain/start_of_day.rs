//! `paravane explain start-of-day`: what a guest finds when it starts.

use std::fmt::Write as _;

use paravane_abi::{
    grant_table::{RESERVED_CONSOLE, RESERVED_ENTRIES, RESERVED_XENSTORE},
    layout::Abi,
    shared_info::{LEGACY_MAX_VCPUS, SharedInfo, VcpuInfo, VcpuTimeInfo},
    start_info::{MAGIC_X86_32, MAGIC_X86_32P, MAGIC_X86_64, StartFlag, StartInfo},
    start_of_day::{
        BOOT_STACK_PAGES, INITIAL_UPCALL_MASK, INITIAL_VCPU, InitialRegister, InitialValue, Mapping,
        PADDING_PAGES, RANGE_ALIGN_BYTES, Region, When,
    },
    units::PAGE_SIZE,
};
use paravane_x86::{
    mode::Mode,
    segments::{SegmentRegister, initial_segments},
};

use crate::output::page::Page;

/// The page for `modes`.
pub(super) fn page(modes: &[Mode]) -> Page {
    let abis = super::abis(modes);
    let mut page = Page::new("The start of a Xen PV guest");
    let (pointer, stack) = match abis.as_slice() {
        [Abi::Bits32] => ("ESI", "ESP"),
        _ => ("RSI", "RSP"),
    };
    page.text(format!(
        "A guest starts with one vCPU, in kernel mode, with paging on and on the flat segments. {pointer} holds the virtual \
         address of start_info, which leads to everything else; {stack} the end of a boot stack of {BOOT_STACK_PAGES} page, \
         behind which at least {} KiB more are mapped. Events are masked, and there are no handlers: no GDT of its own, no \
         trap table, no callbacks. The kernel is mapped where its ELF notes ask for it.",
        PADDING_PAGES * PAGE_SIZE / 1024,
    ));
    registers(&mut page, modes, &abis);
    memory(&mut page);
    super::structure(&mut page, StartInfo::LAYOUT, &abis);
    page.text(format!(
        "magic is \"{MAGIC_X86_64}\" for a 64-bit guest and \"{MAGIC_X86_32P}\" for a 32-bit one. Beware: shared_info is a \
         machine address in bytes, the rings are machine frames, and the rest are virtual addresses. Bits of flags:"
    ));
    page.table(
        &["Bit", "Name", "Meaning"],
        StartFlag::ALL
            .iter()
            .map(|flag| vec![flag.number().to_string(), flag.to_string(), flag.meaning().to_owned()]),
    );
    shared(&mut page, &abis);
    channels(&mut page);
    super::see_also(
        &mut page,
        &["explain segments", "explain elf-notes", "explain hypercall-page", "inspect KERNEL"],
    );
    page.sources([
        "xen/include/public/xen.h (start-of-day memory layout, struct start_info)",
        "xen/tools/libs/guest/xg_dom_x86.c",
        "xen/tools/libs/guest/xg_dom_core.c",
    ]);
    page
}

/// Modes that share an ABI start alike, so that each ABI is shown once.
fn registers(page: &mut Page, modes: &[Mode], abis: &[Abi]) {
    page.heading("Registers of vCPU 0");
    let shown: Vec<Mode> =
        abis.iter().filter_map(|&abi| modes.iter().copied().find(|&mode| super::abi(mode) == abi)).collect();
    let mut columns = vec!["Register"];
    columns.extend(abis.iter().map(|abi| match abi {
        Abi::Bits64 => "64-bit guest",
        Abi::Bits32 => "32-bit guest",
    }));
    let name = |row: &InitialRegister| {
        if abis.contains(&Abi::Bits64) { row.name.to_owned() } else { in_32_bits(row.name) }
    };
    let rows: Vec<&InitialRegister> =
        INITIAL_VCPU.iter().filter(|row| abis.iter().any(|&abi| row.value.get(abi).is_some())).collect();
    page.table(
        &columns,
        rows.iter().map(|row| {
            let mut cells = vec![name(row)];
            cells.extend(shown.iter().map(|&mode| {
                row.value.get(super::abi(mode)).map_or_else(|| "-".to_owned(), |value| resolve(mode, value))
            }));
            cells
        }),
    );
    page.text("What the table does not list is 0.");
    page.list(
        rows.iter().filter(|row| !row.note.is_empty()).map(|row| format!("{}: {}.", name(row), row.note)),
    );
    if modes.contains(&Mode::Guest32On32NonPae) {
        page.text(format!(
            "On a hypervisor without PAE a 32-bit guest has ctrlreg[3] = {} and the magic \"{MAGIC_X86_32}\" in start_info.",
            InitialValue::Root
        ));
    }
}

/// The 32-bit names in a list of 64-bit register names: `rip, rsp` becomes `eip, esp`.
fn in_32_bits(names: &str) -> String {
    let rename = |name: &str| match name.strip_prefix('r') {
        Some(rest) if rest.chars().all(char::is_alphabetic) => format!("e{rest}"),
        Some(_) | None => name.to_owned(),
    };
    names.split(", ").map(rename).collect::<Vec<_>>().join(", ")
}

/// The value, with segments by their selectors.
fn resolve(mode: Mode, value: InitialValue) -> String {
    let selector = |register: SegmentRegister| {
        initial_segments(mode)
            .into_iter()
            .find(|segment| segment.register == register)
            .map_or_else(|| value.to_string(), |segment| segment.selector.to_string())
    };
    match value {
        InitialValue::KernelCode => selector(SegmentRegister::Cs),
        InitialValue::KernelStack => selector(SegmentRegister::Ss),
        InitialValue::KernelData => selector(SegmentRegister::Ds),
        InitialValue::Fixed(_)
        | InitialValue::EntryPoint
        | InitialValue::BootStackTop
        | InitialValue::StartInfo
        | InitialValue::Root
        | InitialValue::RootFolded
        | InitialValue::ExtendedCr3
        | InitialValue::FpuReset => value.to_string(),
    }
}

fn memory(page: &mut Page) {
    page.heading("Memory, in the order of frame numbers");
    page.text(format!(
        "One range of virtual addresses maps the first frames in order: address = VIRT_BASE + frame * {PAGE_SIZE}. It ends \
         on a multiple of {} MiB. All memory of the domain is populated; what lies outside the range is not mapped, and \
         found by frame number.",
        RANGE_ALIGN_BYTES >> 20,
    ));
    regions(page, |mapping| mapping != Mapping::Outside);
    page.text("Outside the range, behind it in the order of frames:");
    regions(page, |mapping| mapping == Mapping::Outside);
    page.text(
        "The addresses in start_info are what counts. Beyond them kernels rely on this: the page tables are contiguous \
         from the root down, and the boot stack has free memory behind it.",
    );
}

fn regions(page: &mut Page, wanted: impl Fn(Mapping) -> bool) {
    page.table(
        &["Region", "Size", "What it is"],
        Region::ALL.iter().filter(|region| wanted(region.facts().mapping)).map(|region| {
            let facts = region.facts();
            let mut what = region.meaning().to_owned();
            if facts.when != When::Always {
                let _ = write!(what, " Only {}.", facts.when);
            }
            if facts.mapping == Mapping::ReadOnly {
                what.push_str(" Mapped read-only: a guest may never write to a page table.");
            }
            vec![region.to_string(), facts.size.to_owned(), what]
        }),
    );
}

fn shared(page: &mut Page, abis: &[Abi]) {
    super::structure(page, SharedInfo::LAYOUT, abis);
    page.text(format!(
        "The page is not mapped: the guest maps the machine address of start_info.shared_info where it likes. At the start \
         it is zero, except that evtchn_upcall_mask is {INITIAL_UPCALL_MASK} for all {LEGACY_MAX_VCPUS} vCPUs, so no event \
         arrives, and that the time is filled in. evtchn_mask is zero too: a kernel masks the channels itself."
    ));
    super::structure(page, VcpuInfo::LAYOUT, abis);
    super::structure(page, VcpuTimeInfo::LAYOUT, abis);
}

fn channels(page: &mut Page) {
    page.heading("Console and xenstore");
    page.text(format!(
        "Each has a ring page and an event channel in start_info; the ports are allocated, for the backend's domain to \
         bind. The first {RESERVED_ENTRIES} entries of the grant table are reserved: {RESERVED_CONSOLE} grants the console \
         page to its backend, {RESERVED_XENSTORE} the xenstore page. Every vCPU's timer ticks from the start, each 10 ms, \
         unless it is stopped; until the guest has bound VIRQ_TIMER, the ticks are lost."
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_names_shrink_to_32_bits_and_other_names_stay() {
        assert_eq!(in_32_bits("rip"), "eip");
        assert_eq!(in_32_bits("rax, rbx"), "eax, ebx");
        assert_eq!(in_32_bits("ctrlreg[3]"), "ctrlreg[3]");
        assert_eq!(in_32_bits("r8 to r15"), "r8 to r15");
        assert_eq!(in_32_bits("gdt_ents, ldt_ents"), "gdt_ents, ldt_ents");
    }
}
