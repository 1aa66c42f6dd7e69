//! Every form in which a kernel file may describe itself, run: the kernel looks at what it finds at its start.
#![forbid(unsafe_code)]

use core::mem::offset_of;

use iced_x86::code_asm::{byte_ptr, dword_ptr, qword_ptr, registers::*};
use paravane_abi::{hypercall::Hypercall, start_info::StartInfo, units::PAGE_SIZE};
use paravane_minikernel::{Assembled, Layout, Metadata, Program, Setup};

/// Checks `start_info`, whose address is in RSI, and prints the name of its interface.
fn look_around(p: &mut Program) -> Assembled {
    let layout = p.layout.clone();
    p.a.mov(rbx, rsi)?;
    p.a.mov(rax, rbx)?;
    p.check("RSI leads to start_info", layout.start_info())?;
    p.a.mov(rax, rsp)?;
    p.check("RSP is the top of the boot stack", layout.page(layout.plan.boot_stack.0 + 1))?;
    let shared_info = layout.machine.shared_info.base().map_or(0, |at| at.0);
    for (what, offset, expected) in [
        ("nr_pages", offset_of!(StartInfo, nr_pages), layout.plan.pages),
        ("shared_info", offset_of!(StartInfo, shared_info), shared_info),
        ("pt_base", offset_of!(StartInfo, pt_base), layout.table(4)),
        ("mfn_list", offset_of!(StartInfo, mfn_list), layout.page(layout.plan.p2m.start.0)),
        ("mod_start", offset_of!(StartInfo, mod_start), 0),
    ] {
        p.a.mov(rax, qword_ptr(rbx + i32::try_from(offset).unwrap_or(0)))?;
        p.check(what, expected)?;
    }
    // The frame of the kernel's first page, by the list.
    p.a.mov(rax, qword_ptr(rbx + i32::try_from(offset_of!(StartInfo, mfn_list)).unwrap_or(0)))?;
    p.a.mov(rax, qword_ptr(rax))?;
    p.check("the list begins with the frame of page 0", layout.mfn(layout.base).0)?;
    p.a.mov(rax, layout.hypercall_page())?;
    p.a.movzx(eax, byte_ptr(rax))?;
    p.check("the hypercall page begins with PUSH RCX", 0x51)?;
    p.a.mov(rdx, rbx)?;
    p.a.xor(edi, edi)?;
    p.a.mov(esi, 14)?;
    p.invoke(Hypercall::ConsoleIo)
}

/// Runs a kernel of this setup that looks around and then does `body`.
fn passes(setup: &Setup, body: impl Fn(&mut Program) -> Assembled) {
    let setup = Setup { runtime: false, ..setup.clone() };
    let outcome = Program::assemble(&setup, |p| {
        look_around(p)?;
        body(p)
    })
    .run();
    assert!(outcome.passed(), "{setup:?}: {outcome}");
    assert_eq!(outcome.console, "xen-3.0-x86_64", "{setup:?}");
}

const HIGH: u64 = 0xffff_ffff_8000_0000;
const FORMS: [Metadata; 4] = [
    Metadata::NoteSegment,
    Metadata::NoteSection,
    Metadata::LegacyText,
    Metadata::LegacyTextBesideForeignNotes,
];

#[test]
fn a_kernel_finds_the_same_whatever_form_its_metadata_has() {
    for metadata in FORMS {
        for says_entry in [true, false] {
            passes(&Setup { metadata, says_entry, ..Setup::default() }, |_| Ok(()));
        }
    }
}

#[test]
fn without_a_base_everything_begins_at_address_0() {
    for metadata in FORMS {
        for says_entry in [true, false] {
            passes(
                &Setup { metadata, says_entry, base: 0, says_base: false, ..Setup::default() },
                |_| Ok(()),
            );
        }
    }
}

/// Text means virtual load addresses unless it says otherwise; notes must say so.
#[test]
fn load_addresses_may_be_virtual_ones() {
    for metadata in FORMS {
        for base in [HIGH, 0x40_0000] {
            passes(&Setup { metadata, base, virtual_load: true, ..Setup::default() }, |_| Ok(()));
        }
    }
}

#[test]
fn a_kernel_runs_in_the_least_memory_that_it_can_be_built_in() {
    let least = 4 << 20;
    passes(&Setup { pages: least / PAGE_SIZE, ..Setup::default() }, |_| Ok(()));
}

/// A kernel that looks up `second` in the symbol table behind itself, by the headers there.
#[test]
fn a_kernel_finds_its_symbols_behind_itself() {
    /// From the table: the size, the ELF header, and fields of ELF headers, section headers and symbols.
    const ELF: i32 = 4;
    const E_SHOFF: i32 = ELF + 40;
    const SECTIONS: i32 = ELF + 64;
    const SH_BYTES: i32 = 64;
    const SH_OFFSET: i32 = 24;
    const SYMBOL_BYTES: i32 = 24;
    const ST_VALUE: i32 = 8;
    for metadata in FORMS {
        let functions = [("first", HIGH + 0x1234), ("second", HIGH + 0x5678)];
        let symbols = functions.map(|(name, at)| (name.to_owned(), at)).to_vec();
        let setup = Setup { metadata, symbols, ..Setup::default() };
        let names_bytes = 1 + "first".len() as u64 + 1 + "second".len() as u64 + 1;
        passes(&setup, |p| {
            p.a.mov(rbx, p.layout.symbol_table())?;
            p.a.mov(eax, dword_ptr(rbx))?;
            p.check("the size", 264 - 4 + 3 * 24 + names_bytes)?;
            p.a.mov(eax, dword_ptr(rbx + ELF))?;
            p.check("an ELF file", u64::from(u32::from_le_bytes(*b"\x7fELF")))?;
            p.a.mov(rax, qword_ptr(rbx + E_SHOFF))?;
            p.check("section headers right behind the ELF header", 64)?;
            p.a.mov(rcx, qword_ptr(rbx + (SECTIONS + SH_BYTES + SH_OFFSET)))?;
            p.a.mov(rax, qword_ptr(rbx + rcx + (ELF + 2 * SYMBOL_BYTES + ST_VALUE)))?;
            p.check("the address of the second function", HIGH + 0x5678)?;
            p.a.mov(rcx, qword_ptr(rbx + (SECTIONS + SH_BYTES + SH_OFFSET)))?;
            p.a.mov(edx, dword_ptr(rbx + rcx + (ELF + 2 * SYMBOL_BYTES)))?;
            p.a.add(rdx, qword_ptr(rbx + (SECTIONS + 2 * SH_BYTES + SH_OFFSET)))?;
            p.a.mov(eax, dword_ptr(rbx + rdx + ELF))?;
            p.check("its name", u64::from(u32::from_le_bytes(*b"seco")))
        });
        let outcome = Program::assemble(&setup, |p| p.print("x")).run();
        assert_eq!(outcome.built.plan, Layout::new(&setup).plan, "{metadata:?}");
    }
}
