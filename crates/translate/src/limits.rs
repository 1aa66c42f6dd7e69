//! Segment limits and types, where they can matter.
//!
//! 64-bit code has none. In 32-bit code nearly every segment is 4 GiB of writable data, and then there is nothing to
//! check. A segment that is anything else is *strict*: code is translated for the set of strict segments, and every
//! access through one of them goes to Rust, which checks it and then serves it like a TLB miss. That is slow, and
//! meant for the few programs that use such segments: emulators of other systems, and accesses through a null
//! selector, which must fault. Source: Intel SDM vol. 3A, "Limit Checking", "Type Checking".

use paravane_engine::{Exit, Segment, SegmentAttributes, SegmentRegister, VcpuContext, vector};

use crate::emit::Bits;
use crate::engine::Translator;
use crate::help::exception_with;
use crate::state::Path;

/// A set of segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Strict(u8);

impl Strict {
    /// The segments of a CPU that restrict accesses.
    pub(crate) fn of(context: &VcpuContext) -> Self {
        if context.is_64_bit() {
            return Self::default();
        }
        let strict =
            SegmentRegister::ALL.into_iter().filter(|register| !is_plain(context.segment(*register)));
        Self(strict.fold(0, |set, register| set | 1 << register as u8))
    }

    pub(crate) fn has(self, register: SegmentRegister) -> bool {
        self.0 >> register as u8 & 1 != 0
    }
}

/// Whether a segment restricts nothing: present, writable data, 4 GiB.
fn is_plain(segment: &Segment) -> bool {
    const WANTED: u16 = SegmentAttributes::PRESENT
        | SegmentAttributes::USER_SEGMENT
        | SegmentAttributes::READABLE_OR_WRITABLE;
    segment.attributes.has(WANTED)
        && !segment.attributes.has(SegmentAttributes::CODE)
        && !segment.attributes.has(SegmentAttributes::CONFORMING_OR_DOWN)
        && segment.limit == u32::MAX
}

/// The last offset that code may lie at.
pub(crate) fn code_limit(context: &VcpuContext) -> u64 {
    let limit = context.segment(SegmentRegister::Cs).limit;
    if context.is_64_bit() || limit == u32::MAX { u64::MAX } else { u64::from(limit) }
}

/// Whether an access lies in a segment and is of a kind that it allows.
fn allows(segment: &Segment, offset: u64, size: u64, path: Path) -> bool {
    let attributes = segment.attributes;
    let code = attributes.has(SegmentAttributes::CODE);
    let right = attributes.has(SegmentAttributes::READABLE_OR_WRITABLE);
    let kind = match path {
        Path::Read => !code || right,
        Path::Write => !code && right,
    };
    let last = offset + size.saturating_sub(1);
    let limit = u64::from(segment.limit);
    let inside = if !code && attributes.has(SegmentAttributes::CONFORMING_OR_DOWN) {
        let top = if attributes.has(SegmentAttributes::BIG) { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit || segment.limit == u32::MAX
    };
    attributes.has(SegmentAttributes::PRESENT | SegmentAttributes::USER_SEGMENT) && kind && inside
}

impl Translator {
    /// Checks an access through a segment at a linear address.
    pub(crate) fn check_segment(
        &self,
        register: SegmentRegister,
        linear: u64,
        size: u64,
        path: Path,
    ) -> Result<(), Exit> {
        if self.env.bits == Bits::B64 || !self.env.strict.has(register) {
            return Ok(());
        }
        let segment = self.cpu.state().context.segment(register);
        let offset = linear.wrapping_sub(segment.base) & 0xffff_ffff;
        if allows(segment, offset, size, path) {
            return Ok(());
        }
        let vector = if register == SegmentRegister::Ss { vector::STACK } else { vector::GENERAL_PROTECTION };
        Err(exception_with(vector, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_up_or_down_and_types_forbid() {
        let segment = |descriptor| Segment::of_descriptor(7, descriptor);
        let (up, down) = (segment(0x0040_f300_0000_0fff), segment(0x0040_f700_0000_0fff));
        let (code, unreadable) = (segment(0x00cf_fb00_0000_ffff), segment(0x00cf_f900_0000_ffff));
        for (segment, offset, size, path, allowed) in [
            (up, 0xffc, 4, Path::Write, true),
            (up, 0xffd, 4, Path::Read, false),
            (up, 0xffff_ffff, 4, Path::Read, false),
            (down, 0xfff, 1, Path::Read, false),
            (down, 0x1000, 4, Path::Write, true),
            (down, 0xffff_fffe, 4, Path::Write, false),
            (code, 0, 4, Path::Read, true),
            (code, 0, 4, Path::Write, false),
            (unreadable, 0, 4, Path::Read, false),
            (Segment::null(0), 0, 1, Path::Read, false),
        ] {
            assert_eq!(
                allows(&segment, offset, size, path),
                allowed,
                "{segment:?} {offset:#x} {size} {path:?}"
            );
        }
    }
}
