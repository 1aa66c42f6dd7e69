//! Long runs of REP MOVS and REP STOS, page by page, without Rust.
//!
//! A run that does not fit into one page of each operand comes here, by a stub, with the guest's registers. Each part is
//! what fits both pages: their entries of the TLB are looked up, the host's own string instruction does the part, and
//! RSI, RDI and RCX are the guest's again before the next one, so that whoever looks between two parts finds a precise
//! state. A page that is not in the TLB is looked up by [`walk`](crate::walk), which comes back to the stub.
//!
//! What is left to Rust, with what was done so far done: a page that the walk cannot serve (a fault, a frame with code, an
//! accessed or dirty bit to set), an element that crosses a page's end, and a kick, for which every part looks.
//!
//! Parts cannot spread a pattern in another way than the whole would: elements are moved one after the other, in the
//! guest's order, at the one host address of their frame.
#![expect(unsafe_code, reason = "runs between translated instructions, with the guest's registers")]

use core::arch::naked_asm;
use core::mem::offset_of;

use crate::state::{KickCell, State, part};
use crate::walk::{Walk, read_walk, write_walk};

/// What a run needs beside the guest's registers.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Runs {
    /// RAX, RDX, RBX of the guest.
    saved: [u64; 3],
    /// What the instruction's code gave: where to continue when the run is done, above the index of its site.
    pub(crate) given: u64,
    /// The stub to which a walk comes back.
    pub(crate) again: u32,
    /// Runs whose parts were all done here.
    pub(crate) completed: u64,
    /// Addresses of the runs, for the stubs: those of MOVS, then those of STOS, by the logarithm of an element's size.
    pub(crate) entries: [u64; 8],
}

impl Runs {
    /// With nothing under way.
    pub(crate) fn new() -> Self {
        let runs = [
            move_bytes,
            move_words,
            move_dwords,
            move_qwords,
            store_bytes,
            store_words,
            store_dwords,
            store_qwords,
        ];
        let entries = runs.map(|run| run as *const () as usize as u64);
        Self { saved: [0; 3], given: 0, again: 0, completed: 0, entries }
    }
}

const RUNS: usize = offset_of!(State, runs);
const TABLES: usize = offset_of!(State, walk) + offset_of!(Walk, tables);

/// Bytes from an address (its lower half) to its page's end.
macro_rules! room {
    ($address:literal, $to:literal) => {
        concat!("mov ", $to, ", ", $address, "\nnot ", $to, "\nand ", $to, ", 4095\ninc ", $to)
    };
}

/// From an address to the distance between its page and the host's, or to a label if the TLB does not know.
macro_rules! distance {
    ($address:literal, $table:literal, $to:literal, $miss:literal) => {
        concat!(
            "mov rbx, ",
            $address,
            "\nshr rbx, 8\nand ebx, 0xfff0\nadd rbx, [r14 + {",
            $table,
            "}]\nmov rdx, ",
            $address,
            "\nand rdx, -4096\ncmp rdx, [rbx]\njne ",
            $miss,
            "\nmov ",
            $to,
            ", [rbx + 8]\nsub ",
            $to,
            ", [rbx]"
        )
    };
}

/// The guest's registers again.
macro_rules! restore {
    () => {
        "mov rax, [r14 + {saved}]\nmov rdx, [r14 + {saved} + 8]\nmov rbx, [r14 + {saved} + 16]"
    };
}

/// Behind a label: looks up the page of an address and comes back.
macro_rules! look_up {
    ($label:literal, $address:literal, $walk:literal) => {
        concat!(
            $label,
            ":\nmov [r14 + {scratch}], ",
            $address,
            "\n",
            restore!(),
            "\nmov r15d, [r14 + {again}]\nshl r15, 32\njmp {",
            $walk,
            "}"
        )
    };
}

/// A run: what differs is the shift from bytes to elements, what limits a part beside the destination's page, the
/// lookup of the source, the part itself, and what a miss of the source leads to.
macro_rules! run_asm {
    ($shift:literal, $limit:expr, $source:expr, $part:expr, $miss:expr; $($operands:tt)*) => {
        naked_asm!(
            "mov [r14 + {saved}], rax
             mov [r14 + {saved} + 8], rdx
             mov [r14 + {saved} + 16], rbx
           20:
             test rcx, rcx
             jz 80f
             cmp qword ptr [r14 + {kick}], 0
             je 90f",
            room!("edi", "eax"),
            $limit,
            concat!("shr eax, ", $shift),
            "jz 90f
             cmp rax, rcx
             cmova rax, rcx",
            $source,
            distance!("rdi", "writes", "rdx", "75f"),
            // The part's count to RCX, what is left beyond it to RBX.
            "mov rbx, rcx
             sub rbx, rax
             mov rcx, rax
             add rdi, rdx",
            $part,
            "sub rdi, rdx
             mov rcx, rbx
             jmp 20b
           80:
             inc qword ptr [r14 + {completed}]",
            restore!(),
            "mov r15, [r14 + {given}]
             shr r15, 32
             jmp r15
           90:",
            restore!(),
            "jmp {leave}",
            look_up!("75", "rdi", "write_walk"),
            $miss,
            saved = const RUNS + offset_of!(Runs, saved),
            given = const RUNS + offset_of!(Runs, given),
            again = const RUNS + offset_of!(Runs, again),
            completed = const RUNS + offset_of!(Runs, completed),
            scratch = const offset_of!(State, scratch),
            kick = const part::KICK + offset_of!(KickCell, pointer),
            writes = const TABLES + 8,
            write_walk = sym write_walk,
            leave = sym crate::trampoline::leave,
            $($operands)*
        )
    };
}

/// REP MOVS of one width.
macro_rules! move_run {
    ($name:ident, $shift:literal, $instruction:literal) => {
        /// Does a run of REP MOVS.
        ///
        /// # Safety
        ///
        /// Not a function: only jumped to, from a stub, with the state's address in R14.
        #[unsafe(naked)]
        unsafe extern "sysv64" fn $name() {
            run_asm!(
                $shift,
                concat!(room!("esi", "edx"), "\ncmp eax, edx\ncmova eax, edx"),
                distance!("rsi", "reads", "r15", "70f"),
                concat!("add rsi, r15\n", $instruction, "\nsub rsi, r15"),
                look_up!("70", "rsi", "read_walk");
                reads = const TABLES,
                read_walk = sym read_walk,
            )
        }
    };
}

/// REP STOS of one width.
macro_rules! store_run {
    ($name:ident, $shift:literal, $instruction:literal) => {
        /// Does a run of REP STOS.
        ///
        /// # Safety
        ///
        /// As for a run of REP MOVS.
        #[unsafe(naked)]
        unsafe extern "sysv64" fn $name() {
            // RAX held a count.
            run_asm!($shift, "", "", concat!("mov rax, [r14 + {saved}]\n", $instruction), "";)
        }
    };
}

move_run!(move_bytes, "0", "rep movsb");
move_run!(move_words, "1", "rep movsw");
move_run!(move_dwords, "2", "rep movsd");
move_run!(move_qwords, "3", "rep movsq");
store_run!(store_bytes, "0", "rep stosb");
store_run!(store_words, "1", "rep stosw");
store_run!(store_dwords, "2", "rep stosd");
store_run!(store_qwords, "3", "rep stosq");
