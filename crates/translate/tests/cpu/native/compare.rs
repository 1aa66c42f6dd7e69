//! What counts as a difference.

use paravane_engine::rflags;

use super::{AREA, After, Bits, End};

/// Flags that are compared.
pub(crate) const FLAGS: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;

/// Compares two outcomes; `Err` says what differs.
pub(crate) fn compare(native: &After, translated: &After) -> Result<(), String> {
    if without_kernel_pages(native.end) != without_kernel_pages(translated.end) {
        return Err(format!("ends: native {:x?}, translated {:x?}", native.end, translated.end));
    }
    // What 32-bit code leaves in the upper registers is not defined.
    let (registers, cut) = match native.cpu.bits() {
        Bits::B64 => (16, u64::MAX),
        Bits::B32 => (8, 0xffff_ffff),
    };
    for (index, (n, t)) in native.cpu.gprs.iter().zip(&translated.cpu.gprs).enumerate().take(registers) {
        if n & cut != t & cut {
            return Err(format!("register {index}: native {n:#x}, translated {t:#x}"));
        }
    }
    if (native.cpu.flags ^ translated.cpu.flags) & FLAGS != 0 {
        return Err(format!(
            "flags: native {:#x}, translated {:#x} ({:x?})",
            native.cpu.flags & FLAGS,
            translated.cpu.flags & FLAGS,
            native.end
        ));
    }
    segments(native, translated)?;
    for (name, n, t) in
        [("data", &native.data, &translated.data), ("stack", &native.stack, &translated.stack)]
    {
        if n != t
            && let Some(at) = n.iter().zip(t).position(|(n, t)| n != t)
        {
            return Err(format!("{name}+{at:#x}: native {:#x}, translated {:#x}", n[at], t[at]));
        }
    }
    vectors(&native.cpu.area, &translated.cpu.area)
}

/// An end in which a fault at a kernel's address does not say whether that is mapped: the host's may be, and Linux
/// says so of all of them, from the last page below the hole on.
fn without_kernel_pages(end: End) -> End {
    match end {
        End::Fault { vector: 14, rip, error, address } if address >= 0x7fff_ffff_f000 => {
            End::Fault { vector: 14, rip, error: error & !1, address }
        }
        End::Fault { .. } | End::Done | End::Other(_) => end,
    }
}

/// Segment registers: CS and SS as a fault shows them, the others always.
fn segments(native: &After, translated: &After) -> Result<(), String> {
    let faulted = matches!(native.end, End::Fault { .. });
    for (index, (n, t)) in native.cpu.selectors.iter().zip(&translated.cpu.selectors).enumerate() {
        // Whenever the host's kernel returns to a program, the CPU clears the privilege level of null selectors.
        let same = n == t || (n | t) & !3 == 0;
        if !same && (faulted || !matches!(index, 1 | 2)) {
            return Err(format!("segment register {index}: native {n:#x}, translated {t:#x}"));
        }
    }
    if super::real::has_bases() && native.cpu.bits() == Bits::B64 && native.cpu.bases != translated.cpu.bases
    {
        return Err(format!("bases: native {:x?}, translated {:x?}", native.cpu.bases, translated.cpu.bases));
    }
    Ok(())
}

fn vectors(native: &[u8; AREA], translated: &[u8; AREA]) -> Result<(), String> {
    let in_use = |area: &[u8; AREA]| area[512];
    // Component, range. FDP (16..24) is the host's own where an instruction has raised an exception.
    let ranges = [
        (0, 0..6),
        (0, 8..16),
        (0, 32..160),
        (1, 160..416),
        (1, 24..28),
        (2, 576..832),
        (5, 1088..1152),
        (6, 1152..1664),
        (7, 1664..2688),
    ];
    for (component, range) in ranges {
        let value = |area: &[u8; AREA]| {
            if in_use(area) >> component & 1 != 0 || range.start == 24 {
                area[range.clone()].to_vec()
            } else if component == 0 && range.start == 0 {
                vec![0x7f, 3, 0, 0, 0, 0]
            } else {
                vec![0; range.len()]
            }
        };
        let (n, t) = (value(native), value(translated));
        if let Some(at) = n.iter().zip(&t).position(|(n, t)| n != t) {
            return Err(format!(
                "state component {component} + {at}: native {:#x}, translated {:#x}",
                n[at], t[at]
            ));
        }
    }
    Ok(())
}
