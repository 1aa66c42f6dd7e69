//! Accesses that cross from one page into the next, without Rust.
//!
//! The pages of an access that crosses need not be neighbours in host memory, so the instruction runs on the bounce pages:
//! see [`access`](crate::access). Code that goes through unaligned data meets a crossing on each page. So when a
//! walk finds that what it was asked for is in the TLB already (only a crossing fails the check then), and that the next
//! page is there too, it does itself what Rust would do: it copies both sides of the crossing to the bounce pages and
//! continues at the instruction, with the bounce pages' address.
//!
//! A read is done then. A write runs as the site's copy of the instruction, behind which translated code leaves as always;
//! Rust finds noted here what to write where ([`Translator::noted_crossing`]). Both pages are in the TLB for writes, so
//! they hold no code, and writing them cannot end a translation.
//!
//! Left to Rust are accesses of which elements may be masked out, those longer than [`REACH`], and those that lead a group.

use crate::access::Bounced;
use crate::engine::Translator;
use crate::tlb::Page;

/// Bytes copied on each side of the end of the first page.
pub(crate) const REACH: u32 = 64;

/// A write that runs on the bounce pages.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Crossing {
    /// The guest's linear address.
    pub(crate) linear: u64,
    /// The host addresses of both pages, as the TLB had them.
    pub(crate) pages: [u64; 2],
    /// Its length; zero if there is none.
    pub(crate) size: u32,
}

impl Translator {
    /// The write that a walk of translated code prepared, if one did: the same as one that Rust prepared.
    pub(crate) fn noted_crossing(&mut self) -> Option<Bounced> {
        let Crossing { linear, pages, size } = core::mem::take(&mut self.cpu.state_mut().walk.crossing);
        if size == 0 {
            return None;
        }
        let [first, second] = pages.map(|host| self.frame_at(host).map(Page::Frame));
        Some(Bounced::of_crossing(linear, size as usize, [first?, second?]))
    }
}

/// Copies eight bytes before the end of the first page (host address in RAX), and eight of the second (in RSI).
macro_rules! copy_words {
    ($($at:literal)*) => {
        concat!($(
            "mov rdx, [rax + 4032 + ", $at, "]\nmov [r14 + {bounce} + 4032 + ", $at, "], rdx\n",
            "mov rdi, [rsi + ", $at, "]\nmov [r14 + {bounce} + 4096 + ", $at, "], rdi\n"
        ),*)
    };
}

/// Behind label 8 of a walk whose entry was there already. RCX: the first page, RSI: the table, RDI: the entry's offset
/// in it; registers are saved. Anything but a plain crossing goes on at label 9.
macro_rules! cross {
    ($note:literal, $target:literal) => {
        concat!(
            "8:
             lea rax, [rcx + 4096]
             test eax, eax
             jz 9f
             mov rdx, rax
             shr rdx, 8
             and edx, 0xfff0
             cmp [rsi + rdx], rax
             jne 9f
             mov ebx, r15d
             imul rbx, rbx, {site_bytes}
             add rbx, [r14 + {sites}]
             cmp byte ptr [rbx], 0
             jne 9f
             cmp byte ptr [rbx + {shared}], 0
             jne 9f
             cmp byte ptr [rbx + {masked}], 0
             jne 9f
             cmp word ptr [rbx + {bias}], 0
             jne 9f
             mov eax, [rbx + {size}]
             cmp eax, {reach}
             ja 9f
             mov rcx, [r14 + {scratch}]
             and ecx, 4095
             add eax, ecx
             cmp eax, 4096
             jbe 9f
             mov rax, [rsi + rdi + 8]
             mov rsi, [rsi + rdx + 8]\n",
            crate::crossings::copy_words!("0" "8" "16" "24" "32" "40" "48" "56"),
            $note,
            "\nlea rcx, [r14 + rcx + {bounce}]
             mov [r14 + {scratch}], rcx
             inc qword ptr [r14 + {crossings}]
             mov r15d, [rbx + {",
            $target,
            "}]\n"
        )
    };
}

pub(crate) use {copy_words, cross};
