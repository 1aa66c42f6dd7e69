//! Page tables that map page tables, and themselves.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Entry, Program, both_ways};

const SELF: u64 = 0x7ff0;
const RW: u64 = 0x67;
const RO: u64 = 0x25;
const EINVAL: i64 = -22;
const EFAULT: i64 = -14;
/// A slot of the root that is the guest's, and the address at which a root that names itself there appears.
const SLOT: u64 = 300;
const ROOT_AT: u64 = 0xffff_0000_0000_0000 | SLOT << 39 | SLOT << 30 | SLOT << 21 | SLOT << 12;

fn update(p: &mut Program, what: &str, ptr: u64, value: u64, result: i64) -> Assembled {
    let request = p.words(&[ptr, value]);
    p.call_gives(what, Hypercall::MmuUpdate, &[request, 1, 0, SELF], result)
}

#[test]
fn a_root_may_map_itself_to_read() {
    for outcome in both_ways(|p| {
        let root = p.layout.table(4);
        let (slot, itself) = (p.layout.maddr(root).0 + SLOT * 8, p.layout.maddr(root).0);
        update(p, "to write", slot, itself | RW, EINVAL)?;
        update(p, "to read", slot, itself | RO, 0)?;
        p.load(root + 511 * 8)?;
        p.a.mov(rbx, rax)?;
        p.load(ROOT_AT + 511 * 8)?;
        p.a.sub(rax, rbx)?;
        p.check("it is seen through itself", 0)?;
        // Through it every table is seen, and none can be written.
        p.catch(|p| p.store(ROOT_AT + 8, 0))?;
        p.call_gives("writable tables do not help", Hypercall::VmAssist, &[0, 2], 0)?;
        p.catch(|p| p.store(ROOT_AT + 8, 0))?;
        update(p, "undone", slot, 0, 0)?;
        p.catch(|p| p.load(ROOT_AT))
    }) {
        let seen: Vec<_> = outcome.traps().iter().map(|trap| (trap.entry, trap.error_code())).collect();
        let fault = |code| (Entry::Vector(14), Some(code));
        assert_eq!(seen, [fault(3), fault(3), fault(0)], "{outcome}");
    }
}

#[test]
fn a_table_of_one_level_is_none_of_another() {
    both_ways(|p| {
        for (upper, slot, lower) in
            [(4, 301, 4), (4, 301, 2), (4, 301, 1), (3, 100, 4), (3, 100, 1), (2, 400, 3), (2, 400, 4)]
        {
            let at = p.layout.maddr(p.layout.table(upper)).0 + slot * 8;
            let entry = p.layout.maddr(p.layout.table(lower)).0 | RW;
            update(
                p,
                &format!("an L{upper} entry that names an L{lower} table to write"),
                at,
                entry,
                EINVAL,
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_table_with_a_bad_entry_deep_below_is_not_pinned_and_leaves_nothing_behind() {
    both_ways(|p| {
        let (l2, l1) = (p.pages(1), p.pages(1));
        p.store(l2, p.layout.maddr(l1).0 | RW)?;
        for (what, bad) in [
            ("a frame of Xen's", p.layout.machine.gdt.0 << 12 | RW),
            ("a page table to write", p.layout.maddr(p.layout.table(1)).0 | RW),
            ("its own table to write", p.layout.maddr(l1).0 | RW),
            ("PCD", p.layout.maddr(p.layout.free_page(0)).0 | RW | 16),
        ] {
            p.store(l1 + 511 * 8, bad)?;
            for page in [l1, l2] {
                let entry = p.layout.maddr(page).0 | RO;
                p.call_gives("read-only", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)?;
            }
            let pin = p.words(&[1, p.layout.mfn(l2).0, 0]);
            p.call(Hypercall::MmuextOp, &[pin, 1, 0, SELF])?;
            p.a.sar(rax, 63)?;
            p.check(what, u64::MAX)?;
            // Both are plain pages still.
            for page in [l1, l2] {
                let entry = p.layout.maddr(page).0 | RW;
                p.call_gives("writable again", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)?;
            }
        }
        Ok(())
    });
}

#[test]
fn lists_without_end_stop_where_they_cannot_be_read() {
    both_ways(|p| {
        let end = p.layout.page(p.layout.plan.mapped_end.0);
        let done = p.words(&[0]);
        let page = p.pages(1);
        let page = p.layout.maddr(page).0;
        p.store(end - 16, page)?;
        p.store(end - 8, 5)?;
        let args = [end - 16, 0x7fff_ffff, done, SELF];
        p.call_gives("mmu_update", Hypercall::MmuUpdate, &args, EFAULT)?;
        p.check_word("one was done", done, 1)?;
        // INVLPG_LOCAL.
        p.store(end - 24, 7)?;
        let args = [end - 24, 0x7fff_ffff, done, SELF];
        p.call_gives("mmuext_op", Hypercall::MmuextOp, &args, EFAULT)?;
        let args = [6, end - 16, 0x7fff_ffff];
        p.call_gives("grant_table_op takes one of that", Hypercall::GrantTableOp, &args, EINVAL)?;
        p.call_gives("set_trap_table", Hypercall::SetTrapTable, &[end - 8], EFAULT)
    });
}

#[test]
fn segments_outlive_the_table_that_they_are_from() {
    for outcome in both_ways(|p| {
        const DATA: u64 = 0x00cf_f300_0000_ffff;
        const CODE: u64 = 0x00af_fb00_0000_ffff;
        let page = p.pages(1);
        p.store(page + 8, DATA)?;
        p.store(page + 16, CODE)?;
        let entry = p.layout.maddr(page).0;
        p.call_gives("read-only", Hypercall::UpdateVaMapping, &[page, entry | RO, 2], 0)?;
        let frames = p.words(&[p.layout.mfn(page).0]);
        p.call_gives("a table", Hypercall::SetGdt, &[frames, 3], 0)?;
        p.a.mov(eax, 0x0b_u32)?;
        p.a.mov(ds, eax)?;
        p.a.mov(fs, eax)?;
        p.call_gives("none", Hypercall::SetGdt, &[0, 0], 0)?;
        p.call_gives("writable", Hypercall::UpdateVaMapping, &[page, entry | RW, 2], 0)?;
        p.store(page + 8, 0)?;
        // Flat mode does not look at DS; a trap and a return keep it.
        p.pass_over(2, |p| p.a.ud2())?;
        p.check_word("the guest goes on", page + 16, CODE)
    }) {
        assert_eq!(outcome.traps().len(), 1, "{outcome}");
    }
}
