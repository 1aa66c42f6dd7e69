//! Fills a domain's memory according to its plan.

use paravane_abi::{
    console,
    shared_info::{LEGACY_MAX_VCPUS, VcpuInfo},
    start_info::{COMMAND_LINE_BYTES, MAGIC_X86_64, StartFlag, StartInfo},
    start_of_day::{INITIAL_RFLAGS, INITIAL_UPCALL_MASK},
    units::{GuestVirt, MachAddr, Mfn, PAGE_BYTES, PAGE_SHIFT, PAGE_SIZE, Pfn, Port},
};
use paravane_engine::{Gpr, Segment, VcpuContext, rflags};
use paravane_memory::{Memory, OutOfRange};
use paravane_x86::{
    hypercall_page,
    mode::{Guest, Mode},
    segments::initial_segments,
};
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::{
    plan::{Plan, PlanError, Request, byte_range},
    tables::Tables,
};
use crate::image::PvKernel;

/// What a domain is built from.
pub struct BuildRequest<'a> {
    /// The kernel.
    pub kernel: PvKernel<'a>,
    /// The initial ramdisk.
    pub initrd: Option<&'a [u8]>,
    /// The command line, without NUL.
    pub command_line: &'a str,
    /// Pages of memory.
    pub pages: u64,
    /// Machine memory.
    pub memory: &'a Memory,
    /// The machine frame of each pseudo-physical one below `pages`.
    pub mfn_of: &'a dyn Fn(Pfn) -> Mfn,
    /// The machine address of `shared_info`.
    pub shared_info: MachAddr,
    /// The local port of the console.
    pub console_port: Port,
    /// The local port of xenstore.
    pub store_port: Port,
}

/// A domain that is ready to be handed to its hypervisor.
#[derive(Debug)]
pub struct BuiltDomain {
    /// Where everything is.
    pub plan: Plan,
    /// The registers of vCPU 0.
    pub context: VcpuContext,
    /// The console ring's frame.
    pub console: Mfn,
    /// The xenstore ring's frame.
    pub xenstore: Mfn,
}

/// Why a domain cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A kernel that the builder does not start.
    #[error("a 32-bit PV kernel cannot be run yet: only 64-bit ones can")]
    Guest32,
    /// It does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The command line is too long.
    #[error("the command line has {len} bytes, and start_info has room for {}: shorten it", COMMAND_LINE_BYTES - 1)]
    CommandLine {
        /// Its length.
        len: usize,
    },
    /// A frame of the domain is not in machine memory: the caller's mistake.
    #[error("a frame of the domain lies outside machine memory: {0}")]
    Memory(#[from] OutOfRange),
    /// An address of the kernel's that its own checks should have refused.
    #[error("the kernel's {what} at {address} is not within its memory")]
    Outside {
        /// What it is.
        what: &'static str,
        /// Where it is.
        address: GuestVirt,
    },
}

impl core::fmt::Debug for BuildRequest<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BuildRequest")
            .field("command_line", &self.command_line)
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

/// Plans and fills the domain. Memory is expected to be zero.
///
/// # Errors
///
/// [`BuildError`].
pub fn build(request: &BuildRequest<'_>) -> Result<BuiltDomain, BuildError> {
    match request.kernel.guest {
        Guest::Bits64 => {}
        Guest::Bits32 => return Err(BuildError::Guest32),
    }
    if request.command_line.len() >= COMMAND_LINE_BYTES {
        return Err(BuildError::CommandLine { len: request.command_line.len() });
    }
    let plan = Plan::new(&layout_request(request)?)?;
    load_kernel(request, &plan)?;
    if let (Some(initrd), Some(range)) = (request.initrd, &plan.initrd) {
        copy(request, range.start, 0, initrd)?;
    }
    write_p2m(request, &plan)?;
    write_tables(request, &plan)?;
    let console = (request.mfn_of)(plan.console);
    let xenstore = (request.mfn_of)(plan.xenstore);
    write_start_info(request, &plan, console, xenstore)?;
    write_console(request.memory, console)?;
    mask_events(request)?;
    if let Some(at) = request.kernel.addresses.hypercall_page {
        write_hypercall_page(request, &plan, at)?;
    }
    let context = initial_context(request, &plan);
    Ok(BuiltDomain { plan, context, console, xenstore })
}

fn layout_request(request: &BuildRequest<'_>) -> Result<Request, BuildError> {
    let (addresses, parameters) = (request.kernel.addresses, request.kernel.parameters);
    let end = addresses.virt_kend;
    let outside = BuildError::Outside { what: "end", address: end };
    let bytes = end.0.checked_sub(addresses.virt_base.0).ok_or(outside)?;
    Ok(Request {
        pages: request.pages,
        virt_base: addresses.virt_base,
        kernel_end: Pfn(bytes.div_ceil(PAGE_SIZE)),
        initrd_bytes: request.initrd.map(|initrd| initrd.len() as u64),
        initrd_unmapped: parameters.mod_start_pfn,
        init_p2m: addresses.init_p2m,
    })
}

fn load_kernel(request: &BuildRequest<'_>, plan: &Plan) -> Result<(), BuildError> {
    let image = request.kernel.image;
    for segment in &image.elf().segments {
        let at = request.kernel.addresses.virt_of(segment.load_addr);
        let (pfn, offset) = place(plan, at).ok_or(BuildError::Outside { what: "segment", address: at })?;
        copy(request, pfn, offset, image.segment_bytes(segment))?;
    }
    let table = request.kernel.addresses.symbol_table.as_ref();
    for (addr, bytes) in table.iter().flat_map(|table| image.symbol_table_pieces(table)) {
        let at = request.kernel.addresses.virt_of(addr);
        let (pfn, offset) =
            place(plan, at).ok_or(BuildError::Outside { what: "symbol table", address: at })?;
        copy(request, pfn, offset, &bytes)?;
    }
    Ok(())
}

/// The page and the offset in it of an address in the initial range.
fn place(plan: &Plan, at: GuestVirt) -> Option<(Pfn, usize)> {
    let bytes = at.0.checked_sub(plan.virt_base.0)?;
    let pfn = Pfn(bytes / PAGE_SIZE);
    (pfn < plan.mapped_end).then_some((pfn, at.offset()))
}

/// A page of zeros, to compare with.
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Copies `bytes` to the pseudo-physical pages from `first` on, starting `offset` bytes into it.
fn copy(request: &BuildRequest<'_>, first: Pfn, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
    let mut rest = bytes;
    let (mut pfn, mut offset) = (first, offset);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(PAGE_BYTES - offset));
        // Zeros are there already; not writing them leaves the page unbacked on the host.
        if *piece != ZEROS[..piece.len()] {
            request.memory.write(address(request, pfn, offset), piece)?;
        }
        (rest, pfn, offset) = (after, Pfn(pfn.0 + 1), 0);
    }
    Ok(())
}

fn address(request: &BuildRequest<'_>, pfn: Pfn, offset: usize) -> MachAddr {
    MachAddr((request.mfn_of)(pfn).0 << PAGE_SHIFT | offset as u64)
}

fn write_p2m(request: &BuildRequest<'_>, plan: &Plan) -> Result<(), OutOfRange> {
    const ENTRIES: usize = PAGE_BYTES / 8;
    for page in plan.p2m.start.0..plan.p2m.end.0 {
        let first = (page - plan.p2m.start.0) * ENTRIES as u64;
        let mut entries = [u64::MAX; ENTRIES];
        for (entry, pfn) in entries.iter_mut().zip(first..plan.pages) {
            *entry = (request.mfn_of)(Pfn(pfn)).0;
        }
        request.memory.write(address(request, Pfn(page), 0), entries.as_bytes())?;
    }
    Ok(())
}

fn write_tables(request: &BuildRequest<'_>, plan: &Plan) -> Result<(), OutOfRange> {
    let mut free = (plan.tables.start.0..plan.tables.end.0).map(Pfn);
    let root = free.next().unwrap_or(plan.tables.start);
    let mut tables = Tables::new(request.memory, request.mfn_of, root);
    let is_table = |pfn| plan.tables.contains(&pfn);
    tables.reserve(&byte_range(plan.virt_base, plan.mapped_end.0), &mut free)?;
    tables.map(plan.virt_base, Pfn(0), plan.mapped_end.0, &is_table)?;
    if let Some(mapping) = &plan.p2m_mapping {
        let mut free = (mapping.tables.start.0..mapping.tables.end.0).map(Pfn);
        let pages = plan.p2m.end.0 - plan.p2m.start.0;
        tables.reserve(&byte_range(mapping.at, pages), &mut free)?;
        tables.map(mapping.at, plan.p2m.start, pages, &is_table)?;
    }
    Ok(())
}

fn write_start_info(
    request: &BuildRequest<'_>,
    plan: &Plan,
    console: Mfn,
    xenstore: Mfn,
) -> Result<(), BuildError> {
    let mut info = StartInfo::new_zeroed();
    info.magic[..MAGIC_X86_64.len()].copy_from_slice(MAGIC_X86_64.as_bytes());
    info.nr_pages = plan.pages;
    info.shared_info = request.shared_info.0;
    info.flags = StartFlag::VirtP2m4Tools.mask();
    info.store_mfn = xenstore.0;
    info.store_evtchn = request.store_port.0;
    info.console_mfn = console.0;
    info.console_evtchn = request.console_port.0;
    info.pt_base = plan.virt_of(plan.tables.start).0;
    info.nr_pt_frames = plan.tables.end.0 - plan.tables.start.0;
    info.mfn_list = plan.p2m_mapping.as_ref().map_or(plan.virt_of(plan.p2m.start), |mapping| mapping.at).0;
    if let (Some(range), Some(initrd)) = (&plan.initrd, request.initrd) {
        if request.kernel.parameters.mod_start_pfn {
            info.flags |= StartFlag::ModStartPfn.mask();
            info.mod_start = range.start.0;
            // By frame, the tools pass whole pages.
            info.mod_len = (range.end.0 - range.start.0) * PAGE_SIZE;
        } else {
            info.mod_start = plan.virt_of(range.start).0;
            info.mod_len = initrd.len() as u64;
        }
    }
    info.cmd_line[..request.command_line.len()].copy_from_slice(request.command_line.as_bytes());
    if let Some(mapping) = &plan.p2m_mapping {
        info.first_p2m_pfn = plan.p2m.start.0;
        info.nr_p2m_frames = mapping.tables.end.0 - plan.p2m.start.0;
    }
    request.memory.write(address(request, plan.start_info, 0), info.as_bytes())?;
    Ok(())
}

/// Events are masked on every vCPU that has its `vcpu_info` in `shared_info`, until the guest unmasks them.
fn mask_events(request: &BuildRequest<'_>) -> Result<(), BuildError> {
    const MASK: u64 = core::mem::offset_of!(VcpuInfo, evtchn_upcall_mask) as u64;
    for vcpu in 0..LEGACY_MAX_VCPUS {
        let at = request.shared_info.0 + (vcpu * size_of::<VcpuInfo>()) as u64 + MASK;
        request.memory.store_u8(MachAddr(at), INITIAL_UPCALL_MASK)?;
    }
    Ok(())
}

/// The console ring starts out without a backend.
fn write_console(memory: &Memory, ring: Mfn) -> Result<(), BuildError> {
    const CONNECTION: u64 = core::mem::offset_of!(console::ConsoleRing, connection) as u64;
    memory.store_u8(MachAddr(ring.0 << PAGE_SHIFT | CONNECTION), console::DISCONNECTED)?;
    Ok(())
}

fn write_hypercall_page(request: &BuildRequest<'_>, plan: &Plan, at: GuestVirt) -> Result<(), BuildError> {
    let (pfn, _) = place(plan, at).ok_or(BuildError::Outside { what: "hypercall page", address: at })?;
    let page = hypercall_page::page(hypercall_page::Form::of(Mode::Guest64));
    request.memory.write(address(request, pfn, 0), &page)?;
    Ok(())
}

/// The registers of vCPU 0: all zero but those that the ABI names.
fn initial_context(request: &BuildRequest<'_>, plan: &Plan) -> VcpuContext {
    let mut context = VcpuContext::new();
    for segment in initial_segments(Mode::Guest64) {
        *context.segment_mut(segment.register) = match segment.descriptor {
            Some(descriptor) => Segment::of_descriptor(segment.selector.0, descriptor.0),
            None => Segment::null(segment.selector.0),
        };
    }
    context.rip = request.kernel.addresses.virt_entry.0;
    context.rflags = INITIAL_RFLAGS | rflags::FIXED;
    context.set_gpr(Gpr::Rsp, plan.virt_of(plan.boot_stack).wrapping_add(PAGE_SIZE).0);
    context.set_gpr(Gpr::Rsi, plan.virt_of(plan.start_info).0);
    context.kernel_root = (request.mfn_of)(plan.tables.start);
    context
}
