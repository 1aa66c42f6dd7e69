//! Where everything goes in a new domain's memory.
//!
//! The initial mapping is one contiguous range: virtual address = `virt_base` + 4096 · pfn. In it, in this order,
//! lie the kernel, its symbol table if it asked for one, the initrd and the p2m list unless they can live outside,
//! `start_info`, the xenstore and console rings, the page tables of the mapping itself, the boot stack, and at
//! least 512 KiB of free pages up to the next 4 MiB. A kernel that says so gets its initrd and its p2m list behind that,
//! unmapped or mapped elsewhere.
//!
//! The number of page tables depends on the size of the range, which contains them: the plan is found by iteration.
//!
//! Source: `xen/include/public/xen.h` ("Start-of-day memory layout"), `alloc_pgtables` and
//! `xc_dom_alloc_segment` in `xen/tools/libs/guest/`.

use core::ops::Range;

use paravane_abi::{
    start_of_day::{BOOT_STACK_PAGES, PADDING_PAGES, RANGE_ALIGN_BYTES},
    units::{GuestVirt, PAGE_SIZE, Pfn},
};
use thiserror::Error;

use super::tables::TableCount;

/// What is to be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Pages of memory.
    pub pages: u64,
    /// Where pfn 0 appears.
    pub virt_base: GuestVirt,
    /// The first page after the kernel and what is loaded with it.
    pub kernel_end: Pfn,
    /// Bytes of the initrd.
    pub initrd_bytes: Option<u64>,
    /// Whether the initrd may stay unmapped (`MOD_START_PFN`).
    pub initrd_unmapped: bool,
    /// Where the p2m list is to be mapped, if not in the range (`INIT_P2M`).
    pub init_p2m: Option<GuestVirt>,
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where pfn 0 appears.
    pub virt_base: GuestVirt,
    /// Pages of memory.
    pub pages: u64,
    /// The initrd.
    pub initrd: Option<Range<Pfn>>,
    /// The p2m list.
    pub p2m: Range<Pfn>,
    /// `start_info`.
    pub start_info: Pfn,
    /// The xenstore ring.
    pub xenstore: Pfn,
    /// The console ring.
    pub console: Pfn,
    /// The page tables of the range: root first, then level by level.
    pub tables: Range<Pfn>,
    /// The boot stack.
    pub boot_stack: Pfn,
    /// The pages of the range: 0 up to here.
    pub mapped_end: Pfn,
    /// Where the p2m list appears, if not in the range, and the page tables for that.
    pub p2m_mapping: Option<P2mMapping>,
}

/// A p2m list outside the initial range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct P2mMapping {
    /// Where its first byte appears.
    pub at: GuestVirt,
    /// The page tables that are needed beside those of the range.
    pub tables: Range<Pfn>,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Too little memory.
    #[error(
        "the domain has {} KiB of memory, and this kernel with its initrd needs {} KiB to start: give it more, \
         with -m {2}K or -m {3}M",
        (.pages * PAGE_SIZE) >> 10,
        (.needed * PAGE_SIZE) >> 10,
        (.needed * PAGE_SIZE) >> 10,
        (.needed * PAGE_SIZE).div_ceil(1 << 20)
    )]
    TooLittleMemory {
        /// The pages it has.
        pages: u64,
        /// The pages it needs at the least.
        needed: u64,
    },
    /// More memory than page-table entries or the p2m list can describe.
    #[error("{} MiB of memory are more than a PV domain can have", (.pages * PAGE_SIZE) >> 20)]
    TooMuchMemory {
        /// The pages asked for.
        pages: u64,
    },
    /// The initial range would run into the addresses reserved for Xen or past the end of the address space.
    #[error("the initial mapping from {start} would reach {end:#x}, where a guest has no addresses")]
    OutOfAddresses {
        /// `virt_base`.
        start: GuestVirt,
        /// Where it would end.
        end: u128,
    },
}

/// More pages than this (4 TiB) cannot be described by version 1 grant tables.
const MAX_PAGES: u64 = 1 << 30;
/// Bytes of a p2m entry.
const P2M_ENTRY: u64 = 8;

impl Plan {
    /// Lays `request` out.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub fn new(request: &Request) -> Result<Self, PlanError> {
        if request.pages > MAX_PAGES {
            return Err(PlanError::TooMuchMemory { pages: request.pages });
        }
        let (plan, needed) = Self::place(request)?;
        if needed <= request.pages {
            return Ok(plan);
        }
        // More memory takes a longer p2m list: the least that suffices is found by asking again.
        let mut least = needed;
        loop {
            let (_, needed) = Self::place(&Request { pages: least, ..*request })?;
            if needed <= least {
                return Err(PlanError::TooLittleMemory { pages: request.pages, needed: least });
            }
            least = needed;
        }
    }

    /// Places everything, and says how many pages that takes.
    fn place(request: &Request) -> Result<(Self, u64), PlanError> {
        let mut next = Cursor(request.kernel_end.0);
        let initrd_pages = request.initrd_bytes.map(|bytes| bytes.div_ceil(PAGE_SIZE));
        let p2m_pages = (request.pages * P2M_ENTRY).div_ceil(PAGE_SIZE);
        let mut initrd = None;
        if !request.initrd_unmapped {
            initrd = initrd_pages.map(|pages| next.take(pages));
        }
        let mut p2m = None;
        if request.init_p2m.is_none() {
            p2m = Some(next.take(p2m_pages));
        }
        let start_info = next.take(1).start;
        let xenstore = next.take(1).start;
        let console = next.take(1).start;
        let (count, mapped_end) = settle(request, next.0)?;
        let tables = next.take(count.total());
        let boot_stack = next.take(BOOT_STACK_PAGES).start;
        let mut next = Cursor(mapped_end);
        if request.initrd_unmapped {
            initrd = initrd_pages.map(|pages| next.take(pages));
        }
        let p2m_mapping = request.init_p2m.map(|at| {
            p2m = Some(next.take(p2m_pages));
            let range = byte_range(at, p2m_pages);
            let main = byte_range(request.virt_base, mapped_end);
            P2mMapping { at, tables: next.take(TableCount::beside(&range, &main).total()) }
        });
        let plan = Self {
            virt_base: request.virt_base,
            pages: request.pages,
            initrd,
            p2m: p2m.unwrap_or(Pfn(0)..Pfn(0)),
            start_info,
            xenstore,
            console,
            tables,
            boot_stack,
            mapped_end: Pfn(mapped_end),
            p2m_mapping,
        };
        Ok((plan, next.0))
    }

    /// Where `pfn` appears in the initial range.
    pub fn virt_of(&self, pfn: Pfn) -> GuestVirt {
        self.virt_base.wrapping_add(pfn.0 * PAGE_SIZE)
    }
}

/// The next free page.
struct Cursor(u64);

impl Cursor {
    fn take(&mut self, pages: u64) -> Range<Pfn> {
        let start = self.0;
        self.0 = start.saturating_add(pages);
        Pfn(start)..Pfn(self.0)
    }
}

/// Finds how many tables the range needs and where it ends, given that `used` pages lie before the tables.
fn settle(request: &Request, used: u64) -> Result<(TableCount, u64), PlanError> {
    let mut tables = 0;
    loop {
        let pages = used.saturating_add(tables + BOOT_STACK_PAGES + PADDING_PAGES);
        let end = end_of_range(request.virt_base, pages)?;
        if end > MAX_PAGES {
            return Err(PlanError::TooMuchMemory { pages: end });
        }
        let count = TableCount::of(&byte_range(request.virt_base, end));
        // Growing the range never takes tables away, so this ends.
        if count.total() <= tables {
            return Ok((count, end));
        }
        tables = count.total();
    }
}

/// The page at which a range of at least `pages` pages ends whose last address lies just below a multiple of 4 MiB.
fn end_of_range(base: GuestVirt, pages: u64) -> Result<u64, PlanError> {
    let end = (u128::from(base.0) + u128::from(pages) * u128::from(PAGE_SIZE))
        .next_multiple_of(u128::from(RANGE_ALIGN_BYTES));
    // The lower half, the upper half beside Xen's part, or (for a range that ends the address space) exactly its end.
    const LOWER: Range<u128> = 0..1 << 47;
    const UPPER: Range<u128> = 0xffff_8800_0000_0000..1 << 64;
    let start = u128::from(base.0);
    let inside = |half: &Range<u128>| half.contains(&start) && end <= half.end;
    if !inside(&LOWER) && !inside(&UPPER) {
        return Err(PlanError::OutOfAddresses { start: base, end });
    }
    // Below 2^64 / 4096 after the check.
    Ok(u64::try_from((end - start) / u128::from(PAGE_SIZE)).unwrap_or(u64::MAX))
}

/// The first and the last byte of `pages` pages from `start`.
pub(super) fn byte_range(start: GuestVirt, pages: u64) -> core::ops::RangeInclusive<u64> {
    start.0..=start.0.wrapping_add(pages.saturating_mul(PAGE_SIZE)).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request as Debian's kernel makes it, with `pages` of memory.
    fn linux(pages: u64) -> Request {
        Request {
            pages,
            virt_base: GuestVirt(0xffff_ffff_8000_0000),
            kernel_end: Pfn(0x4a00),
            initrd_bytes: Some(3 << 20),
            initrd_unmapped: true,
            init_p2m: Some(GuestVirt(0x80_0000_0000)),
        }
    }

    #[test]
    fn a_linux_kernel_gets_the_layout_of_the_real_tools() {
        let plan = Plan::new(&linux(1 << 17)).unwrap();
        // Kernel 0..0x4a00, then the three single pages, then tables.
        assert_eq!((plan.start_info, plan.xenstore, plan.console), (Pfn(0x4a00), Pfn(0x4a01), Pfn(0x4a02)));
        // 76 MiB: root, one L3, one L2 and 38 L1 tables.
        assert_eq!(plan.mapped_end, Pfn(0x4c00));
        assert_eq!(plan.tables, Pfn(0x4a03)..Pfn(0x4a03 + 41));
        assert_eq!(plan.boot_stack, Pfn(0x4a2c));
        assert_eq!(plan.initrd, Some(Pfn(0x4c00)..Pfn(0x4f00)));
        assert_eq!(plan.p2m, Pfn(0x4f00)..Pfn(0x5000));
        let mapping = plan.p2m_mapping.unwrap();
        // One L3, one L2, one L1 for a list of 1 MiB.
        assert_eq!(mapping.tables, Pfn(0x5000)..Pfn(0x5003));
    }

    #[test]
    fn too_little_memory_names_the_least() {
        let error = Plan::new(&linux(0x4000)).unwrap_err();
        let PlanError::TooLittleMemory { needed, .. } = error else { panic!("{error}") };
        assert!(Plan::new(&linux(needed)).is_ok());
    }

    #[test]
    fn a_small_kernel_starts_in_8_mib() {
        let small = Request {
            pages: 2048,
            virt_base: GuestVirt(0),
            kernel_end: Pfn(40),
            initrd_bytes: None,
            initrd_unmapped: false,
            init_p2m: None,
        };
        let plan = Plan::new(&small).unwrap();
        assert_eq!(plan.mapped_end, Pfn(1024));
        assert!(plan.p2m_mapping.is_none());
    }

    #[test]
    fn a_range_may_not_reach_xens_addresses_or_wrap() {
        for virt_base in [0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000] {
            let request = Request { virt_base: GuestVirt(virt_base), ..linux(1 << 17) };
            assert!(matches!(Plan::new(&request), Err(PlanError::OutOfAddresses { .. })), "{virt_base:#x}");
        }
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_everything_fits(
            pages in 2048u64..1 << 22,
            base in prop::sample::select(&[0u64, 0x40_0000, 0xffff_ffff_8000_0000, 0xffff_8800_0000_0000][..]),
            kernel_end in 1u64..0x8000,
            initrd in prop::option::of(0u64..64 << 20),
            initrd_unmapped: bool,
            init_p2m in prop::option::of(Just(GuestVirt(0x80_0000_0000))),
        ) {
            let request = Request {
                pages,
                virt_base: GuestVirt(base),
                kernel_end: Pfn(kernel_end),
                initrd_bytes: initrd,
                initrd_unmapped,
                init_p2m,
            };
            let Ok(plan) = Plan::new(&request) else { return Ok(()) };
            let one = |pfn: Pfn| pfn..Pfn(pfn.0 + 1);
            let mut ranges = vec![
                Pfn(0)..request.kernel_end,
                plan.p2m.clone(),
                one(plan.start_info),
                one(plan.xenstore),
                one(plan.console),
                plan.tables.clone(),
                one(plan.boot_stack),
            ];
            ranges.extend(plan.initrd.clone());
            ranges.extend(plan.p2m_mapping.as_ref().map(|mapping| mapping.tables.clone()));
            ranges.sort_by_key(|range| (range.start, range.end));
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start, "{pair:?}");
            }
            prop_assert!(ranges.iter().all(|range| range.end.0 <= pages));
            prop_assert!(plan.boot_stack.0 + 1 + PADDING_PAGES <= plan.mapped_end.0);
            prop_assert_eq!(plan.virt_of(plan.mapped_end).0 % RANGE_ALIGN_BYTES, 0);
            prop_assert_eq!(plan.p2m.end.0 - plan.p2m.start.0, (pages * 8).div_ceil(4096));
        }
    }
}
