//! PV kernels of a few instructions, made here, which spend all their time on one thing.
//!
//! What one thing costs is the difference in CPU time between a kernel that does it often and one that does not do it,
//! so that starting and ending the program drops out.

use paravane_abi::elfnote::ElfNote;
use paravane_builder::testing::elf::{ElfFile, number_note, text_note};
use paravane_x86::mode::Guest;

/// Where the code lies, in pseudo-physical memory and, with the base added, in the kernel's addresses.
const LOAD: u64 = 0x10_0000;
const BASE: u64 = 0xffff_ffff_8000_0000;

/// The end of each kernel: `HYPERVISOR_sched_op(SCHEDOP_shutdown, SHUTDOWN_poweroff)`.
const POWER_OFF: [u8; 19] = [
    0x6a, 0x00, // push 0 (SHUTDOWN_poweroff)
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0xbf, 2, 0, 0, 0, // mov edi, 2 (SCHEDOP_shutdown)
    0xb8, 29, 0, 0, 0, // mov eax, 29 (sched_op)
    0x0f, 0x05, // syscall
    0x0f, 0x0b, // ud2
];

/// A kernel that makes the cheapest hypercall `count` times: `HYPERVISOR_xen_version(XENVER_version, NULL)`.
pub(super) fn hypercalls(count: u32) -> Vec<u8> {
    let mut code = vec![0xbb]; // mov ebx, count
    code.extend_from_slice(&(count + 1).to_le_bytes());
    code.extend_from_slice(&[
        0xeb, 0x0b, // jmp test
        // again:
        0xb8, 17, 0, 0, 0, // mov eax, 17 (xen_version)
        0x31, 0xff, // xor edi, edi
        0x31, 0xf6, // xor esi, esi
        0x0f, 0x05, // syscall
        // test:
        0xff, 0xcb, // dec ebx
        0x75, 0xf1, // jnz again
    ]);
    code.extend_from_slice(&POWER_OFF);
    kernel(&code)
}

/// Instructions of each [`STRETCH`].
pub(super) const STRETCH_INSTRUCTIONS: u64 = 16;

/// Instructions in about the mix of a kernel: a third touch memory, every eighth is a branch. It leaves everything but
/// flags, RAX, RCX and RDX as it was.
const STRETCH: [u8; 56] = [
    0x48, 0x8b, 0x44, 0x24, 0xf8, // mov rax, [rsp - 8]
    0x48, 0x8d, 0x48, 0x20, // lea rcx, [rax + 32]
    0x48, 0x89, 0x4c, 0x24, 0xf0, // mov [rsp - 16], rcx
    0x31, 0xd2, // xor edx, edx
    0x48, 0x85, 0xc0, // test rax, rax
    0x74, 0x00, // jz next
    0x83, 0xc2, 0x07, // add edx, 7
    0x55, // push rbp
    0x48, 0x89, 0xca, // mov rdx, rcx
    0x48, 0xc1, 0xea, 0x03, // shr rdx, 3
    0x81, 0x64, 0x24, 0xf0, 0xff, 0x0f, 0, 0, // and dword ptr [rsp - 16], 0xfff
    0x0f, 0xb6, 0x54, 0x24, 0xf0, // movzx edx, byte ptr [rsp - 16]
    0x5d, // pop rbp
    0x48, 0x39, 0xc8, // cmp rax, rcx
    0x0f, 0x84, 0, 0, 0, 0,    // je next
    0x90, // nop
];

/// A kernel that runs `count` stretches of code one after another, each once.
pub(super) fn straight_code(count: usize) -> Vec<u8> {
    let mut code = STRETCH.repeat(count);
    code.extend_from_slice(&POWER_OFF);
    kernel(&code)
}

/// The ELF file of a 64-bit PV kernel that starts at the first byte of `code`.
fn kernel(code: &[u8]) -> Vec<u8> {
    let notes = [
        text_note(ElfNote::GuestOs, "bench"),
        text_note(ElfNote::GuestVersion, "1"),
        text_note(ElfNote::XenVersion, "xen-3.0"),
        text_note(ElfNote::Loader, "generic"),
        number_note(ElfNote::VirtBase, BASE),
        number_note(ElfNote::PaddrOffset, 0),
        number_note(ElfNote::Entry, BASE + LOAD),
    ];
    let memory = (code.len() as u64).next_multiple_of(4096);
    ElfFile::new(Guest::Bits64).entry(BASE + LOAD).load(LOAD, code, memory).notes(&notes).build()
}

#[cfg(test)]
mod tests {
    use paravane_builder::image::Image;

    use super::*;

    #[test]
    fn the_made_kernels_are_pv_kernels() {
        for kernel in [hypercalls(0), hypercalls(7), straight_code(0), straight_code(1000)] {
            assert!(Image::open(&kernel).unwrap().pv_kernel().is_ok());
        }
    }

    #[test]
    fn only_the_count_tells_two_kernels_with_hypercalls_apart() {
        let (few, many) = (hypercalls(1), hypercalls(2));
        let different: Vec<usize> = (0..few.len()).filter(|&at| few[at] != many[at]).collect();

        assert_eq!(different.len(), 1);
    }
}
