//! Where everything is in a kernel of this crate.
//!
//! The image has a fixed size, so all that the builder will place is known before the first instruction is
//! assembled: programs use addresses and machine frames as constants.
//!
//! ```text
//!  page of the image   what
//!  0                   nothing
//!  1                   the hypercall page
//!  2                   shared_info appears here
//!  3                   variables of the runtime
//!  4 to 7              trap records
//!  8 to 11             the runtime's code
//!  12                  the stack for entries from user mode
//!  13                  a stack for user mode
//!  16 to 79            data of the program
//!  80 to 143           its code
//! ```
//!
//! Behind it the builder puts what [`Plan`] says: p2m list, `start_info`, rings, page tables, boot stack, and free
//! pages up to the end of the initial mapping.

use std::ops::Range;

use paravane_abi::units::{MachAddr, Mfn, PAGE_SIZE, Pfn};
use paravane_builder::domain::{Plan, plan::Request};
use paravane_hypervisor::Machine;

use crate::setup::Setup;

/// Pages of the image.
pub(crate) const IMAGE_PAGES: u64 = 144;
/// Pages of the symbol table behind it, in a kernel that has one: room for some 50 symbols.
const SYMBOL_PAGES: u64 = 1;
/// Bytes of the image.
pub(crate) const IMAGE_BYTES: u64 = IMAGE_PAGES * PAGE_SIZE;

/// Addresses and frames of a kernel, by what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where pseudo-physical page 0 appears.
    pub base: u64,
    /// Where the builder will put the rest.
    pub plan: Plan,
    /// Which machine frames exist.
    pub machine: Machine,
}

impl Layout {
    /// The layout of a kernel that asks for `setup`.
    ///
    /// # Panics
    ///
    /// If it does not fit its memory.
    pub fn new(setup: &Setup) -> Self {
        let machine = Machine::plan(setup.pages).expect("a sound number of pages");
        let plan = Plan::new(&Request {
            pages: setup.pages,
            virt_base: paravane_abi::units::GuestVirt(setup.base),
            kernel_end: Pfn(IMAGE_PAGES + SYMBOL_PAGES * u64::from(!setup.symbols.is_empty())),
            initrd_bytes: None,
            initrd_unmapped: false,
            init_p2m: None,
        })
        .expect("the kernel fits its memory");
        Self { base: setup.base, plan, machine }
    }

    /// The address of a page of the image or of anything else in the initial mapping.
    pub fn page(&self, pfn: u64) -> u64 {
        self.base.wrapping_add(pfn * PAGE_SIZE)
    }

    /// Where a symbol table is loaded.
    pub fn symbol_table(&self) -> u64 {
        self.page(IMAGE_PAGES)
    }

    /// The hypercall page.
    pub fn hypercall_page(&self) -> u64 {
        self.page(1)
    }

    /// Where the runtime maps `shared_info`.
    pub fn shared_info(&self) -> u64 {
        self.page(2)
    }

    pub(crate) fn variables(&self) -> u64 {
        self.page(3)
    }

    pub(crate) fn records(&self) -> u64 {
        self.page(4)
    }

    pub(crate) fn runtime(&self) -> Range<u64> {
        self.page(8)..self.page(12)
    }

    /// Where the runtime is entered by `vector` of the trap table.
    pub fn vector_entry(&self, vector: u8) -> u64 {
        crate::runtime::stub(self, crate::Entry::Vector(vector))
    }

    /// The top of the stack that the runtime registers for entries from user mode.
    pub fn kernel_stack_top(&self) -> u64 {
        self.page(13)
    }

    /// The top of a stack that programs may use in user mode.
    pub fn user_stack_top(&self) -> u64 {
        self.page(14)
    }

    pub(crate) fn data(&self) -> Range<u64> {
        self.page(16)..self.page(80)
    }

    /// Where the program's code is.
    pub fn code(&self) -> Range<u64> {
        self.page(80)..self.page(IMAGE_PAGES)
    }

    /// `start_info`.
    pub fn start_info(&self) -> u64 {
        self.page(self.plan.start_info.0)
    }

    /// A page of the initial mapping that nobody uses, counted from 0.
    ///
    /// # Panics
    ///
    /// If there are not that many.
    pub fn free_page(&self, index: u64) -> u64 {
        let pfn = self.plan.boot_stack.0 + 1 + index;
        assert!(pfn < self.plan.mapped_end.0, "free pages of the initial mapping are used up");
        self.page(pfn)
    }

    /// The machine frame of an address in the initial mapping.
    ///
    /// # Panics
    ///
    /// If it is not in it.
    pub fn mfn(&self, address: u64) -> Mfn {
        let pfn = Pfn(address.wrapping_sub(self.base) / PAGE_SIZE);
        self.machine.frame_of(pfn).expect("an address of the initial mapping")
    }

    /// The machine address of an address in the initial mapping.
    pub fn maddr(&self, address: u64) -> MachAddr {
        MachAddr(self.mfn(address).0 * PAGE_SIZE + address % PAGE_SIZE)
    }

    /// The address of a page table that the builder made: the root at level 4, the first of any lower level.
    ///
    /// # Panics
    ///
    /// If there is no such level.
    pub fn table(&self, level: u64) -> u64 {
        assert!((1..=4).contains(&level), "page tables have levels 1 to 4");
        // The initial mapping never crosses a boundary of 1 GiB here, so that there is one table each of the upper levels.
        self.page(self.plan.tables.start.0 + 4 - level)
    }

    /// The address of the L1 entry that maps an address of the initial mapping.
    pub fn l1_entry(&self, address: u64) -> u64 {
        self.table(1) + address.wrapping_sub(self.base) / PAGE_SIZE * 8
    }
}
