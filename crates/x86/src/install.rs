//! How a guest gets a descriptor into use: the hypercalls, what they demand, and how they fail.
//!
//! A PV guest cannot execute LGDT, LLDT or write a live descriptor table: its table pages are read-only while
//! they are in use, and every descriptor in them has passed Xen's check (see [`crate::submit`]). There are
//! three ways for a descriptor into a table. [`Route::SetGdt`] hands over whole pages,
//! [`Route::UpdateDescriptor`] writes one entry, [`Route::SetLdt`] names pages that are checked when they are
//! first used. [`Route::SegmentBase`] is no way into a table: it sets the base of FS or GS in a 64-bit guest,
//! for which a descriptor's 32 bits do not suffice.
//!
//! Source: `xen/arch/x86/pv/descriptor-tables.c`, `xen/arch/x86/mm.c` (`MMUEXT_SET_LDT`),
//! `xen/arch/x86/pv/mm.c` (`pv_map_ldt_shadow_page`), `xen/arch/x86/pv/misc-hypercalls.c`
//! (`do_set_segment_base`).

use paravane_abi::{
    errno::Errno,
    hypercall::{Guests, Hypercall},
};
use serde::Serialize;

use crate::mode::Guest;

/// A way by which a guest puts a segment into use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Whole pages become the guest's part of the GDT.
    SetGdt,
    /// One descriptor is written into a table.
    UpdateDescriptor,
    /// Pages become the LDT.
    SetLdt,
    /// The base of FS or GS is set without a descriptor.
    SegmentBase,
}

/// What a guest does on one [`Route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Installation {
    /// The hypercall.
    pub hypercall: Hypercall,
    /// The sub-operation, where the hypercall has some; empty otherwise.
    pub operation: &'static str,
    /// The call with its arguments, as one writes it in C.
    pub call: &'static str,
    /// What it achieves, as half a sentence.
    pub purpose: &'static str,
    /// What the guest does, in order.
    pub steps: &'static [&'static str],
    /// What holds besides.
    pub rules: &'static [&'static str],
    /// How it fails.
    pub errors: &'static [InstallError],
}

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InstallError {
    /// The error, which the hypercall returns negated.
    pub errno: Errno,
    /// When it is returned.
    pub when: &'static str,
}

const fn fails(errno: Errno, when: &'static str) -> InstallError {
    InstallError { errno, when }
}

static SET_GDT: Installation = Installation {
    hypercall: Hypercall::SetGdt,
    operation: "",
    call: "set_gdt(frames, entries)",
    purpose: "makes whole pages the guest's part of the GDT",
    steps: &[
        "Fill up to 14 pages with descriptors, 512 to a page; what is not used stays zero.",
        "Map each of these pages read-only everywhere, as with update_va_mapping: a page with a writable mapping cannot \
         become part of the GDT.",
        "Call set_gdt with the machine frame numbers of the pages and the number of entries.",
        "Load the segment registers again: they keep what they had until then.",
    ],
    rules: &[
        "All 512 descriptors of every page are checked, also those beyond `entries`; one that is refused refuses the \
         whole call. What the check changes, it changes in the page.",
        "`entries` only says how many frames there are. The hardware limit stays 0xefff, so a page that is used in part \
         can be used in full.",
        "Entries from 7168 on are Xen's and need no installation: the flat segments are always there.",
        "Zero entries remove the guest's part; it then reads as zeros.",
        "The table belongs to the calling vCPU.",
    ],
    errors: &[
        fails(Errno::Einval, "more than 7168 entries"),
        fails(Errno::Efault, "the list of frames cannot be read"),
        fails(
            Errno::Einval,
            "a frame is not the guest's, has a writable mapping or another use, or holds a descriptor that is refused",
        ),
    ],
};

static UPDATE_DESCRIPTOR: Installation = Installation {
    hypercall: Hypercall::UpdateDescriptor,
    operation: "",
    call: "update_descriptor(machine address, descriptor)",
    purpose: "writes one descriptor into a GDT or LDT page",
    steps: &[
        "Find the machine address of the entry: the machine frame of its page times 4096, plus the entry's offset in \
         the page.",
        "Call update_descriptor with that address and the descriptor. A 32-bit guest passes each in two words, the low \
         one first.",
        "Load the segment register again if the old descriptor was in use.",
    ],
    rules: &[
        "The descriptor is checked as in set_gdt, and what is stored is what the check made of it.",
        "The entry changes in one step; no vCPU sees half of it.",
        "The page need not be in use as a table yet, but must then be one that may be mapped writable.",
        "Used for thread-local storage at every task switch of a 32-bit Linux guest, which keeps shadow copies to leave \
         out calls that would change nothing.",
    ],
    errors: &[
        fails(Errno::Einval, "the address is not a multiple of 8"),
        fails(Errno::Einval, "the descriptor is refused"),
        fails(Errno::Einval, "the page is not the guest's, or is used as a page table"),
    ],
};

static SET_LDT: Installation = Installation {
    hypercall: Hypercall::MmuextOp,
    operation: "MMUEXT_SET_LDT",
    call: "mmuext_op(MMUEXT_SET_LDT, linear address, entries)",
    purpose: "makes pages at a linear address the LDT",
    steps: &[
        "Fill pages with descriptors, 512 to a page, at a page-aligned linear address.",
        "Map each of these pages read-only everywhere.",
        "Call mmuext_op with MMUEXT_SET_LDT, the linear address and the number of entries.",
        "Load selectors with the TI bit (value 4) set.",
    ],
    rules: &[
        "Nothing is checked at the call. Each page is checked as in set_gdt when a selector into it is first used; if it \
         does not pass, or is not mapped there, the guest gets #PF at the entry's own address.",
        "Loading another CR3 lets go of the checked pages, and the next use checks again.",
        "Zero entries remove the LDT.",
        "The LDT belongs to the calling vCPU.",
    ],
    errors: &[
        fails(Errno::Einval, "more than 8192 entries"),
        fails(Errno::Einval, "the address is not a multiple of 4096, or is not the guest's to use"),
        fails(Errno::Eperm, "the call names another domain"),
    ],
};

static SEGMENT_BASE: Installation = Installation {
    hypercall: Hypercall::SetSegmentBase,
    operation: "",
    call: "set_segment_base(which, base)",
    purpose: "sets the 64-bit base of FS or GS, which a descriptor cannot hold",
    steps: &[
        "Choose `which`: 0 is FS, 1 is GS of user mode, 2 is GS of the kernel, 3 loads a selector into GS of user mode.",
        "Call set_segment_base with it and the base, or for 3 the selector.",
    ],
    rules: &[
        "Writing the MSRs FS_BASE, GS_BASE or KERNEL_GS_BASE does the same: Xen emulates WRMSR. WRFSBASE and WRGSBASE \
         work where CR4.FSGSBASE is set.",
        "Loading a selector into FS or GS afterwards replaces the base by the 32-bit one of the descriptor.",
        "For 3, the selector's RPL becomes 3. One that cannot be loaded becomes null, and the call succeeds all the same.",
    ],
    errors: &[
        fails(Errno::Einval, "the base is not canonical"),
        fails(Errno::Einval, "`which` is above 3"),
        fails(Errno::Enosys, "the guest is a 32-bit one"),
    ],
};

impl Route {
    /// Every route, in the order in which people meet them.
    pub const ALL: [Self; 4] = [Self::SetGdt, Self::UpdateDescriptor, Self::SetLdt, Self::SegmentBase];

    /// What a guest does on this route.
    pub fn installation(self) -> &'static Installation {
        match self {
            Self::SetGdt => &SET_GDT,
            Self::UpdateDescriptor => &UPDATE_DESCRIPTOR,
            Self::SetLdt => &SET_LDT,
            Self::SegmentBase => &SEGMENT_BASE,
        }
    }

    /// Whether guests of this width have it.
    pub fn exists_for(self, guest: Guest) -> bool {
        match (self.installation().hypercall.facts().guests, guest) {
            (Guests::Both, _) | (Guests::Bits64, Guest::Bits64) => true,
            (Guests::Bits64, Guest::Bits32) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::mmu::MmuExtOp;

    use super::*;
    use crate::gdt;

    #[test]
    fn only_segment_bases_are_for_64_bit_guests_alone() {
        for route in Route::ALL {
            assert!(route.exists_for(Guest::Bits64));
            assert_eq!(route.exists_for(Guest::Bits32), route != Route::SegmentBase, "{route:?}");
        }
    }

    #[test]
    fn every_route_has_steps_and_ends_its_sentences() {
        for route in Route::ALL {
            let installation = route.installation();
            assert!(!installation.steps.is_empty() && !installation.errors.is_empty());
            for sentence in installation.steps.iter().chain(installation.rules) {
                assert!(sentence.ends_with('.'), "{route:?}: {sentence}");
            }
            for error in installation.errors {
                assert!(!error.when.ends_with('.'), "{route:?}: {}", error.when);
            }
        }
    }

    #[test]
    fn the_numbers_in_the_sentences_are_those_of_the_tables() {
        let text = |route: Route| {
            let installation = route.installation();
            let errors = installation.errors.iter().map(|error| error.when);
            installation.steps.iter().chain(installation.rules).copied().chain(errors).collect::<String>()
        };
        for (route, number) in [
            (Route::SetGdt, gdt::FIRST_RESERVED_PAGE.to_string()),
            (Route::SetGdt, gdt::FIRST_RESERVED_ENTRY.to_string()),
            (Route::SetGdt, format!("{:#x}", gdt::HARDWARE_LIMIT)),
            (Route::SetLdt, gdt::LDT_MAX_ENTRIES.to_string()),
        ] {
            assert!(text(route).contains(&number), "{route:?}: {number}");
        }
        assert_eq!(SET_LDT.operation, format!("MMUEXT_{}", MmuExtOp::SetLdt.name()));
    }
}
