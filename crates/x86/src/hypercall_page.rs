//! The hypercall page: one page of code through which a guest calls its hypervisor.
//!
//! The hypervisor writes it and so decides how it is entered; the guest only calls
//! `page + number * 32`. There are 128 slots of 32 bytes, every one filled with a stub for its number, whether
//! or not the number means anything; the bytes between stubs are 0xCC (INT3). The slot of `iret` is
//! different: it is jumped to, never returns, and completes the frame that [`crate::iret_frame`] describes.
//!
//! A guest need not use the page. 64-bit Linux no longer does: it has a stub of its own, and newer ones pick
//! the instruction at boot. What makes a hypercall is the instruction in the right mode, wherever it stands.
//!
//! The stubs are written here as instructions with their bytes, so that the page, its listing and the check
//! of a page found in memory come from the same rows; no disassembler is involved.
//!
//! Sources: `xen/arch/x86/pv/hypercall.c` (`pv_ring3_init_hypercall_page`, `pv_ring1_init_hypercall_page`);
//! for the third form `xen/arch/x86/x86_32/traps.c` of Xen 4.2.5
//! (`hypercall_page_initialise_ring0_kernel`).

use core::fmt;

use paravane_abi::hypercall::{Hypercall, NumberUse, describe};
use paravane_abi::units::PAGE_BYTES;
use serde::Serialize;
use thiserror::Error;

use crate::mode::Mode;
use crate::selector::Selector;

/// Bytes in a slot.
pub const SLOT_BYTES: usize = 32;
/// Slots in the page.
pub const SLOTS: usize = PAGE_BYTES / SLOT_BYTES;
/// What lies between the stubs: INT3.
pub const FILLER: u8 = 0xcc;
/// The software interrupt of a 32-bit guest's hypercalls. Its IDT gate has DPL 1.
pub const HYPERCALL_VECTOR: u8 = 0x82;

/// How a page's stubs enter the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// SYSCALL, for 64-bit guests.
    Syscall,
    /// INT 0x82 from ring 1, for 32-bit guests.
    Int82,
    /// A far call, for a 32-bit kernel in ring 0 (`supervisor_mode_kernel`). Only 32-bit Xen could be built
    /// so, and it is gone.
    FarCall {
        /// The selector of the entry point, Xen's own code.
        selector: Selector,
        /// The entry point.
        offset: u32,
    },
}

/// One instruction of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Instruction {
    #[serde(serialize_with = "serialize_bytes")]
    bytes: Bytes,
    /// What it is.
    pub operation: Operation,
}

/// The bytes of an instruction; none here is longer than seven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bytes {
    bytes: [u8; 7],
    length: usize,
}

/// What an instruction of a stub is. Text and comment derive from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `push %rcx`
    PushRcx,
    /// `push %r11`
    PushR11,
    /// `push %rax`
    PushRax,
    /// `push %eax`
    PushEax,
    /// `pushf`
    Pushf,
    /// `cli`
    Cli,
    /// `mov $number, %eax`
    MovEax(u32),
    /// `syscall`
    Syscall,
    /// `int $0x82`
    Int82,
    /// `lcall $selector, $offset`
    FarCall {
        /// The selector.
        selector: Selector,
        /// The offset.
        offset: u32,
    },
    /// `pop %r11`
    PopR11,
    /// `pop %rcx`
    PopRcx,
    /// `ret`
    Ret,
}

/// One slot of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// The hypercall's number.
    pub number: u32,
    /// Bytes from the page's beginning.
    pub offset: usize,
    /// What the number means.
    pub meaning: NumberUse,
    /// The stub.
    pub instructions: Vec<Instruction>,
}

/// The first byte at which a slot differs from the form it was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The slot, which is the hypercall's number.
    pub slot: u32,
    /// What the number means.
    pub meaning: NumberUse,
    /// Bytes from the page's beginning.
    pub offset: usize,
    /// What the form has there.
    pub expected: u8,
    /// What the page has there.
    pub found: u8,
}

/// What a page turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The form that the page resembles most.
    pub form: Form,
    /// How many of the slots are exactly that form's.
    pub matching_slots: usize,
    /// The other slots.
    pub differences: Vec<Difference>,
}

/// A page of the wrong size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a hypercall page is {PAGE_BYTES} bytes, here are {found}: give exactly the page")]
pub struct WrongSize {
    /// How many bytes there were.
    pub found: usize,
}

/// The page in that form.
pub fn page(form: Form) -> [u8; PAGE_BYTES] {
    let mut page = [FILLER; PAGE_BYTES];
    for (number, slot) in (0..).zip(page.chunks_exact_mut(SLOT_BYTES)) {
        let mut at = 0;
        for instruction in form.stub(number) {
            let bytes = instruction.bytes();
            slot[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
    }
    page
}

/// Every slot of the page in that form, in order.
pub fn slots(form: Form) -> impl Iterator<Item = Slot> {
    (0..).zip((0..PAGE_BYTES).step_by(SLOT_BYTES)).map(move |(number, offset)| Slot {
        number,
        offset,
        meaning: describe(number),
        instructions: form.stub(number),
    })
}

/// Finds out which form a page has, and which slots differ from it.
///
/// A page that has been damaged still resembles its form in the other slots. Of a page that resembles none,
/// every slot differs and [`Check::matching_slots`] is 0; the form is then the one with most equal bytes.
///
/// # Errors
///
/// [`WrongSize`] if `page` is not 4096 bytes.
pub fn check(page: &[u8]) -> Result<Check, WrongSize> {
    let page: &[u8; PAGE_BYTES] = page.try_into().map_err(|_| WrongSize { found: page.len() })?;
    let best = [Some(Form::Syscall), Some(Form::Int82), far_call_form(page)]
        .into_iter()
        .flatten()
        .map(|form| (likeness(page, form), form))
        .max_by_key(|&(likeness, _)| likeness);
    let form = best.map_or(Form::Syscall, |(_, form)| form);
    Ok(check_against(page, form))
}

/// Compares a page with a form.
pub fn check_against(page: &[u8; PAGE_BYTES], form: Form) -> Check {
    let expected = self::page(form);
    let differences: Vec<Difference> = (0..)
        .zip(page.chunks_exact(SLOT_BYTES).zip(expected.chunks_exact(SLOT_BYTES)))
        .filter_map(|(number, (found, expected))| {
            let at = found.iter().zip(expected).position(|(found, expected)| found != expected)?;
            Some(Difference {
                slot: number,
                meaning: describe(number),
                offset: number as usize * SLOT_BYTES + at,
                expected: expected[at],
                found: found[at],
            })
        })
        .collect();
    Check { form, matching_slots: SLOTS - differences.len(), differences }
}

/// How alike a page is to a form: equal slots first, then equal bytes.
fn likeness(page: &[u8; PAGE_BYTES], form: Form) -> (usize, usize) {
    let equal_bytes =
        page.iter().zip(&self::page(form)).filter(|(found, expected)| found == expected).count();
    (check_against(page, form).matching_slots, equal_bytes)
}

/// The far-call form, with the target that most slots of the page name; `None` if no slot has a far call.
fn far_call_form(page: &[u8; PAGE_BYTES]) -> Option<Form> {
    let mut votes: Vec<(Form, usize)> = Vec::new();
    for slot in page.chunks_exact(SLOT_BYTES) {
        // pushf, cli, mov $number, %eax, lcall: the call's opcode is the eighth byte.
        let [0x9c, 0xfa, 0xb8, _, _, _, _, 0x9a, o0, o1, o2, o3, s0, s1, ..] = *slot else { continue };
        let form = Form::FarCall {
            selector: Selector(u16::from_le_bytes([s0, s1])),
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
        };
        match votes.iter_mut().find(|(voted, _)| *voted == form) {
            Some((_, count)) => *count += 1,
            None => votes.push((form, 1)),
        }
    }
    votes.into_iter().max_by_key(|&(_, count)| count).map(|(form, _)| form)
}

impl Form {
    /// The form that Xen gives a guest in `mode`.
    pub fn of(mode: Mode) -> Self {
        match mode {
            Mode::Guest64 => Self::Syscall,
            Mode::Guest32On64 | Mode::Guest32On32Pae | Mode::Guest32On32NonPae => Self::Int82,
        }
    }

    /// The instructions of the slot of that number.
    pub fn stub(self, number: u32) -> Vec<Instruction> {
        let is_iret = number == Hypercall::Iret.number();
        let mov = Operation::MovEax(number);
        let operations: &[Operation] = match (self, is_iret) {
            (Self::Syscall, false) => &[
                Operation::PushRcx,
                Operation::PushR11,
                mov,
                Operation::Syscall,
                Operation::PopR11,
                Operation::PopRcx,
                Operation::Ret,
            ],
            (Self::Syscall, true) => {
                &[Operation::PushRcx, Operation::PushR11, Operation::PushRax, mov, Operation::Syscall]
            }
            (Self::Int82, false) => &[mov, Operation::Int82, Operation::Ret],
            (Self::Int82, true) => &[Operation::PushEax, mov, Operation::Int82],
            (Self::FarCall { selector, offset }, false) => &[
                Operation::Pushf,
                Operation::Cli,
                mov,
                Operation::FarCall { selector, offset },
                Operation::Ret,
            ],
            (Self::FarCall { selector, offset }, true) => &[
                Operation::PushEax,
                Operation::Pushf,
                Operation::Cli,
                mov,
                Operation::FarCall { selector, offset },
            ],
        };
        operations.iter().map(|&operation| Instruction::new(operation)).collect()
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syscall => f.write_str("SYSCALL (64-bit guest)"),
            Self::Int82 => f.write_str("INT 0x82 (32-bit guest, ring 1)"),
            Self::FarCall { selector, offset } => {
                write!(f, "far call to {selector}:{offset:#010x} (32-bit guest, ring 0)")
            }
        }
    }
}

impl Instruction {
    /// The instruction with its encoding.
    fn new(operation: Operation) -> Self {
        Self { bytes: operation.encode(), operation }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.bytes[..self.bytes.length]
    }
}

impl Operation {
    /// The encoding.
    fn encode(self) -> Bytes {
        match self {
            Self::PushRcx => Bytes::new([0x51]),
            Self::PushR11 => Bytes::new([0x41, 0x53]),
            Self::PushRax | Self::PushEax => Bytes::new([0x50]),
            Self::Pushf => Bytes::new([0x9c]),
            Self::Cli => Bytes::new([0xfa]),
            Self::MovEax(number) => {
                let [n0, n1, n2, n3] = number.to_le_bytes();
                Bytes::new([0xb8, n0, n1, n2, n3])
            }
            Self::Syscall => Bytes::new([0x0f, 0x05]),
            Self::Int82 => Bytes::new([0xcd, HYPERCALL_VECTOR]),
            Self::FarCall { selector, offset } => {
                let [o0, o1, o2, o3] = offset.to_le_bytes();
                let [s0, s1] = selector.0.to_le_bytes();
                Bytes::new([0x9a, o0, o1, o2, o3, s0, s1])
            }
            Self::PopR11 => Bytes::new([0x41, 0x5b]),
            Self::PopRcx => Bytes::new([0x59]),
            Self::Ret => Bytes::new([0xc3]),
        }
    }

    /// Why the stub has the instruction.
    pub fn comment(self) -> &'static str {
        match self {
            Self::PushRcx => "SYSCALL puts the return address into RCX",
            Self::PushR11 => "SYSCALL puts RFLAGS into R11",
            Self::PushRax | Self::PushEax => "the lowest word of the iret frame",
            Self::Pushf => "with CS and EIP, what IRET takes back",
            Self::Cli => "a far call leaves interrupts as they are",
            Self::MovEax(_) => "the hypercall's number",
            Self::Syscall | Self::Int82 | Self::FarCall { .. } => "enters the hypervisor",
            Self::PopR11 | Self::PopRcx => "the caller's value again",
            Self::Ret => "RAX holds the result",
        }
    }
}

impl fmt::Display for Operation {
    /// The instruction in AT&T syntax, as `objdump -d` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PushRcx => f.pad("push %rcx"),
            Self::PushR11 => f.pad("push %r11"),
            Self::PushRax => f.pad("push %rax"),
            Self::PushEax => f.pad("push %eax"),
            Self::Pushf => f.pad("pushf"),
            Self::Cli => f.pad("cli"),
            Self::MovEax(number) => f.pad(&format!("mov ${number:#x},%eax")),
            Self::Syscall => f.pad("syscall"),
            Self::Int82 => f.pad("int $0x82"),
            Self::FarCall { selector, offset } => f.pad(&format!("lcall ${:#x},${offset:#x}", selector.0)),
            Self::PopR11 => f.pad("pop %r11"),
            Self::PopRcx => f.pad("pop %rcx"),
            Self::Ret => f.pad("ret"),
        }
    }
}

impl Bytes {
    /// An instruction of `N` bytes.
    fn new<const N: usize>(encoding: [u8; N]) -> Self {
        const { assert!(N <= 7) };
        let mut bytes = [0; 7];
        bytes[..N].copy_from_slice(&encoding);
        Self { bytes, length: N }
    }
}

/// Serializes the bytes as one hexadecimal string.
fn serialize_bytes<S: serde::Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    let text: String = bytes.bytes[..bytes.length].iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RING0: Form = Form::FarCall { selector: Selector(0xe008), offset: 0xff12_3456 };

    /// The stub's bytes and the filler behind it.
    fn slot_bytes(form: Form, number: usize) -> Vec<u8> {
        page(form)[number * SLOT_BYTES..(number + 1) * SLOT_BYTES].to_vec()
    }

    /// `stub` filled up with INT3.
    fn filled(stub: &[u8]) -> Vec<u8> {
        let mut slot = stub.to_vec();
        slot.resize(SLOT_BYTES, 0xcc);
        slot
    }

    #[test]
    fn the_64_bit_stubs_are_these_bytes() {
        assert_eq!(
            slot_bytes(Form::Syscall, 29),
            filled(&[0x51, 0x41, 0x53, 0xb8, 29, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3])
        );
        assert_eq!(
            page(Form::Syscall)[0x2e0..0x300],
            filled(&[0x51, 0x41, 0x53, 0x50, 0xb8, 0x17, 0, 0, 0, 0x0f, 0x05])
        );
    }

    #[test]
    fn the_32_bit_stubs_are_these_bytes() {
        assert_eq!(slot_bytes(Form::Int82, 127), filled(&[0xb8, 127, 0, 0, 0, 0xcd, 0x82, 0xc3]));
        assert_eq!(slot_bytes(Form::Int82, 23), filled(&[0x50, 0xb8, 0x17, 0, 0, 0, 0xcd, 0x82]));
    }

    #[test]
    fn the_ring_0_stubs_are_these_bytes() {
        assert_eq!(
            slot_bytes(RING0, 1),
            filled(&[0x9c, 0xfa, 0xb8, 1, 0, 0, 0, 0x9a, 0x56, 0x34, 0x12, 0xff, 0x08, 0xe0, 0xc3])
        );
        assert_eq!(
            slot_bytes(RING0, 23),
            filled(&[0x50, 0x9c, 0xfa, 0xb8, 0x17, 0, 0, 0, 0x9a, 0x56, 0x34, 0x12, 0xff, 0x08, 0xe0])
        );
    }

    #[test]
    fn every_slot_calls_its_own_number_and_is_listed_where_it_lies() {
        for form in [Form::Syscall, Form::Int82, RING0] {
            let page = page(form);
            let slots: Vec<Slot> = slots(form).collect();
            assert_eq!(slots.len(), 128);
            for (index, slot) in (0_u32..).zip(&slots) {
                assert_eq!((slot.number, slot.offset), (index, index as usize * 32));
                assert!(slot.instructions.iter().any(|i| i.operation == Operation::MovEax(index)));
                let bytes: Vec<u8> = slot.instructions.iter().flat_map(|i| i.bytes().to_vec()).collect();
                assert!(page[slot.offset..].starts_with(&bytes));
            }
        }
    }

    #[test]
    fn only_the_iret_slot_does_not_return() {
        for form in [Form::Syscall, Form::Int82, RING0] {
            let endless: Vec<u32> = slots(form)
                .filter(|slot| !slot.instructions.iter().any(|i| i.operation == Operation::Ret))
                .map(|slot| slot.number)
                .collect();
            assert_eq!(endless, [Hypercall::Iret.number()]);
        }
    }

    #[test]
    fn a_pristine_page_is_recognised_in_each_form() {
        for form in [Form::Syscall, Form::Int82, RING0] {
            assert_eq!(check(&page(form)), Ok(Check { form, matching_slots: 128, differences: Vec::new() }));
        }
    }

    #[test]
    fn a_patched_slot_is_named_with_its_first_byte() {
        let mut page = page(Form::Syscall);
        page[29 * 32 + 8] = 0x0b;
        page[29 * 32 + 9] = 0x0b;
        let check = check(&page).unwrap();
        assert_eq!((check.form, check.matching_slots), (Form::Syscall, 127));
        assert_eq!(
            check.differences,
            [Difference {
                slot: 29,
                meaning: NumberUse::Defined(Hypercall::SchedOp),
                offset: 936,
                expected: 0x0f,
                found: 0x0b
            }]
        );
    }

    #[test]
    fn a_page_of_filler_matches_no_slot() {
        let check = check(&[FILLER; PAGE_BYTES]).unwrap();
        assert_eq!((check.matching_slots, check.differences.len()), (0, SLOTS));
    }

    #[test]
    fn a_page_of_another_size_is_refused() {
        assert_eq!(check(&[0; 4095]), Err(WrongSize { found: 4095 }));
    }

    proptest! {
        #[test]
        fn any_page_is_either_equal_or_different_in_each_slot(
            start in 0..PAGE_BYTES,
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut page = page(Form::Int82);
            let end = (start + noise.len()).min(PAGE_BYTES);
            page[start..end].copy_from_slice(&noise[..end - start]);
            let check = check(&page).unwrap();
            prop_assert_eq!(check.form, Form::Int82);
            prop_assert_eq!(check.matching_slots + check.differences.len(), SLOTS);
            let expected = self::page(Form::Int82);
            for difference in check.differences {
                prop_assert_eq!(page[difference.offset], difference.found);
                prop_assert_eq!(expected[difference.offset], difference.expected);
            }
        }
    }
}
