//! What a built domain holds, for kernels of any layout: read from its memory, through its own page tables.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use paravane_abi::elfnote::ElfNote;
use paravane_abi::start_info::{StartFlag, StartInfo};
use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, Port};
use paravane_builder::domain::{BuildError, BuildRequest, BuiltDomain, PlanError, build};
use paravane_builder::image::Image;
use paravane_builder::testing::elf::{ElfFile, number_note, text_note};
use paravane_engine::Gpr;
use paravane_memory::{Memory, paging};
use paravane_x86::mode::Guest;
use proptest::prelude::*;
use zerocopy::FromBytes as _;

/// The machine frames of the domain: shared_info, then its pages in an order that is not theirs.
const FIRST: Mfn = Mfn(0x1234);
const MIB: u64 = 1 << 20;

/// A kernel to be made.
#[derive(Clone, Debug)]
struct Kernel {
    virt_base: Option<u64>,
    /// The pseudo-physical address at which it begins.
    start: u64,
    memory_len: u64,
    init_p2m: Option<u64>,
    mod_start_pfn: bool,
    /// How many functions are in the symbol table that it asks for.
    symbols: Option<usize>,
}

impl Kernel {
    const CODE: &'static [u8] = b"This stands for code.";

    fn file(&self) -> Vec<u8> {
        let base = self.virt_base.unwrap_or(0);
        let mut notes = vec![
            text_note(ElfNote::XenVersion, "xen-3.0"),
            text_note(ElfNote::Loader, "generic"),
            number_note(ElfNote::Entry, base + self.start),
        ];
        notes.extend(self.virt_base.map(|base| number_note(ElfNote::VirtBase, base)));
        notes.extend(self.init_p2m.map(|at| number_note(ElfNote::InitP2m, at)));
        if self.mod_start_pfn {
            notes.push(number_note(ElfNote::ModStartPfn, 1));
        }
        let mut file = ElfFile::new(Guest::Bits64).load(self.start, Self::CODE, self.memory_len);
        if let Some(count) = self.symbols {
            notes.push(text_note(ElfNote::BsdSymtab, "yes"));
            file = file.symbols(&vec![("function", base + self.start); count]);
        }
        file.notes(&notes).build()
    }

    fn build(&self, pages: u64, initrd: Option<&[u8]>) -> Result<Domain, BuildError> {
        let file = self.file();
        let image = Image::open(&file).expect("a sound ELF file");
        let memory = Memory::new(FIRST, pages + 1).expect("the host has some memory");
        let mfn_of = |pfn| frame_of(pages, pfn);
        let built = build(&BuildRequest {
            kernel: image.pv_kernel().expect("a kernel that boots"),
            initrd,
            command_line: "quiet",
            pages,
            memory: &memory,
            mfn_of: &mfn_of,
            shared_info: MachAddr(FIRST.0 << PAGE_SHIFT),
            console_port: Port(1),
            store_port: Port(2),
        })?;
        Ok(Domain { memory, built })
    }
}

/// The frame of a page: backwards, so that a pfn that is taken for a frame leads elsewhere.
fn frame_of(pages: u64, pfn: Pfn) -> Mfn {
    Mfn(FIRST.0 + pages - pfn.0)
}

struct Domain {
    memory: Memory,
    built: BuiltDomain,
}

impl Domain {
    fn translate(&self, at: GuestVirt) -> Option<paging::Translation> {
        paging::inspect(&self.memory, self.built.context.kernel_root, at).1
    }

    fn read(&self, at: GuestVirt, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let at = at.wrapping_add(bytes.len() as u64);
            let page = self.translate(at).unwrap_or_else(|| panic!("{at} is mapped"));
            let mut piece = vec![0; (len - bytes.len()).min(4096 - at.offset())];
            let from = MachAddr(page.frame.0 << PAGE_SHIFT | at.offset() as u64);
            self.memory.read(from, &mut piece).expect("guest memory");
            bytes.extend(piece);
        }
        bytes
    }

    fn word(&self, at: GuestVirt) -> u64 {
        u64::read_from_bytes(&self.read(at, 8)).expect("8 bytes")
    }

    fn start_info(&self) -> StartInfo {
        let at = GuestVirt(self.built.context.gpr(Gpr::Rsi));
        StartInfo::read_from_bytes(&self.read(at, size_of::<StartInfo>())).expect("its size")
    }

    /// The tables of the whole address space, and how many leaves are present in them.
    fn tables_and_leaves(&self) -> (BTreeSet<Mfn>, u64) {
        let (mut tables, mut leaves) = (BTreeSet::new(), 0);
        let mut left = vec![(4, self.built.context.kernel_root)];
        while let Some((level, table)) = left.pop() {
            assert!(tables.insert(table), "{table} is one table, in one place");
            for slot in 0..512 {
                let entry = self.memory.load_u64(MachAddr((table.0 << PAGE_SHIFT) + slot * 8)).unwrap();
                match (level, entry & 1) {
                    (_, 0) => assert_eq!(entry, 0),
                    (1, _) => leaves += 1,
                    _ => left.push((level - 1, Mfn((entry & 0x000f_ffff_ffff_f000) >> PAGE_SHIFT))),
                }
            }
        }
        (tables, leaves)
    }
}

fn kernels() -> impl Strategy<Value = Kernel> {
    let base = prop::option::of(prop::sample::select(vec![
        0,
        0x10_0000,
        0x3fff_f000,
        0x7f_ffe0_0000,
        0xffff_8800_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_bfe0_0000,
    ]));
    (base, 0u64..1024, 1u64..8 * MIB, any::<bool>(), any::<bool>(), prop::option::of(0usize..3000)).prop_map(
        |(virt_base, start, memory_len, outside, mod_start_pfn, symbols)| Kernel {
            virt_base,
            start: start * PAGE_SIZE,
            memory_len: memory_len.max(Kernel::CODE.len() as u64),
            // Below VIRT_BASE, or it has no effect.
            init_p2m: (outside && virt_base.is_some_and(|base| base >> 63 != 0)).then_some(0x80_0000_0000),
            mod_start_pfn,
            symbols,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_domain_is_mapped_as_its_plan_and_start_info_say(
        kernel in kernels(),
        extra in 0u64..4096,
        initrd in prop::option::of(1usize..300_000),
    ) {
        let initrd = initrd.map(|len| vec![0x5a; len]);
        // Enough for 12 MiB of kernel, tables and the padding.
        let pages = 6144 + extra;
        let domain = kernel.build(pages, initrd.as_deref()).unwrap();
        let (plan, info) = (&domain.built.plan, domain.start_info());
        let base = GuestVirt(kernel.virt_base.unwrap_or(0));

        // The range: every page, writable unless it is a page table.
        prop_assert_eq!(info.pt_base, plan.virt_of(plan.tables.start).0);
        prop_assert_eq!(info.nr_pt_frames, plan.tables.end.0 - plan.tables.start.0);
        for pfn in (0..plan.mapped_end.0).map(Pfn) {
            let page = domain.translate(base.wrapping_add(pfn.0 * PAGE_SIZE)).unwrap();
            prop_assert_eq!(page.frame, frame_of(pages, pfn));
            prop_assert_eq!(page.writable, !plan.tables.contains(&pfn), "{}", pfn);
            prop_assert!(page.executable && !page.user);
        }

        // The p2m list, wherever it is, and no other mapping. Each table is counted and there is no idle one.
        for (index, pfn) in (0..pages).map(Pfn).enumerate().step_by(97) {
            let entry = domain.word(GuestVirt(info.mfn_list).wrapping_add(index as u64 * 8));
            prop_assert_eq!(Mfn(entry), frame_of(pages, pfn));
        }
        let (tables, leaves) = domain.tables_and_leaves();
        let outside = plan.p2m_mapping.as_ref().map_or(0, |_| plan.p2m.end.0 - plan.p2m.start.0);
        prop_assert_eq!(leaves, plan.mapped_end.0 + outside);
        let planned: BTreeSet<Mfn> = (plan.tables.start.0..plan.tables.end.0)
            .chain(plan.p2m_mapping.iter().flat_map(|mapping| mapping.tables.start.0..mapping.tables.end.0))
            .map(|pfn| frame_of(pages, Pfn(pfn)))
            .collect();
        prop_assert_eq!(tables, planned);

        // What start_info says of the rest.
        prop_assert_eq!(&info.magic[..15], b"xen-3.0-x86_64\0");
        prop_assert_eq!(info.nr_pages, pages);
        prop_assert_eq!(Mfn(info.console_mfn), frame_of(pages, plan.console));
        prop_assert_eq!(Mfn(info.store_mfn), frame_of(pages, plan.xenstore));
        prop_assert_eq!(&info.cmd_line[..6], b"quiet\0");
        if let Some(initrd) = &initrd {
            let by_frame = info.flags & StartFlag::ModStartPfn.mask() != 0;
            prop_assert_eq!(by_frame, kernel.mod_start_pfn);
            let first = if by_frame { Pfn(info.mod_start) } else { plan.initrd.clone().unwrap().start };
            let mut byte = [0];
            let last = initrd.len() as u64 - 1;
            let frame = frame_of(pages, Pfn(first.0 + last / PAGE_SIZE));
            domain.memory.read(MachAddr((frame.0 << PAGE_SHIFT) + last % PAGE_SIZE), &mut byte).unwrap();
            prop_assert_eq!(byte, [0x5a]);
            if !by_frame {
                prop_assert_eq!(&domain.read(GuestVirt(info.mod_start), initrd.len()), initrd);
            }
        }

        // Registers, code, and the symbols behind it.
        let context = &domain.built.context;
        prop_assert_eq!(context.rip, base.wrapping_add(kernel.start).0);
        prop_assert_eq!(domain.read(GuestVirt(context.rip), Kernel::CODE.len()), Kernel::CODE);
        let top = GuestVirt(context.gpr(Gpr::Rsp));
        prop_assert!(domain.translate(top.wrapping_add(8_u64.wrapping_neg())).unwrap().writable);
        if kernel.symbols.is_some() {
            let end = (kernel.start + kernel.memory_len).next_multiple_of(8);
            let table = domain.read(base.wrapping_add(end), 8);
            prop_assert_eq!(&table[4..], b"\x7fELF");
            let size = u64::from(u32::read_from_bytes(&table[..4]).unwrap());
            prop_assert!(end + 4 + size <= plan.start_info.0 * PAGE_SIZE);
        }
    }

    #[test]
    fn the_least_memory_that_a_refusal_names_is_exact(
        kernel in kernels(),
        pages in 0u64..4096,
        initrd in prop::option::of(1usize..5_000_000),
    ) {
        let initrd = initrd.map(|len| vec![1; len]);
        let refusal = |pages| match kernel.build(pages, initrd.as_deref()) {
            Ok(_) => None,
            Err(BuildError::Plan(PlanError::TooLittleMemory { pages: had, needed })) => {
                assert_eq!(had, pages);
                Some(needed)
            }
            Err(other) => panic!("{other}"),
        };
        if let Some(least) = refusal(pages) {
            prop_assert!(least > pages);
            prop_assert_eq!(refusal(least - 1), Some(least));
            prop_assert_eq!(refusal(least), None);
        }
    }
}

#[test]
fn a_small_kernel_needs_4_mib_and_its_list() {
    let kernel = Kernel {
        virt_base: None,
        start: 0,
        memory_len: 0x8000,
        init_p2m: None,
        mod_start_pfn: false,
        symbols: None,
    };
    assert!(kernel.build(1024, None).is_ok());
    let error = kernel.build(1023, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("4092 KiB") && error.contains("4096 KiB"), "{error}");
}
