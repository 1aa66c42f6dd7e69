//! `mmu_update`, `update_va_mapping`, `mmuext_op`: page tables as a kernel changes them.

use iced_x86::code_asm::*;
use paravane_abi::{hypercall::Hypercall, memory::INVALID_M2P_ENTRY};
use paravane_minikernel::{Assembled, Entry, Program, both_ways};

const SELF: u64 = 0x7ff0;
/// P, RW, US, A, D.
const RW: u64 = 0x67;
/// P, US, A.
const RO: u64 = 0x25;
const NX: u64 = 1 << 63;
/// The marker of a guest kernel's page, which 64-bit Xen puts into entries without US.
const KERNEL: u64 = 1 << 52;
const GLOBAL: u64 = 1 << 8;

const EPERM: i64 = -1;
const EFAULT: i64 = -14;
const EBUSY: i64 = -16;
const EINVAL: i64 = -22;
const ESRCH: i64 = -3;
const ENOSYS: i64 = -38;

/// Makes one request of `mmu_update` and checks its result.
fn update(p: &mut Program, what: &str, ptr: u64, value: u64, result: i64) -> Assembled {
    let request = p.words(&[ptr, value]);
    p.call_gives(what, Hypercall::MmuUpdate, &[request, 1, 0, SELF], result)
}

/// Does one operation of `mmuext_op` and checks its result.
fn extended(p: &mut Program, what: &str, op: [u64; 3], result: i64) -> Assembled {
    let op = p.words(&op);
    p.call_gives(what, Hypercall::MmuextOp, &[op, 1, 0, SELF], result)
}

/// Makes a page read-only in the initial mapping, so that it can become a page table.
fn read_only(p: &mut Program, page: u64) -> Assembled {
    let entry = p.layout.maddr(page).0 | RO;
    p.call_gives("it becomes read-only", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)
}

#[test]
fn update_va_mapping_stores_an_entry_as_validation_leaves_it() {
    both_ways(|p| {
        let (at, other) = (p.layout.free_page(0), p.layout.free_page(1));
        let frame = p.layout.maddr(other).0;
        let slot = p.layout.l1_entry(at);
        for (what, entry, stored) in [
            ("a kernel's page gets US and the marker", frame | 0x63, frame | 0x67 | KERNEL),
            ("a user's page becomes global", frame | RW, frame | RW | GLOBAL),
            ("the marker is kept, without global", frame | RW | KERNEL, frame | RW | KERNEL),
            ("NX is kept", frame | RO | NX, frame | RO | NX | GLOBAL),
            ("what is not present is not looked at", 0xdead_beef_0000, 0xdead_beef_0000),
            ("the guest's own bits are kept", frame | RW | 7 << 9, frame | RW | GLOBAL | 7 << 9),
        ] {
            p.call_gives(what, Hypercall::UpdateVaMapping, &[at, entry, 2], 0)?;
            p.check_word(what, slot, stored)?;
        }
        for (what, entry, result) in [
            ("PWT", frame | RW | 8, EINVAL),
            ("PCD", frame | RW | 16, EINVAL),
            ("PAT", frame | RW | 128, EINVAL),
            ("a frame of Xen's", p.layout.machine.gdt.0 << 12 | RW, EBUSY),
            ("a frame beyond memory", p.layout.machine.frames.end.0 << 12 | RW, EPERM),
            ("no frame at all", 0x000f_ffff_ffff_f000 | RW, EINVAL),
        ] {
            p.call_gives(what, Hypercall::UpdateVaMapping, &[at, entry, 0], result)?;
        }
        p.call_gives(
            "an address without L1 table",
            Hypercall::UpdateVaMapping,
            &[0x1234_5000, 0, 0],
            EINVAL,
        )?;
        p.call_gives("Xen's part", Hypercall::UpdateVaMapping, &[0xffff_8000_0000_0000, 0, 0], EINVAL)
    });
}

#[test]
fn a_flush_makes_a_new_mapping_seen_at_once() {
    both_ways(|p| {
        let at = p.layout.free_page(0);
        let pages = p.pages(2);
        for (value, page) in [(1, pages), (2, pages + 4096)] {
            p.store(page, value)?;
        }
        // Flags of update_va_mapping: flush all, this page, all on every vCPU, this page on every vCPU, by a bitmap.
        let mask = p.words(&[1]);
        for flush in [1, 2, 1 | 4, 2 | 4, 1 | mask, 2 | mask] {
            for (value, page) in [(1, pages), (2, pages + 4096)] {
                let entry = p.layout.maddr(page).0 | RW;
                p.call_gives("mapped", Hypercall::UpdateVaMapping, &[at, entry, flush], 0)?;
                p.check_word(&format!("seen after flush {flush:#x}"), at, value)?;
            }
        }
        // The same by mmuext_op.
        for op in [[6, 0, 0], [7, at, 0], [8, 0, mask], [9, at, mask], [10, 0, 0], [11, at, 0]] {
            for (value, page) in [(1, pages), (2, pages + 4096)] {
                let entry = p.layout.maddr(page).0 | RW;
                p.call_gives("mapped", Hypercall::UpdateVaMapping, &[at, entry, 0], 0)?;
                extended(p, "flushed", op, 0)?;
                p.check_word(&format!("seen after mmuext_op {op:x?}"), at, value)?;
            }
        }
        let entry = p.layout.maddr(pages).0 | RW;
        let args = [at, entry, 1 | 0x1234_5000];
        p.call_gives("a bitmap that is nowhere", Hypercall::UpdateVaMapping, &args, EFAULT)?;
        extended(p, "an address that is none is ignored", [7, 0x8000_0000_0000_0000, 0], 0)?;
        extended(p, "so is one of Xen's", [11, 0xffff_8000_0000_0000, 0], 0)
    });
}

#[test]
fn mmu_update_knows_what_it_stores_to() {
    both_ways(|p| {
        let (at, page) = (p.layout.free_page(0), p.pages(1));
        let slot = p.layout.maddr(p.layout.l1_entry(at)).0;
        let frame = p.layout.maddr(page).0;
        update(p, "an L1 entry", slot, frame | RW, 0)?;
        p.check_word("is validated", p.layout.l1_entry(at), frame | RW | GLOBAL)?;
        p.store(at, 42)?;
        p.check_word("and maps", page, 42)?;
        // PRESERVE_AD keeps what the CPU set.
        update(p, "without A and D, keeping them", slot | 2, frame | 0x07, 0)?;
        p.check_word("they are kept", p.layout.l1_entry(at), frame | RW | GLOBAL)?;
        update(p, "NO_TRANSLATE is as a normal update", slot | 3, frame | RW, 0)?;
        update(p, "a command that is not there", slot | 4, frame | RW, ENOSYS)?;
        update(p, "a plain page takes any word", frame + 8, u64::MAX, 0)?;
        p.check_word("as it is", page + 8, u64::MAX)?;
        update(p, "a frame of Xen's", p.layout.machine.gdt.0 << 12, 0, EINVAL)?;
        update(p, "a frame that is not there", 1 << 45, 0, EINVAL)?;
        update(p, "a mapping of a frame of Xen's", slot, p.layout.machine.gdt.0 << 12 | RW, EBUSY)?;
        // A request that is not aligned to its entry: the low three bits are the command, so nothing else is possible.
        let table = p.layout.maddr(p.layout.table(4)).0;
        update(p, "Xen's slots of a root", table + 256 * 8, 0, EINVAL)?;
        update(p, "a superpage", p.layout.maddr(p.layout.table(2)).0 + 8 * 400, frame | RW | 0x80, EINVAL)?;
        // Counts and lists.
        let requests = p.words(&[frame + 16, 1, frame + 24, 2, 1 << 45, 0, frame + 32, 3]);
        let done = p.words(&[100]);
        let args = [requests, 4, done, SELF];
        p.call_gives("the third of four is bad", Hypercall::MmuUpdate, &args, EINVAL)?;
        p.check_word("two are done, whatever stood there", done, 2)?;
        p.check_word("the first is", page + 16, 1)?;
        p.check_word("the fourth is not", page + 32, 0)?;
        p.call_gives("nothing to do", Hypercall::MmuUpdate, &[0x1234_5000, 0, 0, SELF], 0)?;
        p.call_gives("no list", Hypercall::MmuUpdate, &[0x1234_5000, 1, 0, SELF], EFAULT)?;
        p.call_gives("nobody's frames", Hypercall::MmuUpdate, &[requests, 1, 0, 77], ESRCH)
    });
}

#[test]
fn the_machine_to_physical_table_is_read_where_xen_puts_it() {
    let outcomes = both_ways(|p| {
        const M2P: u64 = 0xffff_8000_0000_0000;
        let page = p.layout.free_page(0);
        let frame = p.layout.mfn(page).0;
        let pfn = (page - p.layout.base) / 4096;
        p.check_word("it names the page", M2P + frame * 8, pfn)?;
        update(p, "MACHPHYS_UPDATE", frame << 12 | 1, 0x1_2345, 0)?;
        p.check_word("it names what the guest said", M2P + frame * 8, 0x1_2345)?;
        update(p, "of a frame of Xen's", p.layout.machine.gdt.0 << 12 | 1, 1, EINVAL)?;
        p.check_word(
            "spare frames have none",
            M2P + (p.layout.machine.frames.end.0 - 1) * 8,
            INVALID_M2P_ENTRY,
        )?;
        // A hole in it faults.
        p.catch(|p| p.load(M2P + (1 << 30)))
    });
    for outcome in outcomes {
        assert_eq!(outcome.trap().entry, Entry::Vector(14), "{outcome}");
    }
}

#[test]
fn a_kernel_can_build_and_run_on_tables_of_its_own() {
    let outcomes = both_ways(|p| {
        // A new root: a copy of the old one. A new L1 table for the 2 MiB behind the initial mapping.
        let (root, l1) = (p.pages(1), p.pages(1));
        let page = p.pages(1);
        p.a.mov(rsi, p.layout.table(4))?;
        p.a.mov(rdi, root)?;
        p.a.mov(ecx, 512)?;
        p.a.rep().movsq()?;
        for slot in 256..272_u64 {
            p.store(root + slot * 8, 0)?;
        }
        p.store(page, 77)?;
        p.store(l1 + 8 * 5, p.layout.maddr(page).0 | RW)?;
        extended(p, "pinning what is mapped writable", [0, p.layout.mfn(l1).0, 0], EINVAL)?;
        read_only(p, root)?;
        read_only(p, l1)?;
        extended(p, "the new root is pinned", [3, p.layout.mfn(root).0, 0], 0)?;
        extended(p, "twice is once too often", [3, p.layout.mfn(root).0, 0], EINVAL)?;
        extended(p, "a root is no L3 table", [2, p.layout.mfn(root).0, 0], EINVAL)?;
        let behind = p.layout.page(p.layout.plan.mapped_end.0);
        let l2_slot = (behind - p.layout.base) / (2 << 20);
        let l2 = p.layout.maddr(p.layout.table(2)).0 + l2_slot * 8;
        update(p, "the L1 table is hung in", l2, p.layout.maddr(l1).0 | RW, 0)?;
        p.check_word("its page is seen without a flush", behind + 5 * 4096, 77)?;
        p.catch(|p| p.load(behind + 6 * 4096))?;
        // Now it is a table: no writes by the guest, no second use.
        p.catch(|p| p.store(l1, 0))?;
        update(
            p,
            "an L1 table is no L2 table",
            p.layout.maddr(p.layout.table(3)).0,
            p.layout.maddr(l1).0 | RW,
            EINVAL,
        )?;
        extended(p, "the new root is loaded", [5, p.layout.mfn(root).0, 0], 0)?;
        p.check_word("all is as before", behind + 5 * 4096, 77)?;
        extended(p, "what is not a root is not loaded", [5, p.layout.mfn(page).0, 0], EINVAL)?;
        p.check_word("all is as before again", behind + 5 * 4096, 77)?;
        extended(p, "the old root is unpinned", [4, p.layout.mfn(p.layout.table(4)).0, 0], 0)?;
        extended(p, "only once", [4, p.layout.mfn(p.layout.table(4)).0, 0], EINVAL)?;
        // The old root is an ordinary page now.
        let old = p.layout.table(4);
        let entry = p.layout.maddr(old).0 | RW;
        p.call_gives("the old root becomes writable", Hypercall::UpdateVaMapping, &[old, entry, 2], 0)?;
        p.store(old, 1)?;
        update(p, "the L1 table is taken out", l2, 0, 0)?;
        p.catch(|p| p.load(behind + 5 * 4096))
    });
    for outcome in outcomes {
        let codes: Vec<_> = outcome.traps().iter().map(|trap| trap.error_code()).collect();
        assert_eq!(codes, [Some(0), Some(3), Some(0)], "{outcome}");
    }
}

#[test]
fn writable_page_tables_are_emulated_when_asked_for() {
    let outcomes = both_ways(|p| {
        let (at, page) = (p.layout.free_page(0), p.pages(2));
        let slot = p.layout.l1_entry(at);
        let (first, second) = (p.layout.maddr(page).0 | RW, p.layout.maddr(page + 4096).0 | RW);
        p.store(page, 1)?;
        p.store(page + 4096, 2)?;
        p.catch(|p| p.store(slot, first))?;
        p.call_gives("asked for", Hypercall::VmAssist, &[0, 2], 0)?;
        p.store(slot, first)?;
        extended(p, "flushed", [7, at, 0], 0)?;
        p.check_word("a store is an update", at, 1)?;
        p.check_word("which is validated", slot, first | GLOBAL)?;
        p.a.mov(rax, second)?;
        p.a.mov(rbx, slot)?;
        p.a.xchg(qword_ptr(rbx), rax)?;
        p.check("XCHG gives the old entry", first | GLOBAL)?;
        extended(p, "flushed", [7, at, 0], 0)?;
        p.check_word("and stores the new one", at, 2)?;
        p.a.mov(rax, second | GLOBAL)?;
        p.a.mov(rcx, first)?;
        p.a.lock().cmpxchg(qword_ptr(rbx), rcx)?;
        p.check_word("CMPXCHG that matches stores", slot, first | GLOBAL)?;
        p.a.xor(eax, eax)?;
        p.a.mov(rcx, second)?;
        p.a.lock().cmpxchg(qword_ptr(rbx), rcx)?;
        p.check("CMPXCHG that does not gives what is there", first | GLOBAL)?;
        p.a.lock().btr(dword_ptr(rbx), 1)?;
        p.load(slot)?;
        p.a.and(eax, 2)?;
        p.check("BTR takes RW away", 0)?;
        // A store that is refused is the page fault that it would have been.
        let xens = p.layout.machine.gdt.0 << 12 | RW;
        p.catch(|p| p.store(slot, xens))?;
        p.catch(|p| p.store(p.layout.table(2), 0))
    });
    for outcome in outcomes {
        let traps = outcome.traps();
        assert_eq!(traps.len(), 3, "{outcome}");
        assert!(traps.iter().all(|trap| trap.error_code() == Some(3)), "{outcome}");
    }
}

#[test]
fn pages_are_cleared_and_copied_by_frame() {
    both_ways(|p| {
        let pages = p.pages(2);
        p.store(pages + 4088, 7)?;
        let (first, second) = (p.layout.mfn(pages).0, p.layout.mfn(pages + 4096).0);
        extended(p, "copied", [17, second, first], 0)?;
        p.check_word("the copy", pages + 4096 + 4088, 7)?;
        extended(p, "cleared", [16, first, 0], 0)?;
        p.check_word("the cleared page", pages + 4088, 0)?;
        extended(p, "not the guest's", [16, p.layout.machine.gdt.0, 0], EINVAL)?;
        extended(p, "cache flushes are for those with devices", [12, 0, 0], -13)?;
        extended(p, "superpages", [19, first, 0], -95)?;
        for op in [14, 21, 22, 1000] {
            extended(p, &format!("operation {op}"), [op, 0, 0], ENOSYS)?;
        }
        p.call_gives("no list", Hypercall::MmuextOp, &[0x1234_5000, 1, 0, SELF], EFAULT)
    });
}
