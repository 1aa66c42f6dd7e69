//! The frames that the hypervisor pushes on a guest's stack when it enters the guest at a handler.
//!
//! A PV guest has no IDT that the CPU would use. For every exception, event and callback the hypervisor builds
//! on the guest's stack what the CPU would have pushed, changes RIP, and lets the guest go on: it bounces the
//! interruption to the guest. The frame is nearly the CPU's own. A 64-bit one has RCX and R11 below it, because
//! the hypervisor enters the guest by SYSRET, which destroys both. The CS word carries, above the selector, the
//! event mask as it was; the flags word carries it again, inverted, as IF.
//!
//! Sources: `create_bounce_frame` in `xen/arch/x86/x86_64/entry.S`; `compat_create_bounce_frame` in
//! `xen/arch/x86/x86_64/compat/entry.S`; for the failsafe frame the same of Xen 4.2.5.

use serde::Serialize;

use crate::mode::Guest;

/// When a word is in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Always.
    Always,
    /// With an exception that has an error code.
    ErrorCode,
    /// If the guest was interrupted in user mode (32-bit guests only).
    FromUser,
}

/// One word of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FrameWord {
    /// The register, or what the word is.
    pub name: &'static str,
    /// When it is there.
    pub when: When,
    /// What the hypervisor puts into it.
    pub content: &'static str,
}

/// Where the frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Kernel mode: the frame goes on the current stack.
    Kernel,
    /// User mode: the frame goes on the stack set by stack_switch.
    User,
}

/// A word that is always there.
const fn word(name: &'static str, content: &'static str) -> FrameWord {
    FrameWord { name, when: When::Always, content }
}

/// The error code, which some exceptions have.
const fn error_code(content: &'static str) -> FrameWord {
    FrameWord { name: "error code", when: When::ErrorCode, content }
}

/// A word that is there when user mode was interrupted.
const fn from_user(name: &'static str, content: &'static str) -> FrameWord {
    FrameWord { name, when: When::FromUser, content }
}

/// The frame of exceptions, events and callbacks in a 64-bit guest, from low to high: 8 bytes a word.
pub const FRAME_64: [FrameWord; 8] = [
    word("rcx", "RCX as it was; in the register is garbage"),
    word("r11", "R11 as it was; in the register is garbage"),
    error_code("the CPU's, in the low 32 bits; of a page fault with the U bit set to the virtual mode"),
    word("rip", "the address interrupted"),
    word(
        "cs",
        "bits 15..0 CS, with RPL 0 if the kernel was interrupted and 3 if user mode was; bits 39..32 the \
         event mask as it was",
    ),
    word(
        "rflags",
        "RFLAGS with IF = event mask was clear; IOPL 0, or virtual with assist architectural_iopl",
    ),
    word("rsp", "RSP as it was"),
    word("ss", "SS as it was"),
];

/// The frame of exceptions, events and callbacks in a 32-bit guest, from low to high: 4 bytes a word.
pub const FRAME_32: [FrameWord; 6] = [
    error_code("the CPU's; of a page fault with the U bit set to the virtual mode"),
    word("eip", "the address interrupted"),
    word("cs", "bits 15..0 CS, RPL and all; bits 23..16 the event mask as it was"),
    word(
        "eflags",
        "EFLAGS with IF = event mask was clear; IOPL 0, or virtual with assist architectural_iopl",
    ),
    from_user("esp", "ESP as it was"),
    from_user("ss", "SS as it was"),
];

/// The frame of the failsafe callback in a 64-bit guest, from low to high.
pub const FAILSAFE_64: [FrameWord; 11] = [
    word("rcx", "RCX as it was"),
    word("r11", "R11 as it was"),
    word("ds", "the selector that was to be loaded"),
    word("es", "the selector that was to be loaded"),
    word("fs", "the selector that was to be loaded"),
    word("gs", "the selector that was to be loaded"),
    word("rip", "the address to return to"),
    word("cs", "as in the ordinary frame"),
    word("rflags", "as in the ordinary frame"),
    word("rsp", "RSP"),
    word("ss", "SS"),
];

/// The frame of the failsafe callback in a 32-bit guest, from low to high.
pub const FAILSAFE_32: [FrameWord; 9] = [
    word("ds", "the selector that was to be loaded"),
    word("es", "the selector that was to be loaded"),
    word("fs", "the selector that was to be loaded"),
    word("gs", "the selector that was to be loaded"),
    word("eip", "the address to return to"),
    word("cs", "as in the ordinary frame"),
    word("eflags", "as in the ordinary frame"),
    from_user("esp", "ESP"),
    from_user("ss", "SS"),
];

/// The bytes to which a 64-bit guest's stack pointer is aligned down before a frame is pushed. A 32-bit
/// guest's is not aligned.
pub const STACK_ALIGN_64: u64 = 16;

/// Where the event mask begins in the CS word of a 64-bit frame.
pub const SAVED_MASK_SHIFT_64: u32 = 32;
/// Where the event mask begins in the CS word of a 32-bit frame.
pub const SAVED_MASK_SHIFT_32: u32 = 16;

/// The words of an ordinary frame, from low to high addresses, each with its offset from the new stack pointer.
///
/// ```
/// use paravane_x86::bounce_frame::{Origin, words};
/// use paravane_x86::mode::Guest;
///
/// let page_fault = words(Guest::Bits64, Origin::User, true);
/// assert_eq!(page_fault[3], (24, "rip"));
/// ```
pub fn words(guest: Guest, origin: Origin, has_error_code: bool) -> Vec<(u32, &'static str)> {
    let (frame, word_bytes): (&[FrameWord], u32) = match guest {
        Guest::Bits64 => (&FRAME_64, 8),
        Guest::Bits32 => (&FRAME_32, 4),
    };
    let present = frame.iter().filter(|word| match word.when {
        When::Always => true,
        When::ErrorCode => has_error_code,
        When::FromUser => origin == Origin::User,
    });
    (0..).step_by(word_bytes as usize).zip(present.map(|word| word.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(guest: Guest, origin: Origin, has_error_code: bool) -> Vec<&'static str> {
        words(guest, origin, has_error_code).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn a_64_bit_frame_has_its_stack_words_whatever_was_interrupted() {
        for origin in [Origin::Kernel, Origin::User] {
            assert_eq!(
                names(Guest::Bits64, origin, false),
                ["rcx", "r11", "rip", "cs", "rflags", "rsp", "ss"]
            );
        }
        let with_code = words(Guest::Bits64, Origin::Kernel, true);
        assert_eq!(with_code[2], (16, "error code"));
        assert_eq!(with_code.last(), Some(&(56, "ss")));
    }

    #[test]
    fn a_32_bit_frame_has_its_stack_words_only_from_user_mode() {
        assert_eq!(names(Guest::Bits32, Origin::Kernel, false), ["eip", "cs", "eflags"]);
        assert_eq!(
            words(Guest::Bits32, Origin::User, true),
            [(0, "error code"), (4, "eip"), (8, "cs"), (12, "eflags"), (16, "esp"), (20, "ss")]
        );
    }

    #[test]
    fn a_failsafe_frame_ends_like_an_ordinary_one() {
        let tail = |frame: &[FrameWord], count: usize| {
            frame[frame.len() - count..].iter().map(|word| word.name).collect::<Vec<_>>()
        };
        assert_eq!(tail(&FAILSAFE_64, 5), tail(&FRAME_64, 5));
        assert_eq!(tail(&FAILSAFE_32, 5), tail(&FRAME_32, 5));
    }
}
