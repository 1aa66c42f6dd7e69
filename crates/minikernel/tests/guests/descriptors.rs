//! GDT, LDT, segments: `set_gdt`, `update_descriptor`, `set_segment_base`, `SET_LDT`.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Entry, Program, both_ways};

const EFAULT: i64 = -14;
const EINVAL: i64 = -22;
const SELF: u64 = 0x7ff0;
/// Ring-3 data with 4 GiB, and the same with DPL 0.
const DATA: u64 = 0x00cf_f300_0000_ffff;
const DATA_DPL_0: u64 = 0x00cf_9300_0000_ffff;
/// Ring-3 64-bit code.
const CODE: u64 = 0x00af_fb00_0000_ffff;
/// An available 64-bit TSS.
const TSS: u64 = 0x0000_8900_0000_0067;

fn read_only(p: &mut Program, page: u64) -> Assembled {
    let entry = p.layout.maddr(page).0 | 0x25;
    p.call_gives("it becomes read-only", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)
}

#[test]
fn a_gdt_of_the_guests_own_is_taken_and_used() {
    let outcomes = both_ways(|p| {
        let page = p.pages(1);
        p.store(page + 8, DATA_DPL_0)?;
        p.store(page + 16, CODE)?;
        p.store(page + 24, DATA)?;
        let frames = p.words(&[p.layout.mfn(page).0]);
        p.call_gives("a page that is mapped writable", Hypercall::SetGdt, &[frames, 4], EINVAL)?;
        read_only(p, page)?;
        p.call_gives("a page that is not", Hypercall::SetGdt, &[frames, 4], 0)?;
        p.check_word("the DPL is raised", page + 8, DATA)?;
        for selector in [0x0b_u32, 0x1b, 0xe02b] {
            p.a.mov(eax, selector)?;
            p.a.mov(ds, eax)?;
        }
        // Xen's own are still there; the page is visible in full, and zero behind the entries.
        p.catch(|p| {
            p.a.mov(eax, 0x23_u32)?;
            p.a.mov(ds, eax)
        })?;
        p.catch(|p| {
            p.a.mov(eax, 0x1003_u32)?;
            p.a.mov(ds, eax)
        })?;
        // A far return to the guest's own 64-bit code segment.
        let mut there = p.a.create_label();
        p.a.push(0x13)?;
        p.a.lea(rax, qword_ptr(there))?;
        p.a.push(rax)?;
        p.a.db(&[0x48, 0xcb])?;
        p.a.set_label(&mut there)?;
        p.a.mov(eax, cs)?;
        p.check("CS is the guest's own", 0x13)?;
        // A hypercall forgets that: it returns on the flat segment.
        p.call(Hypercall::XenVersion, &[0, 0])?;
        p.a.mov(eax, cs)?;
        p.check("CS is the flat one", 0xe033)?;
        let entry = p.layout.maddr(page).0 | 0x67;
        p.call_gives("it cannot become writable", Hypercall::UpdateVaMapping, &[page, entry, 2], -16)?;
        p.a.xor(eax, eax)?;
        p.a.mov(ds, eax)?;
        p.call_gives("none", Hypercall::SetGdt, &[0, 0], 0)?;
        p.call_gives("now it can", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)?;
        p.catch(|p| {
            p.a.mov(eax, 0x1b_u32)?;
            p.a.mov(ds, eax)
        })
    });
    for outcome in outcomes {
        let seen: Vec<_> = outcome.traps().iter().map(|trap| (trap.entry, trap.error_code())).collect();
        // A zero descriptor is one of the system's, not an absent one.
        let refused = |selector| (Entry::Vector(13), Some(selector));
        assert_eq!(seen, [refused(0x20), refused(0x1000), refused(0x18)], "{outcome}");
    }
}

#[test]
fn set_gdt_refuses_what_is_no_table() {
    both_ways(|p| {
        let page = p.pages(1);
        read_only(p, page)?;
        let frames = p.words(&[p.layout.mfn(page).0]);
        p.call_gives("too many entries", Hypercall::SetGdt, &[frames, 7169], EINVAL)?;
        p.call_gives("no list", Hypercall::SetGdt, &[0x1234_5000, 1], EFAULT)?;
        let bad = p.words(&[
            p.layout.machine.gdt.0,
            p.layout.machine.frames.end.0,
            p.layout.mfn(p.layout.table(1)).0,
        ]);
        for index in 0..3 {
            p.call_gives("no frame for it", Hypercall::SetGdt, &[bad + index * 8, 1], EINVAL)?;
        }
        // A descriptor that no guest may have.
        let entry = p.layout.maddr(page).0 | 0x67;
        p.call_gives("writable again", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)?;
        p.store(page + 400 * 8, TSS)?;
        read_only(p, page)?;
        p.call_gives("a TSS in it", Hypercall::SetGdt, &[frames, 1], EINVAL)
    });
}

#[test]
fn update_descriptor_stores_what_is_allowed() {
    both_ways(|p| {
        let page = p.pages(1);
        read_only(p, page)?;
        let frames = p.words(&[p.layout.mfn(page).0]);
        p.call_gives("an empty table", Hypercall::SetGdt, &[frames, 512], 0)?;
        let slot = p.layout.maddr(page).0 + 8 * 9;
        p.call_gives("data", Hypercall::UpdateDescriptor, &[slot, DATA_DPL_0], 0)?;
        p.check_word("with its DPL raised", page + 8 * 9, DATA)?;
        p.a.mov(eax, 0x4b_u32)?;
        p.a.mov(es, eax)?;
        p.call_gives("a TSS", Hypercall::UpdateDescriptor, &[slot, TSS], EINVAL)?;
        p.call_gives("no multiple of 8", Hypercall::UpdateDescriptor, &[slot + 4, DATA], EINVAL)?;
        p.call_gives(
            "a frame of Xen's",
            Hypercall::UpdateDescriptor,
            &[p.layout.machine.gdt.0 << 12, 0],
            EINVAL,
        )?;
        let table = p.layout.maddr(p.layout.table(1)).0;
        p.call_gives("a page table", Hypercall::UpdateDescriptor, &[table, 0], EINVAL)?;
        let plain = p.pages(1);
        let address = p.layout.maddr(plain).0;
        p.call_gives("a plain page", Hypercall::UpdateDescriptor, &[address, DATA], 0)?;
        p.check_word("has it", plain, DATA)?;
        p.call_gives("what is not present may be anything", Hypercall::UpdateDescriptor, &[slot, 0x1234], 0)
    });
}

#[test]
fn fs_and_gs_bases_are_set_by_hypercall_and_msr() {
    both_ways(|p| {
        let words = p.words(&[0x11, 0x22]);
        p.call_gives("FS", Hypercall::SetSegmentBase, &[0, words], 0)?;
        p.a.mov(rax, qword_ptr(0).fs())?;
        p.check("through FS", 0x11)?;
        p.call_gives("GS", Hypercall::SetSegmentBase, &[2, words + 8], 0)?;
        p.a.mov(rax, qword_ptr(0).gs())?;
        p.check("through GS", 0x22)?;
        for (msr, base) in [(0xc000_0100_u32, words), (0xc000_0101, words + 8)] {
            p.a.mov(ecx, msr)?;
            p.a.rdmsr()?;
            p.a.shl(rdx, 32)?;
            p.a.or(rax, rdx)?;
            p.check("RDMSR", base)?;
        }
        p.a.mov(ecx, 0xc000_0100_u32)?;
        p.a.mov(rax, words + 8)?;
        p.a.mov(rdx, rax)?;
        p.a.shr(rdx, 32)?;
        p.a.wrmsr()?;
        p.a.mov(rax, qword_ptr(0).fs())?;
        p.check("after WRMSR", 0x22)?;
        for which in [0, 1, 2] {
            p.call_gives("no address", Hypercall::SetSegmentBase, &[which, 1 << 63], EINVAL)?;
        }
        p.call_gives("no such base", Hypercall::SetSegmentBase, &[4, 0], EINVAL)?;
        p.call_gives(
            "a selector that cannot be loaded becomes null",
            Hypercall::SetSegmentBase,
            &[3, 0x1234],
            0,
        )
    });
}

#[test]
fn an_ldt_is_looked_at_when_it_is_used() {
    let outcomes = both_ways(|p| {
        let pages = p.pages(2);
        p.store(pages + 8, DATA)?;
        p.store(pages + 16, TSS)?;
        let set = |p: &mut Program, what: &str, at: u64, entries: u64, result: i64| {
            let op = p.words(&[13, at, entries]);
            p.call_gives(what, Hypercall::MmuextOp, &[op, 1, 0, SELF], result)
        };
        set(p, "not a page's start", pages + 8, 1, EINVAL)?;
        set(p, "too many", pages, 8193, EINVAL)?;
        set(p, "any page", pages, 1024, 0)?;
        // The page is mapped writable and has a TSS: it cannot be used as it is.
        p.catch(|p| {
            p.a.mov(eax, 0xf_u32)?;
            p.a.mov(ds, eax)
        })?;
        p.store(pages + 16, 0)?;
        read_only(p, pages)?;
        p.a.mov(eax, 0xf_u32)?;
        p.a.mov(ds, eax)?;
        p.a.mov(eax, ds)?;
        p.check("DS is of the LDT", 0xf)?;
        p.catch(|p| p.store(pages + 16, DATA))?;
        // Beyond the limit.
        p.catch(|p| {
            p.a.mov(eax, 0x2007_u32)?;
            p.a.mov(ds, eax)
        })?;
        p.a.xor(eax, eax)?;
        p.a.mov(ds, eax)?;
        set(p, "none", 0, 0, 0)?;
        let entry = p.layout.maddr(pages).0 | 0x67;
        p.call_gives("the page is free again", Hypercall::UpdateVaMapping, &[pages, entry, 2], 0)?;
        p.catch(|p| {
            p.a.mov(eax, 0xf_u32)?;
            p.a.mov(ds, eax)
        })
    });
    for outcome in outcomes {
        let entries: Vec<_> = outcome.traps().iter().map(|trap| trap.entry).collect();
        assert_eq!(entries[1..], [Entry::Vector(14), Entry::Vector(13), Entry::Vector(13)], "{outcome}");
    }
}
