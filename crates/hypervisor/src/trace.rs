//! Hypercalls as text, in the manner of strace.
//!
//! ```text
//! mmu_update([{ptr=0x18b3f000, val=0x8000000018b40067}], 1, NULL, DOMID_SELF) = 0
//! sched_op(SCHEDOP_block, NULL) = 0
//! vcpu_op(VCPUOP_is_up, 1, NULL) = -ENOENT (No such object.)
//! ```
//!
//! Everything comes from the hypercall table and the structure layouts of [`paravane_abi`]; there is no hypercall that
//! this file knows by name. Structures that the guest fills are read before the call, those that the hypervisor fills
//! after it.

use std::fmt::Write as _;

use paravane_abi::{
    errno::Errno,
    hypercall::{Arg, ArgKind, Direction, Family, Hypercall, Length, Pointer, Wide},
    layout::{Abi, Layout, Ty},
    structures,
    units::{DomId, GuestVirt},
};

use crate::{dispatch::Args, guest::AddressSpace};

/// Elements of an array that are shown.
const MAX_ELEMENTS: u64 = 4;
/// Elements of an array inside a structure that are shown.
const MAX_INNER: u32 = 4;

/// A hypercall under way: what is known of it before it is carried out.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    hypercall: Option<Hypercall>,
    number: u64,
    args: Args,
    /// The text of each argument, where it was to be read before the call.
    before: Vec<Option<String>>,
}

impl Entry {
    /// Reads what the guest passes.
    pub(crate) fn new(space: &AddressSpace<'_>, number: u64, args: Args) -> Self {
        let hypercall = u32::try_from(number).ok().and_then(Hypercall::from_number);
        let arguments = hypercall.map_or(&[][..], Hypercall::args64);
        let before = (0..arguments.len())
            .map(|index| {
                let argument = Argument { space, arguments, args: &args, index };
                argument.is_read_before().then(|| argument.text())
            })
            .collect();
        Self { hypercall, number, args, before }
    }

    /// The whole line, once the result is known. `None` stands for a call that does not return.
    pub(crate) fn finish(self, space: &AddressSpace<'_>, result: Option<i64>) -> String {
        let mut line = match self.hypercall {
            Some(hypercall) => hypercall.name().to_owned(),
            None => format!("hypercall_{}", self.number),
        };
        line.push('(');
        let arguments = self.hypercall.map_or(&[][..], Hypercall::args64);
        for (index, before) in self.before.into_iter().enumerate() {
            if index > 0 {
                line.push_str(", ");
            }
            let text = || Argument { space, arguments, args: &self.args, index }.text();
            line.push_str(&before.unwrap_or_else(text));
        }
        line.push_str(") = ");
        line.push_str(&result.map_or_else(|| "?".to_owned(), result_text));
        line
    }
}

/// A result: an error by name, or a number.
fn result_text(result: i64) -> String {
    let errno =
        result.checked_neg().and_then(|number| u16::try_from(number).ok()).and_then(Errno::from_number);
    match errno {
        Some(errno) => format!("-{} ({})", errno.name(), errno.meaning()),
        None if (-9..=9).contains(&result) => result.to_string(),
        None => format!("{result:#x}"),
    }
}

/// One argument among the others, which its meaning can depend on.
struct Argument<'a> {
    space: &'a AddressSpace<'a>,
    arguments: &'a [Arg],
    args: &'a Args,
    index: usize,
}

impl Argument<'_> {
    fn value(&self) -> u64 {
        self.args.get(self.index).copied().unwrap_or(0)
    }

    fn is_read_before(&self) -> bool {
        let ArgKind::Pointer(pointer) = self.arguments[self.index].kind else { return true };
        match pointer.direction {
            Direction::In | Direction::InOut => true,
            Direction::Out => false,
        }
    }

    fn text(&self) -> String {
        let value = self.value();
        match self.arguments[self.index].kind {
            ArgKind::Command(family) => command(family, value),
            ArgKind::Pointer(pointer) => self.pointed_to(pointer),
            ArgKind::Count | ArgKind::Number | ArgKind::Vcpu | ArgKind::DebugRegister => {
                low(value).to_string()
            }
            ArgKind::Bool => (low(value) != 0).to_string(),
            ArgKind::Domain => domain(value),
            ArgKind::ForeignDomain => match low(value) >> 16 {
                0 => domain(value),
                tables => format!("{}, tables of domain {}", domain(value), tables - 1),
            },
            ArgKind::Wide(Wide::TimeNs) => value.to_string(),
            ArgKind::Word
            | ArgKind::Virtual
            | ArgKind::Code
            | ArgKind::Selector
            | ArgKind::FlushFlags
            | ArgKind::Wide(_)
            | ArgKind::Low(_)
            | ArgKind::High(_) => format!("{value:#x}"),
        }
    }

    fn pointed_to(&self, pointer: Pointer) -> String {
        let base = self.value();
        if base == 0 {
            return "NULL".to_owned();
        }
        let Some(element) = self.element(pointer) else { return format!("{base:#x}") };
        let count = match pointer.length {
            Length::One => return self.structure(element, base, 0),
            Length::Arg(index) => self.args.get(usize::from(index)).copied().map_or(0, low),
            Length::DescriptorFrames(index) => {
                self.args.get(usize::from(index)).copied().map_or(0, low).div_ceil(512)
            }
            Length::UntilNullAddress => MAX_ELEMENTS + 1,
        };
        let mut text = String::from("[");
        for index in 0..count.min(MAX_ELEMENTS) {
            if index > 0 {
                text.push_str(", ");
            }
            text.push_str(&self.structure(element, base, index));
        }
        if count > MAX_ELEMENTS {
            text.push_str(", …");
        }
        text.push(']');
        text
    }

    /// What lies behind the pointer: named in the table, or chosen by the command.
    fn element(&self, pointer: Pointer) -> Option<Element> {
        let name = if pointer.element == "*" {
            let (position, family) = self.arguments.iter().enumerate().find_map(|(position, argument)| {
                let ArgKind::Command(family) = argument.kind else { return None };
                Some((position, family))
            })?;
            let number = self.args.get(position).copied()?;
            family.find(i64::from(low_signed(number)))?.facts.arg
        } else {
            pointer.element
        };
        Element::named(name)
    }

    fn structure(&self, element: Element, base: u64, index: u64) -> String {
        let size = u64::from(element.size());
        let at = index.checked_mul(size).and_then(|offset| base.checked_add(offset));
        // The largest structure, a vCPU context, has some 5 KiB.
        let mut bytes = vec![0; element.size() as usize];
        match at {
            Some(at) if self.space.read(GuestVirt(at), &mut bytes).is_ok() => element.text(&bytes),
            Some(at) => format!("{at:#x} (unreadable)"),
            None => "(beyond the address space)".to_owned(),
        }
    }
}

/// What a pointer points to.
#[derive(Clone, Copy)]
enum Element {
    Structure(&'static Layout),
    Scalar(&'static Ty),
}

impl Element {
    fn named(name: &str) -> Option<Self> {
        match name {
            "xen_pfn_t" => Some(Self::Scalar(&Ty::Pfn)),
            "unsigned int" | "uint32_t" => Some(Self::Scalar(&Ty::U32)),
            "uint64_t" | "unsigned long" => Some(Self::Scalar(&Ty::U64)),
            _ => structures::ALL
                .iter()
                .find(|layout| layout.name == name)
                .map(|layout| Self::Structure(layout)),
        }
    }

    fn size(self) -> u32 {
        match self {
            Self::Structure(layout) => layout.size.get(Abi::Bits64),
            Self::Scalar(ty) => ty.size(Abi::Bits64),
        }
    }

    fn text(self, bytes: &[u8]) -> String {
        match self {
            Self::Structure(layout) => structure_text(layout, bytes),
            Self::Scalar(ty) => value_text(ty, bytes),
        }
    }
}

fn structure_text(layout: &Layout, bytes: &[u8]) -> String {
    let mut text = String::from("{");
    for field in layout.fields_of(Abi::Bits64) {
        let Some(start) = field.offset.get(Abi::Bits64).map(|offset| offset as usize) else { continue };
        let end = start + field.ty.size(Abi::Bits64) as usize;
        let Some(bytes) = bytes.get(start..end) else { continue };
        let separator = if text.len() > 1 { ", " } else { "" };
        let _ = write!(text, "{separator}{}={}", field.name, value_text(&field.ty, bytes));
    }
    text.push('}');
    text
}

fn value_text(ty: &Ty, bytes: &[u8]) -> String {
    let mut word = [0; 8];
    let len = bytes.len().min(8);
    word[..len].copy_from_slice(&bytes[..len]);
    let value = u64::from_le_bytes(word);
    match ty {
        Ty::Struct(layout) => structure_text(layout, bytes),
        Ty::Array(element, ..) if **element == Ty::Char || **element == Ty::I8 => {
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()).min(64);
            format!("\"{}\"", String::from_utf8_lossy(&bytes[..end]).escape_debug())
        }
        Ty::Array(element, count, _) => {
            let size = element.size(Abi::Bits64) as usize;
            let shown =
                bytes.chunks(size.max(1)).take(MAX_INNER as usize).map(|bytes| value_text(element, bytes));
            let dots = if *count > MAX_INNER { ", …" } else { "" };
            format!("[{}{dots}]", shown.collect::<Vec<_>>().join(", "))
        }
        Ty::DomId => domain(value),
        Ty::Port | Ty::GrantRef | Ty::U8 | Ty::U16 | Ty::Char => value.to_string(),
        // Read into the low bytes; the sign is extended from the field's own width.
        Ty::I8 => (value.cast_signed() << 56 >> 56).to_string(),
        Ty::I16 => (value.cast_signed() << 48 >> 48).to_string(),
        Ty::I32 => low_signed(value).to_string(),
        Ty::U32 if value < 1 << 16 => value.to_string(),
        Ty::U32 | Ty::U64 | Ty::Word | Ty::Pfn | Ty::Pointer => format!("{value:#x}"),
    }
}

fn command(family: Family, value: u64) -> String {
    let number = low(value);
    match family.find(i64::from(low_signed(number))) {
        Some(operation) => format!("{}{}", family.prefix(), operation.row.name),
        None => number.to_string(),
    }
}

fn domain(value: u64) -> String {
    match DomId((value & 0xffff) as u16) {
        DomId::SELF => "DOMID_SELF".to_owned(),
        DomId::IO => "DOMID_IO".to_owned(),
        DomId(number) => number.to_string(),
    }
}

/// The lower half of an argument: what a C `int` prototype reads.
fn low(value: u64) -> u64 {
    value & 0xffff_ffff
}

/// The same as a C `int`.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what counts")]
fn low_signed(value: u64) -> i32 {
    (value as u32).cast_signed()
}

#[cfg(test)]
mod tests {
    use paravane_abi::units::{MachAddr, Mfn};
    use paravane_memory::Memory;

    use super::*;

    const ROOT: Mfn = Mfn(0x10);

    /// Machine memory whose frame 0x14 appears at address 0x1000.
    fn memory() -> Memory {
        let memory = Memory::new(ROOT, 8).unwrap();
        for (table, index, target) in [(0x10, 0, 0x11), (0x11, 0, 0x12), (0x12, 0, 0x13), (0x13, 1, 0x14u64)]
        {
            memory.store_u64(MachAddr((table << 12) + index * 8), target << 12 | 7).unwrap();
        }
        memory
    }

    fn line(number: u64, args: Args, words: &[u64], result: i64) -> String {
        let memory = memory();
        for (word, index) in words.iter().zip(0..) {
            memory.store_u64(MachAddr((0x14 << 12) + index * 8), *word).unwrap();
        }
        let space = AddressSpace { memory: &memory, root: ROOT };
        Entry::new(&space, number, args).finish(&space, Some(result))
    }

    #[test]
    fn hypercalls_read_as_calls_with_their_structures() {
        for (number, args, words, result, expected) in [
            (
                1,
                [0x1000, 1, 0, 0x7ff0, 0],
                &[0x18b3_f000, 0x8000_0000_18b4_0067][..],
                0,
                "mmu_update([{ptr=0x18b3f000, val=0x8000000018b40067}], 1, NULL, DOMID_SELF) = 0",
            ),
            (29, [1, 0, 0, 0, 0], &[], 0, "sched_op(SCHEDOP_block, NULL) = 0"),
            (24, [3, 1, 0, 0, 0], &[], -2, "vcpu_op(VCPUOP_is_up, 1, NULL) = -ENOENT (No such object.)"),
            (3, [0xe02b, 0x7000, 0, 0, 0], &[], 0, "stack_switch(0xe02b, 0x7000) = 0"),
            (63, [0; 5], &[], -38, "hypercall_63() = -ENOSYS (Function not implemented.)"),
        ] {
            let line = line(number, args, words, result);
            // The sentence of an error is the table's affair.
            let end = expected.find(" (").unwrap_or(expected.len());
            assert_eq!(&line[..end.min(line.len())], &expected[..end]);
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_so() {
        let line = line(1, [0xdead_0000, 1, 0, 0x7ff0, 0], &[], -14);
        assert!(
            line.starts_with("mmu_update([0xdead0000 (unreadable)], 1, NULL, DOMID_SELF) = -EFAULT"),
            "{line}"
        );
    }
}
