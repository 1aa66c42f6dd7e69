//! Exceptions, their error codes, and what a PV guest gets of them.
//!
//! Every exception enters the hypervisor first. Most go on to the guest's trap table with the CPU's error code;
//! a few are changed on the way, and some never reach a guest.
//!
//! Sources: AMD APM vol. 2, "Exceptions and Interrupts", "Error Codes"; Intel SDM vol. 3A, "Exception and
//! Interrupt Reference", "Error Code"; `xen/arch/x86/pv/traps.c`, `xen/arch/x86/traps.c`.

use core::fmt;

use paravane_abi::numbered;
use serde::Serialize;

use crate::bits::BitField;

/// What an exception says of the instruction it interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// RIP is at the instruction, which can be executed again.
    Fault,
    /// RIP is behind the instruction.
    Trap,
    /// One or the other.
    FaultOrTrap,
    /// There may be no way back.
    Abort,
    /// It has nothing to do with the instruction.
    Interrupt,
}

/// What error code the CPU pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// None.
    None,
    /// Always 0.
    Zero,
    /// 0 or the selector at fault: [`SelectorErrorCode`].
    Selector,
    /// How memory was used: [`PAGE_FAULT_CODE`].
    PageFault,
    /// Which rule of control-flow enforcement was broken.
    ControlProtection,
    /// Defined by AMD's virtualisation.
    Virtualisation,
}

/// Whether a PV guest gets the exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// As the CPU raised it, unless the hypervisor deals with it.
    Yes,
    /// With a change.
    Changed,
    /// Some time after it happened, and not again until the iret hypercall.
    Asynchronous,
    /// Not at all.
    Never,
}

/// The columns of the exception table beyond vector, mnemonic and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExceptionFacts {
    /// The manuals' name.
    pub title: &'static str,
    /// What it says of the instruction.
    pub class: Class,
    /// What error code the CPU pushes.
    pub error_code: ErrorCode,
    /// Whether a PV guest gets it.
    pub delivery: Delivery,
    /// What a PV guest should know; empty if nothing.
    pub pv: &'static str,
}

use Class::{Abort, Fault, FaultOrTrap, Interrupt, Trap};
use Delivery::{Asynchronous, Changed, Never, Yes};

numbered! {
    /// An exception, by its vector.
    pub enum Exception(u8), "xen/arch/x86/include/asm/x86-defns.h": ExceptionFacts;
    0 De "#DE" "A division by zero, or a quotient that does not fit." {
        title: "Divide Error", class: Fault, error_code: ErrorCode::None, delivery: Yes, pv: ""
    }
    1 Db "#DB" "A breakpoint of a debug register, or a single step." {
        title: "Debug", class: FaultOrTrap, error_code: ErrorCode::None, delivery: Changed,
        pv: "What DR6 would report is merged into the guest's virtual DR6.",
    }
    2 Nmi "NMI" "A non-maskable interrupt." {
        title: "Nonmaskable Interrupt", class: Interrupt, error_code: ErrorCode::None, delivery: Asynchronous,
        pv: "A virtual one, through trap-table entry 2; the real ones are the hypervisor's.",
    }
    3 Bp "#BP" "INT3." {
        title: "Breakpoint", class: Trap, error_code: ErrorCode::None, delivery: Yes,
        pv: "The trap table's DPL is not asked: the gate itself has DPL 3.",
    }
    4 Of "#OF" "INTO with OF set." {
        title: "Overflow", class: Trap, error_code: ErrorCode::None, delivery: Yes,
        pv: "The trap table's DPL is not asked: the gate itself has DPL 3.",
    }
    5 Br "#BR" "An index outside BOUND's range." {
        title: "BOUND Range Exceeded", class: Fault, error_code: ErrorCode::None, delivery: Yes, pv: ""
    }
    6 Ud "#UD" "An instruction that does not exist here." {
        title: "Invalid Opcode", class: Fault, error_code: ErrorCode::None, delivery: Yes,
        pv: "The hypervisor looks first for the forced-emulation prefix (UD2A and \"xen\") before CPUID. A \
             SYSCALL from user mode without a callback arrives as #UD.",
    }
    7 Nm "#NM" "An FPU instruction while CR0.TS or CR0.EM is set." {
        title: "Device Not Available", class: Fault, error_code: ErrorCode::None, delivery: Changed,
        pv: "TS is clear already when the handler starts, so that CLTS is not needed.",
    }
    8 Df "#DF" "An exception while another was being delivered." {
        title: "Double Fault", class: Abort, error_code: ErrorCode::Zero, delivery: Never,
        pv: "A fault while the hypervisor pushes a frame crashes the domain instead.",
    }
    9 Cso "#CSO" "An overrun of the 387, which no CPU raises any more." {
        title: "Coprocessor Segment Overrun", class: Fault, error_code: ErrorCode::None, delivery: Never, pv: ""
    }
    10 Ts "#TS" "A bad TSS, or a bad stack selector in one." {
        title: "Invalid TSS", class: Fault, error_code: ErrorCode::Selector, delivery: Yes,
        pv: "Hardly seen: the TSS is the hypervisor's, and long mode has no task switches.",
    }
    11 Np "#NP" "A descriptor with P = 0." {
        title: "Segment Not Present", class: Fault, error_code: ErrorCode::Selector, delivery: Yes, pv: ""
    }
    12 Ss "#SS" "A bad stack segment, or a stack address that is not canonical." {
        title: "Stack Fault", class: Fault, error_code: ErrorCode::Selector, delivery: Yes, pv: ""
    }
    13 Gp "#GP" "A broken rule of protection that has no exception of its own." {
        title: "General Protection", class: Fault, error_code: ErrorCode::Selector, delivery: Changed,
        pv: "The hypervisor first emulates what PV emulates, and delivers INT n by its error code. A page \
             fault in the GDT's own memory comes as #GP of the selector.",
    }
    14 Pf "#PF" "A page that is not there, or may not be used so." {
        title: "Page Fault", class: Fault, error_code: ErrorCode::PageFault, delivery: Changed,
        pv: "CR2 is in vcpu_info. Bit U of the error code says user mode, not ring 3. Faults that a TLB \
             flush would have prevented, stores to page tables and first uses of LDT pages do not reach \
             the guest.",
    }
    15 Spv "#SPV" "Reserved; a spurious interrupt of the local APIC." {
        title: "Reserved", class: Fault, error_code: ErrorCode::None, delivery: Never,
        pv: "32-bit Xen raised it as a notice, under assist 4gb_segments_notify.",
    }
    16 Mf "#MF" "An x87 error, reported at the next x87 instruction." {
        title: "x87 Floating-Point Exception", class: Fault, error_code: ErrorCode::None, delivery: Yes, pv: ""
    }
    17 Ac "#AC" "An unaligned access in ring 3 while AC and CR0.AM are set." {
        title: "Alignment Check", class: Fault, error_code: ErrorCode::Zero, delivery: Yes,
        pv: "A 64-bit guest's kernel is in ring 3 too; the hypervisor clears AC at every entry.",
    }
    18 Mc "#MC" "The machine found itself broken." {
        title: "Machine Check", class: Abort, error_code: ErrorCode::None, delivery: Asynchronous,
        pv: "A virtual one, through trap-table entry 18; the real ones are the hypervisor's.",
    }
    19 Xm "#XM" "An SSE error." {
        title: "SIMD Floating-Point Exception", class: Fault, error_code: ErrorCode::None, delivery: Yes, pv: ""
    }
    20 Ve "#VE" "A nested-paging event that the hypervisor gave to the guest." {
        title: "Virtualization Exception", class: Fault, error_code: ErrorCode::None, delivery: Never, pv: ""
    }
    21 Cp "#CP" "A broken rule of shadow stacks or branch tracking." {
        title: "Control Protection", class: Fault, error_code: ErrorCode::ControlProtection, delivery: Never,
        pv: "The features are hidden from PV guests.",
    }
    28 Hv "#HV" "An injected interrupt of a confidential AMD guest." {
        title: "Hypervisor Injection", class: Interrupt, error_code: ErrorCode::None, delivery: Never, pv: ""
    }
    29 Vc "#VC" "An instruction that a confidential AMD guest must ask for." {
        title: "VMM Communication", class: Fault, error_code: ErrorCode::Virtualisation, delivery: Never, pv: ""
    }
    30 Sx "#SX" "A redirected INIT of AMD's virtualisation." {
        title: "Security Exception", class: Interrupt, error_code: ErrorCode::Virtualisation, delivery: Never, pv: ""
    }
}

impl Exception {
    /// Whether a frame of this exception has an error code.
    pub const fn has_error_code(self) -> bool {
        !matches!(self.facts().error_code, ErrorCode::None)
    }
}

/// The error code of a page fault.
pub const PAGE_FAULT_CODE: &[BitField] = &[
    BitField::bit(0, "P", "0: the page is not present; 1: the page is there, but not for this use.", ""),
    BitField::bit(1, "W", "0: a read; 1: a write.", ""),
    BitField::bit(
        2,
        "U",
        "0: from rings 0 to 2; 1: from ring 3.",
        "1 from user mode, 0 from kernel mode, whatever the ring.",
    ),
    BitField::bit(
        3,
        "RSVD",
        "A reserved bit of an entry is set.",
        "Entries that the hypervisor checked never cause it.",
    ),
    BitField::bit(4, "I", "An instruction fetch.", ""),
    BitField::bit(5, "PK", "A protection key forbids it.", "Never: the feature is hidden."),
    BitField::bit(6, "SS", "An access of the shadow stack.", "Never: the feature is hidden."),
    BitField::bit(15, "SGX", "A rule of SGX forbids it.", "Never: the feature is hidden."),
    BitField::bit(
        31,
        "RMP",
        "AMD's ownership table of memory forbids it.",
        "Never: a PV guest has no such table.",
    ),
];

/// Which table an error code's index refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ErrorTable {
    /// The global descriptor table.
    #[serde(rename = "GDT")]
    Gdt,
    /// The local descriptor table.
    #[serde(rename = "LDT")]
    Ldt,
    /// The interrupt descriptor table.
    #[serde(rename = "IDT")]
    Idt,
}

/// The error code of an exception about a selector or an IDT entry.
///
/// ```text
///   31      16 15                       3    2     1     0
///  +----------+--------------------------+----+-----+-----+
///  | reserved |          index           | TI | IDT | EXT |
///  +----------+--------------------------+----+-----+-----+
/// ```
///
/// Of a refused `INT n` it is `n * 8 + 2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SelectorErrorCode {
    /// Whether the event came from outside the program.
    pub external: bool,
    /// The table.
    pub table: ErrorTable,
    /// The entry.
    pub index: u16,
}

impl SelectorErrorCode {
    /// Reads an error code. The reserved bits are dropped. 0 is the GDT's null descriptor, which also means that
    /// no selector is to blame.
    pub const fn from_bits(code: u32) -> Self {
        let table = match (code & 2 != 0, code & 4 != 0) {
            (true, _) => ErrorTable::Idt,
            (false, true) => ErrorTable::Ldt,
            (false, false) => ErrorTable::Gdt,
        };
        Self { external: code & 1 != 0, table, index: (code >> 3 & 0x1fff) as u16 }
    }

    /// The error code.
    pub const fn bits(self) -> u32 {
        let table = match self.table {
            ErrorTable::Gdt => 0,
            ErrorTable::Ldt => 4,
            ErrorTable::Idt => 2,
        };
        (self.index as u32) << 3 | table | self.external as u32
    }

    /// The error code of an `INT` that the CPU refused.
    pub const fn of_software_interrupt(vector: u8) -> Self {
        Self { external: false, table: ErrorTable::Idt, index: vector as u16 }
    }
}

impl fmt::Display for SelectorErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits() & !1 == 0 {
            f.write_str("no selector")?;
        } else {
            match self.table {
                ErrorTable::Gdt => write!(f, "GDT entry {}", self.index)?,
                ErrorTable::Ldt => write!(f, "LDT entry {}", self.index)?,
                ErrorTable::Idt => write!(f, "IDT entry {:#x}", self.index)?,
            }
        }
        if self.external { f.write_str(", external event") } else { Ok(()) }
    }
}

/// A page fault's error code as a phrase, such as "write to a present page from user mode".
///
/// For a PV guest "user mode" is the guest's virtual mode.
pub fn describe_page_fault(code: u32) -> String {
    let is_set =
        |name| PAGE_FAULT_CODE.iter().any(|field| field.name == name && field.extract(u64::from(code)) != 0);
    let access = match (is_set("I"), is_set("W")) {
        (true, _) => "instruction fetch from",
        (false, true) => "write to",
        (false, false) => "read of",
    };
    let page = if is_set("P") { "a present page" } else { "a page that is not present" };
    let origin = if is_set("U") { "from user mode" } else { "from kernel mode" };
    let mut text = format!("{access} {page} {origin}");
    for (name, reason) in [
        ("RSVD", "reserved bit set in an entry"),
        ("PK", "protection key"),
        ("SS", "shadow stack"),
        ("SGX", "SGX"),
        ("RMP", "reverse map table"),
    ] {
        if is_set(name) {
            text.push_str(", ");
            text.push_str(reason);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use paravane_abi::table::Numbered;

    use super::*;
    use crate::bits::assert_well_formed;

    #[test]
    fn vectors_are_in_order_and_read_back() {
        assert!(Exception::ALL.is_sorted_by_key(|exception| exception.number()));
        for &exception in Exception::ALL {
            assert_eq!(Exception::from_number(exception.number()), Some(exception));
            assert_eq!(Exception::from_name(exception.name()), Some(exception));
            assert!(exception.row().meaning.ends_with('.'));
            let pv = exception.facts().pv;
            assert!(pv.is_empty() || pv.ends_with('.'), "{exception}");
        }
        assert_eq!(Exception::from_number(32), None);
    }

    #[test]
    fn frames_of_these_vectors_have_an_error_code() {
        let with_code: Vec<u8> = Exception::ALL
            .iter()
            .filter(|exception| exception.has_error_code())
            .map(|exception| exception.number())
            .collect();
        assert_eq!(with_code, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
        let delivered: Vec<u8> = Exception::ALL
            .iter()
            .filter(|exception| exception.has_error_code() && exception.facts().delivery != Never)
            .map(|exception| exception.number())
            .collect();
        assert_eq!(delivered, [10, 11, 12, 13, 14, 17]);
    }

    #[test]
    fn every_selector_error_code_is_rebuilt_from_its_fields() {
        for code in 0..=0xffff_u32 {
            let decoded = SelectorErrorCode::from_bits(code);
            // TI means nothing for an IDT entry.
            let expected = if code & 2 != 0 { code & !4 } else { code };
            assert_eq!(decoded.bits(), expected, "{code:#x}");
        }
    }

    #[test]
    fn a_refused_int_names_its_vector() {
        let code = SelectorErrorCode::of_software_interrupt(0x80);
        assert_eq!(code.bits(), 0x402);
        assert_eq!(code.to_string(), "IDT entry 0x80");
        assert_eq!(SelectorErrorCode::of_software_interrupt(0x82).bits(), 0x412);
        assert_eq!(SelectorErrorCode::from_bits(0).to_string(), "no selector");
        assert_eq!(SelectorErrorCode::from_bits(0xe030).to_string(), "GDT entry 7174");
        assert_eq!(SelectorErrorCode::from_bits(0x0d).to_string(), "LDT entry 1, external event");
    }

    #[test]
    fn a_page_fault_code_reads_as_a_phrase() {
        assert_well_formed(PAGE_FAULT_CODE);
        for (code, text) in [
            (0, "read of a page that is not present from kernel mode"),
            (7, "write to a present page from user mode"),
            (0x15, "instruction fetch from a present page from user mode"),
            (0xb, "write to a present page from kernel mode, reserved bit set in an entry"),
        ] {
            assert_eq!(describe_page_fault(code), text);
        }
    }
}
