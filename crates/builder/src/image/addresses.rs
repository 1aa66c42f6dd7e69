//! Where a kernel wants to be, and whether that makes sense.
//!
//! A PV kernel starts with paging on. It is loaded at pseudo-physical addresses, which the ELF file gives
//! (less `PADDR_OFFSET`), and appears at virtual addresses from `VIRT_BASE` on, page after page:
//!
//! ```text
//! pseudo-physical = load address - elf_paddr_offset
//! virtual         = virt_base + pseudo-physical = load address + virt_offset
//! ```
//!
//! Sources: `elf_xen_addr_calc_check` of `xen/common/libelf/libelf-dominfo.c`; alignment and INIT_P2M:
//! `xc_dom_build_image` of `tools/libs/guest/xg_dom_core.c`.

use paravane_abi::units::{GuestVirt, PAGE_SIZE, Pfn};
use paravane_x86::mode::Guest;
use serde::Serialize;
use thiserror::Error;

use super::elf::{Elf, LoadAddr};
use super::metadata::Source;
use super::parameters::Parameters;
use super::problem::Problem;
use super::symbol_table::SymbolTable;

/// The addresses that follow from the ELF file and the image's [`Parameters`]. Names are those of Xen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// The lowest load address of the kernel.
    pub pstart: LoadAddr,
    /// The end of the kernel's highest segment, as a load address.
    pub pend: LoadAddr,
    /// Where pfn 0 appears in the initial mapping.
    pub virt_base: GuestVirt,
    /// What is subtracted from a load address to obtain a pseudo-physical one, in bytes.
    pub elf_paddr_offset: u64,
    /// What is added to a load address to obtain a virtual one, modulo 2^64.
    pub virt_offset: u64,
    /// Where the kernel begins.
    pub virt_kstart: GuestVirt,
    /// Where the kernel ends, together with the symbol table if that is loaded behind it.
    pub virt_kend: GuestVirt,
    /// Where the kernel is entered.
    pub virt_entry: GuestVirt,
    /// The page to fill with hypercall stubs.
    pub hypercall_page: Option<GuestVirt>,
    /// Where the p2m list is mapped; `None` if it lies in the initial region.
    pub init_p2m: Option<GuestVirt>,
    /// The symbol table that is loaded behind the kernel because it asks for that.
    pub symbol_table: Option<SymbolTable>,
}

/// Why the addresses contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum AddressFault {
    /// An offset without the base that it goes with.
    #[error("PADDR_OFFSET is {offset:#x}, but there is no VIRT_BASE, without which it has no meaning")]
    OffsetWithoutBase {
        /// The offset.
        offset: u64,
    },
    /// The kernel wraps around the end of the address space.
    #[error("the kernel would begin at {start} and end at {end}, beyond the last address of its width")]
    Wraps {
        /// Where it would begin.
        start: GuestVirt,
        /// Where it would end.
        end: GuestVirt,
    },
    /// The entry point lies outside the kernel.
    #[error("the entry point {entry} (from {origin}) lies outside the kernel, {start} to {end}")]
    EntryOutside {
        /// The entry point.
        entry: GuestVirt,
        /// Where the image says so.
        origin: &'static str,
        /// Where the kernel begins.
        start: GuestVirt,
        /// Where the kernel ends.
        end: GuestVirt,
    },
    /// The kernel lies below the mapping that it is part of.
    #[error(
        "the kernel begins at {start}, below VIRT_BASE {base}: VIRT_BASE or PADDR_OFFSET does not fit the ELF \
         file's addresses"
    )]
    BelowBase {
        /// Where the kernel begins.
        start: GuestVirt,
        /// `VIRT_BASE`.
        base: GuestVirt,
    },
    /// The p2m list would cover the kernel.
    #[error("INIT_P2M {address} lies inside the kernel, {start} to {end}")]
    InitP2mInside {
        /// `INIT_P2M`.
        address: GuestVirt,
        /// Where the kernel begins.
        start: GuestVirt,
        /// Where the kernel ends.
        end: GuestVirt,
    },
    /// The hypercall page lies outside the kernel.
    #[error("HYPERCALL_PAGE {address} lies outside the kernel, {start} to {end}")]
    HypercallPageOutside {
        /// The page.
        address: GuestVirt,
        /// Where the kernel begins.
        start: GuestVirt,
        /// Where the kernel ends.
        end: GuestVirt,
    },
    /// An address that must begin a page does not.
    #[error("{what} {address} is not a multiple of the page size, 4096")]
    Unaligned {
        /// What the address is of.
        what: &'static str,
        /// The address.
        address: GuestVirt,
    },
}

impl Addresses {
    /// Derives the addresses, lists what contradicts what, and says what of the parameters is of no use.
    pub(super) fn derive(elf: &Elf, parameters: &Parameters) -> (Self, Vec<AddressFault>, Vec<Problem>) {
        let load = elf.load_range();
        let virt_base = parameters.virt_base.unwrap_or(GuestVirt(0));
        // Before there were notes, linkers put virtual addresses into p_paddr.
        let default_offset = match parameters.source {
            Some(Source::LegacySection) => virt_base.0,
            Some(Source::NoteSegment | Source::NoteSection) | None => 0,
        };
        let elf_paddr_offset = parameters.paddr_offset.unwrap_or(default_offset);
        let virt_offset = virt_base.0.wrapping_sub(elf_paddr_offset);
        let (init_p2m, ignored) = init_p2m(elf.guest, parameters, virt_base);
        let mut problems = Vec::from_iter(ignored);
        let symbol_table = if parameters.bsd_symtab {
            let placed = SymbolTable::place(elf, load.end);
            placed.map_err(|reason| problems.push(Problem::NoSymbolTable(reason))).ok()
        } else {
            None
        };
        let end = symbol_table.as_ref().map_or(load.end, |table| table.load_end);
        let addresses = Self {
            pstart: load.start,
            pend: load.end,
            virt_base,
            elf_paddr_offset,
            virt_offset,
            virt_kstart: GuestVirt(load.start.0.wrapping_add(virt_offset)),
            virt_kend: GuestVirt(end.0.wrapping_add(virt_offset)),
            virt_entry: parameters.entry.unwrap_or(elf.entry),
            hypercall_page: parameters.hypercall_page,
            init_p2m,
            symbol_table,
        };
        let faults = addresses.faults(elf.guest, parameters);
        (addresses, faults, problems)
    }

    /// The virtual address at which the byte loaded at `addr` appears.
    pub fn virt_of(&self, addr: LoadAddr) -> GuestVirt {
        GuestVirt(addr.0.wrapping_add(self.virt_offset))
    }

    /// The pseudo-physical frame that appears at `address` in the initial mapping; `None` below its start.
    pub fn pfn_of(&self, address: GuestVirt) -> Option<Pfn> {
        address.0.checked_sub(self.virt_base.0).map(|bytes| Pfn(bytes / PAGE_SIZE))
    }

    fn faults(&self, guest: Guest, parameters: &Parameters) -> Vec<AddressFault> {
        let mut faults = Vec::new();
        let (start, end, base, entry) = (self.virt_kstart, self.virt_kend, self.virt_base, self.virt_entry);
        if let (Some(offset), None) = (parameters.paddr_offset, parameters.virt_base) {
            faults.push(AddressFault::OffsetWithoutBase { offset });
        }
        let last = match guest {
            Guest::Bits64 => u64::MAX,
            Guest::Bits32 => u64::from(u32::MAX),
        };
        if start > end || end.0 > last {
            // Every other comparison would only repeat it.
            faults.push(AddressFault::Wraps { start, end });
            return faults;
        }
        if entry < start || entry > end {
            let origin = match parameters.entry {
                Some(_) => "ENTRY",
                None => "the ELF header, as ENTRY is missing",
            };
            faults.push(AddressFault::EntryOutside { entry, origin, start, end });
        }
        if base > start {
            faults.push(AddressFault::BelowBase { start, base });
        }
        if let Some(address) = parameters.init_p2m
            && (start..end).contains(&address)
        {
            faults.push(AddressFault::InitP2mInside { address, start, end });
        }
        if let Some(address) = self.hypercall_page
            && !(start..end).contains(&address)
        {
            faults.push(AddressFault::HypercallPageOutside { address, start, end });
        }
        let aligned = [
            ("VIRT_BASE", Some(base)),
            ("the start of the kernel", Some(start)),
            ("HYPERCALL_PAGE", self.hypercall_page),
        ];
        for (what, address) in aligned {
            if let Some(address) = address.filter(|address| address.offset() != 0) {
                faults.push(AddressFault::Unaligned { what, address });
            }
        }
        faults
    }
}

/// Where the p2m list is mapped, or why the note about it is ignored.
fn init_p2m(guest: Guest, parameters: &Parameters, base: GuestVirt) -> (Option<GuestVirt>, Option<Problem>) {
    let Some(address) = parameters.init_p2m else { return (None, None) };
    let reason = match guest {
        Guest::Bits32 => "only 64-bit kernels can have it elsewhere",
        Guest::Bits64 if address.offset() != 0 => "it is not a multiple of the page size, 4096",
        Guest::Bits64 if address >= base => "it does not lie below VIRT_BASE",
        Guest::Bits64 => return (Some(address), None),
    };
    (None, Some(Problem::InitP2mIgnored { address, reason }))
}
