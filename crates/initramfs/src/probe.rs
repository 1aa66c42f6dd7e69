//! Tiny programs that raise the faults which no shell can raise, and how each must end.
//!
//! Each is a static ELF file of one header, one segment and a few instructions, written as bytes so that neither building
//! nor testing needs an assembler. A program that a signal kills ends, as a shell sees it, with 128 and the signal's
//! number. One that survives what should have killed it runs into UD2, or ends with a status that is not the expected one.

/// A program and its end.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Its name, which is also the name of its file.
    pub name: &'static str,
    /// Whether it is a program for 64 or for 32 bits.
    pub width: Width,
    /// Its instructions, from the entry point on.
    pub code: &'static [u8],
    /// The status that a shell must see.
    pub status: u8,
}

/// The width of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// i386.
    Bits32,
    /// x86-64.
    Bits64,
}

/// What a shell adds to a signal's number. The numbers are in signal(7).
const KILLED: u8 = 128;
const SIGILL: u8 = KILLED + 4;
const SIGTRAP: u8 = KILLED + 5;
const SIGFPE: u8 = KILLED + 8;
const SIGSEGV: u8 = KILLED + 11;

/// All programs.
pub const PROBES: &[Probe] = &[
    wide(
        "divide-by-zero",
        SIGFPE,
        &[
            0x31, 0xc9, // xor ecx, ecx
            0x31, 0xc0, // xor eax, eax
            0x31, 0xd2, // xor edx, edx
            0xf7, 0xf1, // div ecx
        ],
    ),
    wide(
        "null-pointer",
        SIGSEGV,
        &[
            0x31, 0xc9, // xor ecx, ecx
            0x8b, 0x01, // mov eax, [rcx]
        ],
    ),
    wide(
        "pointer-into-the-kernel",
        SIGSEGV,
        &[
            0x48, 0xc7, 0xc0, 0, 0, 0, 0x81, // mov rax, 0xffffffff81000000
            0x8b, 0x00, // mov eax, [rax]
        ],
    ),
    wide(
        "pointer-into-the-hypervisor",
        SIGSEGV,
        &[
            0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff, // mov rax, 0xffff800000000000
            0x8b, 0x00, // mov eax, [rax]
        ],
    ),
    wide(
        "non-canonical-pointer",
        SIGSEGV,
        &[
            0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, // mov rax, 0x8000000000000000
            0x8b, 0x00, // mov eax, [rax]
        ],
    ),
    wide(
        "write-to-own-code",
        SIGSEGV,
        &[
            0x48, 0x8d, 0x05, 0, 0, 0, 0, // lea rax, [rip]
            0x88, 0x00, // mov [rax], al
        ],
    ),
    wide(
        "jump-to-null",
        SIGSEGV,
        &[
            0x31, 0xc9, // xor ecx, ecx
            0xff, 0xe1, // jmp rcx
        ],
    ),
    wide(
        "endless-stack",
        SIGSEGV,
        &[
            0x50, // again: push rax
            0xeb, 0xfd, // jmp again
        ],
    ),
    wide("illegal-instruction", SIGILL, &UD2),
    wide("breakpoint", SIGTRAP, &[0xcc]),
    wide("halt", SIGSEGV, &[0xf4]),
    wide("disable-interrupts", SIGSEGV, &[0xfa]),
    wide("interrupt-0x42", SIGSEGV, &[0xcd, 0x42]),
    wide(
        "single-step",
        SIGTRAP,
        &[
            0x9c, // pushfq
            0x81, 0x0c, 0x24, 0x00, 0x01, 0, 0,    // or dword ptr [rsp], 0x100 (the trap flag)
            0x9d, // popfq
            0x90, 0x90, // nop; nop
        ],
    ),
    // Installs a handler for SIGSEGV and reads from an address where nothing is. The handler checks the address that
    // it is told and puts a good one into the register that was used, so the instruction succeeds when it is repeated.
    wide(
        "handled-fault",
        7,
        &[
            0x48, 0x8d, 0x05, 0x4c, 0, 0, 0, // lea rax, [restorer]
            0x6a, 0x00, // push 0 (sa_mask)
            0x50, // push rax (sa_restorer)
            0x68, 0x04, 0x00, 0x00, 0x04, // push 0x4000004 (SA_RESTORER | SA_SIGINFO)
            0x48, 0x8d, 0x05, 0x2b, 0, 0, 0,    // lea rax, [handler]
            0x50, // push rax (sa_handler)
            0xb8, 13, 0, 0, 0, // mov eax, 13 (rt_sigaction)
            0xbf, 11, 0, 0, 0, // mov edi, 11 (SIGSEGV)
            0x48, 0x89, 0xe6, // mov rsi, rsp
            0x31, 0xd2, // xor edx, edx
            0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
            0x0f, 0x05, // syscall
            0xbb, 0x00, 0x40, 0x23, 0x01, // mov ebx, 0x1234000
            0x8b, 0x0b, // mov ecx, [rbx]
            0xbf, 7, 0, 0, 0, // mov edi, 7
            0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
            0x0f, 0x05, // syscall
            // handler:
            0x48, 0x81, 0x7e, 0x10, 0x00, 0x40, 0x23,
            0x01, // cmp qword ptr [rsi + 16], 0x1234000 (si_addr)
            0x75, 0x0f, // jne bad
            0x48, 0x89, 0xa2, 0x80, 0, 0, 0,    // mov [rdx + 128], rsp (RBX of the ucontext)
            0xc3, // ret
            // restorer:
            0xb8, 15, 0, 0, 0, // mov eax, 15 (rt_sigreturn)
            0x0f, 0x05, // syscall
            // bad:
            0xbf, 1, 0, 0, 0, // mov edi, 1
            0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
            0x0f, 0x05, // syscall
        ],
    ),
    Probe {
        name: "system-call-of-32-bits",
        width: Width::Bits32,
        status: 42,
        code: &[
            0xb8, 1, 0, 0, 0, // mov eax, 1 (exit)
            0xbb, 42, 0, 0, 0, // mov ebx, 42
            0xcd, 0x80, // int 0x80
        ],
    },
    Probe {
        name: "null-pointer-of-32-bits",
        width: Width::Bits32,
        status: SIGSEGV,
        code: &[
            0x31, 0xc9, // xor ecx, ecx
            0x8b, 0x01, // mov eax, [ecx]
        ],
    },
];

/// The instruction that is undefined for good.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// Where the segment of each program is mapped: the usual address of programs that are not relocated.
const BASE: u32 = 0x40_0000;

const fn wide(name: &'static str, status: u8, code: &'static [u8]) -> Probe {
    Probe { name, width: Width::Bits64, code, status }
}

impl Probe {
    /// The ELF file. Source: elf(5).
    pub fn program(&self) -> Vec<u8> {
        let mut file = match self.width {
            Width::Bits64 => self.headers(Layout { header: 64, segment: 56, word: 8, class: 2, machine: 62 }),
            Width::Bits32 => self.headers(Layout { header: 52, segment: 32, word: 4, class: 1, machine: 3 }),
        };
        file.extend_from_slice(self.code);
        file.extend_from_slice(&UD2);
        file
    }

    fn headers(&self, layout: Layout) -> Vec<u8> {
        let Layout { header, segment, word, class, machine } = layout;
        let code_start = u32::from(header + segment);
        let size = code_start + u32::try_from(self.code.len() + UD2.len()).expect("a few instructions");
        let (executable, version, loadable, readable_executable) = (2_u16, 1_u32, 1_u32, 5_u32);
        let mut out = Writer { bytes: vec![0x7f, b'E', b'L', b'F', class, 1, 1], word };
        out.bytes.resize(16, 0);
        out.half(executable).half(machine).full(version);
        out.word(BASE + code_start).word(u32::from(header)).word(0);
        out.full(0).half(header).half(segment).half(1).half(0).half(0).half(0);
        out.full(loadable);
        // The flags stand second in 64-bit files and next to last in 32-bit ones.
        if self.width == Width::Bits64 {
            out.full(readable_executable);
        }
        out.word(0).word(BASE).word(BASE).word(size).word(size);
        if self.width == Width::Bits32 {
            out.full(readable_executable);
        }
        out.word(0x1000);
        out.bytes
    }
}

/// What differs between files of the two widths.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Size of the file's header.
    header: u16,
    /// Size of the segment's header.
    segment: u16,
    /// Size of an address.
    word: usize,
    class: u8,
    machine: u16,
}

/// Puts little-endian numbers one after another.
#[derive(Debug)]
struct Writer {
    bytes: Vec<u8>,
    /// Size of an address.
    word: usize,
}

impl Writer {
    fn half(&mut self, value: u16) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn full(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn word(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&u64::from(value).to_le_bytes()[..self.word]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_probe_has_a_name_of_its_own_that_is_one_word() {
        let names: BTreeSet<&str> = PROBES.iter().map(|probe| probe.name).collect();
        assert_eq!(names.len(), PROBES.len());
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}");
        }
    }

    #[test]
    fn headers_are_as_long_as_they_say() {
        for probe in PROBES {
            let program = probe.program();
            let headers = match probe.width {
                Width::Bits64 => 64 + 56,
                Width::Bits32 => 52 + 32,
            };
            assert_eq!(program[headers..][..probe.code.len()], *probe.code, "{}", probe.name);
        }
    }

    /// The host is x86-64 Linux too, so what a guest must do, the host does.
    #[test]
    fn each_probe_ends_on_the_host_as_a_guest_must_end_it() {
        use std::os::unix::{fs::PermissionsExt, process::ExitStatusExt};
        let folder = std::env::temp_dir().join(format!("paravane-probe-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for probe in PROBES.iter().filter(|probe| probe.width == Width::Bits64) {
            let path = folder.join(probe.name);
            std::fs::write(&path, probe.program()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let status = std::process::Command::new(&path).status().unwrap();
            let seen = status.code().or_else(|| Some(128 + status.signal()?));
            assert_eq!(seen, Some(i32::from(probe.status)), "{}", probe.name);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
