//! The page walk of translated code.
//!
//! Most misses of the software TLB find their page in tables that were walked before, and need nothing that only Rust
//! can do. So translated code walks the tables itself: the stubs of `emit_leave_stubs` come here with the linear
//! address in [`State::scratch`]; the walk saves the few registers it needs, fills the table, and jumps back to where
//! the check begins. The guest's vector state and stack pointer stay where they are.
//!
//! A walk here only succeeds when it has nothing to decide: four levels of small pages, ring 3, accessed bits (and
//! for a write the dirty bit) set already, for a write a frame without code. In every other case, a fault among them, it
//! undoes itself and leaves to Rust, which walks again and knows all the rules. If the entry is in the TLB already, the
//! access crosses the page's end: see [`crossings`](crate::crossings).
//!
//! [`code_walk`] does the same for pages of code. The pad that asks knows which frame its page had and what its code
//! takes for granted; if that is what is mapped, and the frame's code was not overwritten, its number is made current.
#![expect(unsafe_code, reason = "runs between translated instructions, with the guest's registers")]

use core::arch::naked_asm;
use core::mem::offset_of;

use crate::crossings::{Crossing, REACH, cross};
use crate::sites::{ACCESS, Access, Site};
use crate::state::{State, bounce, part};

/// What the walk must know, kept current by Rust.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Walk {
    /// The root's frame number; all ones makes every walk go to Rust.
    pub(crate) root: u64,
    /// The first frame's number.
    pub(crate) first: u64,
    /// The number of frames.
    pub(crate) count: u64,
    /// The host address of the first frame.
    pub(crate) base: u64,
    /// The host address of the frames' code marks, one word each.
    pub(crate) lines: u64,
    /// The current mode's TLBs for reads and writes.
    pub(crate) tables: [u64; 2],
    /// Which of their entries are filled, one bit each.
    pub(crate) filled: [u64; 2],
    /// The current mode's code-page table.
    pub(crate) code_pages: u64,
    /// Which of its entries are filled, one bit each.
    pub(crate) code_filled: u64,
    /// One byte for each code page's number: whether it may become current.
    pub(crate) alive: u64,
    /// The number of what translated code may take for granted now.
    pub(crate) env: u32,
    /// What the pad that asks expects: the same number ...
    pub(crate) expected_env: u32,
    /// ... the index of the frame ...
    pub(crate) expected_frame: u32,
    /// ... and the number of its page.
    pub(crate) expected_page: u32,
    /// RAX, RCX, RDX, RBX, RSI, RDI of the guest.
    saved: [u64; 6],
    /// The host address of the first site; Rust tells it on each way in.
    pub(crate) sites: u64,
    /// A write that crosses pages.
    pub(crate) crossing: Crossing,
    /// Crossings done here.
    pub(crate) crossings: u64,
    /// TLB entries filled here.
    pub(crate) refills: u64,
    /// Code pages made current here.
    pub(crate) page_checks: u64,
    /// Addresses of the three walks, for the stubs.
    pub(crate) entries: [u64; 3],
}

/// Numbers of code pages that [`Walk::alive`] covers; later ones always go to Rust.
pub(crate) const ALIVE_PAGES: usize = 1 << 16;

impl Walk {
    /// One that sends every miss to Rust.
    pub(crate) fn new() -> Self {
        Self {
            root: u64::MAX,
            first: 0,
            count: 0,
            base: 0,
            lines: 0,
            tables: [0; 2],
            filled: [0; 2],
            code_pages: 0,
            code_filled: 0,
            alive: 0,
            env: 0,
            expected_env: 0,
            expected_frame: 0,
            expected_page: 0,
            saved: [0; 6],
            sites: 0,
            crossing: Crossing::default(),
            crossings: 0,
            refills: 0,
            page_checks: 0,
            entries: [read_walk, write_walk, code_walk].map(|walk| walk as *const () as usize as u64),
        }
    }
}

const WALK: usize = offset_of!(State, walk);

/// Saves registers and checks that the address is canonical. RAX: the root, RBX: the host address of the first frame,
/// RCX: the address, RSI: the first frame, RDI: the number of frames.
macro_rules! begin {
    () => {
        "mov [r14 + {saved}], rax
         mov [r14 + {saved} + 8], rcx
         mov [r14 + {saved} + 16], rdx
         mov [r14 + {saved} + 24], rbx
         mov [r14 + {saved} + 32], rsi
         mov [r14 + {saved} + 40], rdi
         mov rcx, [r14 + {scratch}]
         mov rax, rcx
         shl rax, 16
         sar rax, 16
         cmp rax, rcx
         jne 9f
         mov rax, [r14 + {root}]
         mov rsi, [r14 + {first}]
         mov rdi, [r14 + {count}]
         mov rbx, [r14 + {base}]"
    };
}

/// One level: from the frame in RAX to the frame that its entry names, if the entry has all bits of a mask.
macro_rules! level {
    ($shift:literal, $bits:literal) => {
        concat!(
            "sub rax, rsi
             cmp rax, rdi
             jae 9f
             shl rax, 12
             add rax, rbx
             mov rdx, rcx
             shr rdx, ",
            $shift,
            "
             and edx, 511
             mov rax, [rax + rdx*8]
             mov edx, eax
             not edx
             test edx, ",
            $bits,
            "
             jnz 9f"
        )
    };
}

/// A table's entry must not be a large page.
macro_rules! not_large {
    () => {
        "test al, 0x80
         jnz 9f"
    };
}

/// From the entry in RAX to its frame: bits 51..12.
macro_rules! frame {
    () => {
        "shl rax, 12
         shr rax, 24"
    };
}

/// Bit 63 forbids execution.
macro_rules! executable {
    () => {
        "test rax, rax
         js 9f"
    };
}

/// The guest's registers again.
macro_rules! restore {
    () => {
        "mov rax, [r14 + {saved}]
         mov rcx, [r14 + {saved} + 8]
         mov rdx, [r14 + {saved} + 16]
         mov rbx, [r14 + {saved} + 24]
         mov rsi, [r14 + {saved} + 32]
         mov rdi, [r14 + {saved} + 40]"
    };
}

/// Restores registers and goes back to the address in the upper half of R15.
macro_rules! back {
    () => {
        concat!(restore!(), "\nmov r14, [r14 + {scratch}]\nshr r15, 32\njmp r15\n")
    };
}

/// From 9: leaves to Rust.
macro_rules! leave {
    () => {
        concat!("9:\n", restore!(), "\njmp {leave}")
    };
}

/// Continues at the address in R15 instead.
macro_rules! go_on {
    () => {
        concat!(restore!(), "\nmov r14, [r14 + {scratch}]\njmp r15\n")
    };
}

/// The body of a walk that fills a TLB: as `walk_asm`, with what crossings need.
macro_rules! data_walk_asm {
    ($($code:expr),+; $($operands:tt)*) => {
        walk_asm!(
            $($code),+;
            site_bytes = const size_of::<Site>(),
            sites = const WALK + offset_of!(Walk, sites),
            shared = const ACCESS + offset_of!(Access, shared),
            masked = const ACCESS + offset_of!(Access, masked),
            bias = const ACCESS + offset_of!(Access, bias),
            size = const ACCESS + offset_of!(Access, size),
            reach = const REACH,
            bounce = const part::BOUNCE + bounce::GUARDS * 4096,
            crossings = const WALK + offset_of!(Walk, crossings),
            $($operands)*
        )
    };
}

/// The body of a walk: its code, then the operands that only this one has.
macro_rules! walk_asm {
    ($($code:expr),+; $($operands:tt)*) => {
        naked_asm!(
            $($code),+,
            saved = const WALK + offset_of!(Walk, saved),
            scratch = const offset_of!(State, scratch),
            root = const WALK + offset_of!(Walk, root),
            first = const WALK + offset_of!(Walk, first),
            count = const WALK + offset_of!(Walk, count),
            base = const WALK + offset_of!(Walk, base),
            leave = sym crate::trampoline::leave,
            $($operands)*
        )
    };
}

/// From the leaf's frame in RAX to an entry of a TLB.
macro_rules! fill {
    () => {
        "shl rax, 12
         add rax, rbx
         mov rdx, rcx
         shr rdx, 12
         and edx, 4095
         and rcx, -4096
         mov rsi, [r14 + {table}]
         mov edi, edx
         shl edi, 4
         cmp [rsi + rdi], rcx
         je 8f
         mov [rsi + rdi], rcx
         mov [rsi + rdi + 8], rax
         mov rsi, [r14 + {filled}]
         bts qword ptr [rsi], rdx
         inc qword ptr [r14 + {refills}]"
    };
}

/// Fills an entry of the TLB for reads.
///
/// # Safety
///
/// Not a function: only jumped to, from a stub, with the state's address in R14.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn read_walk() {
    data_walk_asm!(
        begin!(),
        // Present, user, accessed.
        level!("39", "0x25"), not_large!(), frame!(),
        level!("30", "0x25"), not_large!(), frame!(),
        level!("21", "0x25"), not_large!(), frame!(),
        level!("12", "0x25"), frame!(),
        "sub rax, rsi
         cmp rax, rdi
         jae 9f",
        fill!(),
        back!(),
        cross!("", "resume"),
        go_on!(),
        leave!();
        resume = const ACCESS + offset_of!(Access, resume),
        table = const WALK + offset_of!(Walk, tables),
        filled = const WALK + offset_of!(Walk, filled),
        refills = const WALK + offset_of!(Walk, refills),
    );
}

/// Fills an entry of the TLB for writes.
///
/// # Safety
///
/// As for [`read_walk`].
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn write_walk() {
    data_walk_asm!(
        begin!(),
        // Present, writable, user, accessed; dirty too at the leaf.
        level!("39", "0x27"), not_large!(), frame!(),
        level!("30", "0x27"), not_large!(), frame!(),
        level!("21", "0x27"), not_large!(), frame!(),
        level!("12", "0x67"), frame!(),
        "sub rax, rsi
         cmp rax, rdi
         jae 9f
         mov rdx, [r14 + {lines}]
         cmp qword ptr [rdx + rax*8], 0
         jne 9f",
        fill!(),
        back!(),
        cross!(
            "mov rdx, [r14 + {scratch}]
             mov [r14 + {crossing}], rdx
             mov [r14 + {crossing} + 8], rax
             mov [r14 + {crossing} + 16], rsi
             mov edx, [rbx + {size}]
             mov [r14 + {crossing} + 24], edx",
            "aside"
        ),
        go_on!(),
        leave!();
        crossing = const WALK + offset_of!(Walk, crossing),
        aside = const ACCESS + offset_of!(Access, aside),
        lines = const WALK + offset_of!(Walk, lines),
        table = const WALK + offset_of!(Walk, tables) + 8,
        filled = const WALK + offset_of!(Walk, filled) + 8,
        refills = const WALK + offset_of!(Walk, refills),
    );
}

/// Makes the code page that a pad belongs to current.
///
/// # Safety
///
/// As for [`read_walk`].
#[unsafe(naked)]
unsafe extern "sysv64" fn code_walk() {
    walk_asm!(
        begin!(),
        level!("39", "0x25"), executable!(), not_large!(), frame!(),
        level!("30", "0x25"), executable!(), not_large!(), frame!(),
        level!("21", "0x25"), executable!(), not_large!(), frame!(),
        level!("12", "0x25"), executable!(), frame!(),
        "sub rax, rsi
         mov edx, [r14 + {expected_frame}]
         cmp rax, rdx
         jne 9f
         mov eax, [r14 + {env}]
         cmp eax, [r14 + {expected_env}]
         jne 9f
         mov edx, [r14 + {expected_page}]
         cmp edx, {alive_pages}
         jae 9f
         mov rsi, [r14 + {alive}]
         cmp byte ptr [rsi + rdx], 0
         je 9f
         shr rcx, 12
         and ecx, 4095
         mov rsi, [r14 + {code_pages}]
         mov [rsi + rcx*4], edx
         mov rsi, [r14 + {code_filled}]
         bts qword ptr [rsi], rcx
         inc qword ptr [r14 + {page_checks}]",
        back!(),
        leave!();
        expected_frame = const WALK + offset_of!(Walk, expected_frame),
        expected_env = const WALK + offset_of!(Walk, expected_env),
        expected_page = const WALK + offset_of!(Walk, expected_page),
        env = const WALK + offset_of!(Walk, env),
        alive_pages = const ALIVE_PAGES,
        alive = const WALK + offset_of!(Walk, alive),
        code_pages = const WALK + offset_of!(Walk, code_pages),
        code_filled = const WALK + offset_of!(Walk, code_filled),
        page_checks = const WALK + offset_of!(Walk, page_checks),
    );
}
