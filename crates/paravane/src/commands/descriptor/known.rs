//! Which of Xen's own descriptors a quadword is.

use core::fmt;

use paravane_x86::{
    descriptor::{Descriptor, Kind, bits},
    gdt::{self, Contents, ReservedEntry},
    mode::Mode,
    selector::Selector,
};
use serde::Serialize;

/// A reserved descriptor that equals the one in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::commands) struct Known {
    /// The mode in whose table it is.
    #[serde(serialize_with = "as_text")]
    pub mode: Mode,
    /// Its selector, as it is used.
    #[serde(serialize_with = "as_text")]
    pub selector: Selector,
    /// Its number in the GDT.
    pub index: u16,
    /// How it equals it.
    pub form: Form,
    /// What it is for.
    pub purpose: &'static str,
}

/// In which form a descriptor is found in Xen's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::commands) enum Form {
    /// As Xen stores it.
    Current,
    /// As older releases stored it: without the accessed bit, or where today nothing is.
    Older,
    /// As the CPU leaves it after the first load: with the accessed bit.
    Used,
    /// Equal but for the number of the CPU in its limit.
    PerCpu,
}

/// Every reserved entry that holds `descriptor`, in the order of the modes. The null descriptor is none.
pub(in crate::commands) fn known(descriptor: Descriptor) -> Vec<Known> {
    if descriptor == Descriptor::NULL {
        return Vec::new();
    }
    let found = |mode| {
        gdt::reserved_entries(mode).iter().filter_map(move |entry| {
            Some(Known {
                mode,
                selector: entry.selector,
                index: entry.index(),
                form: form(entry, descriptor)?,
                purpose: entry.purpose,
            })
        })
    };
    Mode::ALL.into_iter().flat_map(found).collect()
}

/// How the contents of `entry` and `descriptor` are the same, if they are.
pub(in crate::commands) fn form(entry: &ReservedEntry, descriptor: Descriptor) -> Option<Form> {
    let is = |form, same: bool| same.then_some(form);
    match entry.contents {
        Contents::Hole | Contents::PerCpuWide => None,
        Contents::FormerlyUsed { older } => is(Form::Older, descriptor == older),
        Contents::Fixed { current, older } => is(Form::Current, descriptor == current)
            .or_else(|| is(Form::Older, Some(descriptor) == older))
            .or_else(|| is(Form::Used, descriptor.0 == current.0 | bits::ACCESSED)),
        // A TSS or LDT has its base in the descriptor, so that any TSS would look like Xen's.
        Contents::PerCpu { fixed } => match fixed.kind() {
            Kind::Data(_) => is(Form::PerCpu, descriptor.0 & !bits::LIMIT == fixed.0),
            Kind::Code(_) | Kind::System(_) => None,
        },
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Current => "",
            Form::Older => ", as older releases stored it",
            Form::Used => ", as it is after its first load",
            Form::PerCpu => "",
        };
        write!(f, "{} (GDT entry {}) of a {}{form}: {}", self.selector, self.index, self.mode, self.purpose)
    }
}

fn as_text<T: fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(raw: u64) -> Vec<(Mode, u16, Form)> {
        known(Descriptor(raw)).into_iter().map(|known| (known.mode, known.selector.0, known.form)).collect()
    }

    #[test]
    fn a_reserved_descriptor_is_recognised_in_every_form() {
        use Form::{Current, Older, PerCpu, Used};
        use Mode::{Guest32On32NonPae, Guest32On32Pae, Guest32On64, Guest64};
        for (raw, expected) in [
            (0x00af_fb00_0000_ffff, &[(Guest64, 0xe033, Current)][..]),
            (0x00af_fa00_0000_ffff, &[(Guest64, 0xe033, Older)]),
            (0x00cf_b200_0000_ffff, &[(Guest32On64, 0xe021, Older)]),
            (0x00cf_f300_0000_ffff, &[(Guest64, 0xe02b, Current), (Guest32On64, 0xe033, Current)]),
            (0x00cf_ba00_0000_67ff, &[(Guest32On32Pae, 0xe019, Current)]),
            (0x00cf_f300_0000_c3ff, &[(Guest32On32NonPae, 0xe033, Used)]),
            (
                0x0000_9100_0000_0007,
                &[
                    (Guest64, 0xe060, PerCpu),
                    (Guest32On64, 0xe060, PerCpu),
                    (Guest32On32Pae, 0xe050, PerCpu),
                    (Guest32On32NonPae, 0xe050, PerCpu),
                ],
            ),
            (0x0000_8900_0000_0067, &[]),
            (0, &[]),
        ] {
            assert_eq!(found(raw), expected, "{raw:#x}");
        }
    }
}
