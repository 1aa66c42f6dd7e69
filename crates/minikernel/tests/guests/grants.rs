//! `grant_table_op`, as a frontend and as a guest that grants to itself use it.

use iced_x86::{IcedError, code_asm::*};
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Program, both_ways};

const EFAULT: i64 = -14;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;
const SELF: u64 = 0x7ff0;
/// The guest's own number: who maps is not asked for by `DOMID_SELF`.
const OWN: u64 = 1;
/// Status codes, as 16 bits.
const BAD_REF: u64 = 0xfffd;
const BAD_HANDLE: u64 = 0xfffc;
const GENERAL_ERROR: u64 = 0xffff;

fn grant(p: &mut Program, what: &str, op: u64, at: u64, result: i64) -> Assembled {
    p.call_gives(what, Hypercall::GrantTableOp, &[op, at, 1], result)
}

/// The 16 bits at an address, into RAX.
fn short(p: &mut Program, at: u64) -> Assembled {
    p.a.mov(rax, at)?;
    p.a.movzx(eax, word_ptr(rax))
}

/// Sets the table up with one frame and maps it; gives its address.
fn table(p: &mut Program) -> Result<u64, IcedError> {
    let frames = p.words(&[0]);
    let setup = p.words(&[SELF | 1 << 32, 0, frames]);
    grant(p, "the table is set up", 2, setup, 0)?;
    short(p, setup + 8)?;
    p.check("with status 0", 0)?;
    let at = p.layout.free_page(10);
    p.load(frames)?;
    p.a.shl(rax, 12)?;
    p.a.or(rax, 0x67)?;
    p.a.mov(rsi, rax)?;
    p.a.mov(rdi, at)?;
    p.a.mov(edx, 2)?;
    p.invoke(Hypercall::UpdateVaMapping)?;
    p.check("the table's frame is mapped", 0)?;
    Ok(at)
}

/// Writes a version 1 entry: flags, domain, frame.
fn entry(p: &mut Program, table: u64, reference: u64, flags: u64, domain: u64, page: u64) -> Assembled {
    let frame = p.layout.mfn(page).0;
    p.store(table + reference * 8, flags | domain << 16 | frame << 32)
}

#[test]
fn the_table_has_a_size_a_version_and_frames() {
    both_ways(|p| {
        let size = p.words(&[SELF, 0]);
        grant(p, "its size", 6, size, 0)?;
        short(p, size + 12)?;
        p.check("status 0", 0)?;
        short(p, size + 8)?;
        p.check("frames at the most", 64)?;
        let version = p.words(&[SELF]);
        grant(p, "its version", 10, version, 0)?;
        p.load(version)?;
        p.a.shr(rax, 32)?;
        p.check("is 1", 1)?;
        let bad = p.words(&[3]);
        grant(p, "version 3", 8, bad, EINVAL)?;
        let table = table(p)?;
        p.check_word("the console's entry is the toolstack's", table, 0)?;
        let frames = p.words(&[7; 65]);
        let setup = p.words(&[SELF | 65 << 32, 0, frames]);
        grant(p, "more than there can be", 2, setup, 0)?;
        short(p, setup + 8)?;
        p.check("is an error", GENERAL_ERROR)?;
        p.check_word("and gives none", frames, 7)?;
        p.call_gives("two at once", Hypercall::GrantTableOp, &[6, size, 2], EINVAL)?;
        p.call_gives("a count below zero", Hypercall::GrantTableOp, &[6, size, 0xffff_ffff], EINVAL)?;
        grant(p, "no structure", 6, 0x1234_5000, EFAULT)?;
        grant(p, "no such operation", 99, size, ENOSYS)
    });
}

#[test]
fn a_guest_maps_what_it_grants_to_itself() {
    both_ways(|p| {
        let table = table(p)?;
        let page = p.pages(1);
        p.store(page, 42)?;
        // The guest's own number is 1.
        entry(p, table, 9, 1, 1, page)?;
        let at = p.layout.free_page(11);
        // host_addr; flags host_map; ref; dom, status, handle; dev_bus_addr.
        let map = p.words(&[at, 2 | 9 << 32, OWN, 0]);
        grant(p, "mapped", 0, map, 0)?;
        short(p, map + 18)?;
        p.check("with status 0", 0)?;
        p.check_word("it is the page", at, 42)?;
        p.store(at, 43)?;
        p.check_word("to write too", page, 43)?;
        short(p, table + 9 * 8)?;
        p.check("reading and writing are noted", 1 | 8 | 16)?;
        // Unmap by the handle.
        let unmap = p.words(&[at, 0, 0]);
        p.a.mov(rax, map + 20)?;
        p.a.mov(ecx, dword_ptr(rax))?;
        p.a.mov(rax, unmap + 16)?;
        p.a.mov(dword_ptr(rax), ecx)?;
        grant(p, "unmapped", 1, unmap, 0)?;
        short(p, unmap + 20)?;
        p.check("with status 0", 0)?;
        short(p, table + 9 * 8)?;
        p.check("nothing is noted any more", 1)?;
        p.catch(|p| p.load(at))?;
        grant(p, "unmapped twice", 1, unmap, 0)?;
        short(p, unmap + 20)?;
        p.check("is a bad handle", BAD_HANDLE)?;
        for (what, flags, reference, status) in
            [("no kind of mapping", 0, 9, BAD_REF), ("a reference beyond the table", 2, 100_000, BAD_REF)]
        {
            let map = p.words(&[at, flags | reference << 32, OWN, 0]);
            grant(p, what, 0, map, 0)?;
            short(p, map + 18)?;
            p.check(what, status)?;
        }
        // Granted for reading only.
        entry(p, table, 10, 1 | 4, 1, page)?;
        let map = p.words(&[at, 2 | 10 << 32, OWN, 0]);
        grant(p, "to write what is read-only", 0, map, 0)?;
        short(p, map + 18)?;
        p.check("is an error", GENERAL_ERROR)?;
        let map = p.words(&[at, 2 | 4 | 10 << 32, OWN, 0]);
        grant(p, "to read it", 0, map, 0)?;
        short(p, map + 18)?;
        p.check("is none", 0)?;
        p.check_word("it is the page", at, 43)?;
        p.catch(|p| p.store(at, 0))
    });
}

#[test]
fn bytes_are_copied_between_grants_and_frames() {
    both_ways(|p| {
        let table = table(p)?;
        let (from, to) = (p.pages(1), p.pages(1));
        p.store(from + 100, 0x1122_3344_5566_7788)?;
        entry(p, table, 9, 1, 1, from)?;
        entry(p, table, 10, 1 | 4, 1, to)?;
        let frame = p.layout.mfn(to).0;
        // source: reference, domain and offset; destination: frame, domain and offset; length and flags.
        let copy = |p: &mut Program, what: &str, words: [u64; 5], status: u64| {
            let op = p.words(&words);
            grant(p, what, 5, op, 0)?;
            short(p, op + 36)?;
            p.check(what, status)
        };
        copy(p, "from a grant", [9, SELF | 100 << 16, frame, SELF | 200 << 16, 8 | 1 << 16], 0)?;
        p.check_word("it is there", to + 200, 0x1122_3344_5566_7788)?;
        // Across the end of a page, to what is read-only, from what is not granted.
        const BAD_ARGUMENT: u64 = 0xfff6;
        copy(p, "too long", [9, SELF | 4000 << 16, frame, SELF, 200 | 1 << 16], BAD_ARGUMENT)?;
        copy(p, "to a read-only grant", [9, SELF, 10, SELF, 8 | 3 << 16], GENERAL_ERROR)?;
        copy(p, "from no grant", [11, SELF, frame, SELF, 8 | 1 << 16], GENERAL_ERROR)?;
        copy(p, "from no reference", [100_000, SELF, frame, SELF, 8 | 1 << 16], BAD_REF)
    });
}
