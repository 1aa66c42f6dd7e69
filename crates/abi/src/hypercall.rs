//! THE hypercall table.
//!
//! A PV guest calls its hypervisor by number: SYSCALL in kernel mode with the number in RAX (64-bit), or INT
//! 0x82 from ring 1 with the number in EAX (32-bit). Xen has [`TABLE_SIZE`] numbers, of which [`Hypercall`]
//! names those that were ever given a meaning on x86. Dispatch, traces, the hypercall page's slot names and
//! the coverage page all derive from the rows here; [`describe`] answers for every number.
//!
//! Many hypercalls take a sub-operation as their first argument. Those have their own tables, reached by
//! [`Family`].
//!
//! Sources: `xen/include/public/xen.h` for numbers, `xen/include/hypercall-defs.c` for arguments and for
//! which guests have which, the dispatchers below `xen/arch/x86/pv/` and `xen/common/` for behaviour.

mod args;
mod convention;
mod domu;
mod family;
mod table;

use core::fmt;

use serde::Serialize;

pub use self::args::{Arg, ArgKind, Direction, Length, Pointer, Wide};
pub use self::convention::{CONVENTION, Convention};
pub use self::domu::DomU;
pub use self::family::{Family, SubOp, SubOpFacts};
pub use self::table::{Guests, Hypercall, HypercallFacts};
use crate::errno::Errno;

/// How many numbers Xen's dispatch table has. A number beyond it, or an empty entry, is `ENOSYS`.
pub const TABLE_SIZE: u32 = 64;

/// The numbers that the architecture may define, `__HYPERVISOR_arch_0` to `__HYPERVISOR_arch_7`.
pub const ARCH_NUMBERS: core::ops::RangeInclusive<u32> = 48..=55;

/// What a hypercall number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumberUse {
    /// A hypercall of the table.
    Defined(Hypercall),
    /// One of the architecture's numbers, to which x86 gives no meaning; holds the index after `arch_`.
    UnusedArch(u32),
    /// A number inside the table that never had a meaning or has not been given one.
    Unused,
    /// A number beyond the table.
    OutOfTable,
}

/// What `number` stands for.
///
/// ```
/// use paravane_abi::hypercall::{Hypercall, NumberUse, describe};
///
/// assert_eq!(describe(23), NumberUse::Defined(Hypercall::Iret));
/// assert_eq!(describe(11), NumberUse::Unused);
/// assert_eq!(describe(52).to_string(), "unused (arch_4)");
/// ```
pub fn describe(number: u32) -> NumberUse {
    match Hypercall::from_number(number) {
        Some(hypercall) => NumberUse::Defined(hypercall),
        None if number >= TABLE_SIZE => NumberUse::OutOfTable,
        None if ARCH_NUMBERS.contains(&number) => NumberUse::UnusedArch(number - ARCH_NUMBERS.start()),
        None => NumberUse::Unused,
    }
}

impl NumberUse {
    /// The error that an unprivileged domain gets from the number whatever its arguments, if it gets one.
    pub fn errno(self) -> Option<Errno> {
        match self {
            Self::Defined(hypercall) => hypercall.facts().domu.errno(),
            Self::UnusedArch(_) | Self::Unused | Self::OutOfTable => Some(Errno::Enosys),
        }
    }
}

impl fmt::Display for NumberUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defined(hypercall) => f.pad(hypercall.name()),
            Self::UnusedArch(index) => f.pad(&format!("unused (arch_{index})")),
            Self::Unused => f.pad("unused"),
            Self::OutOfTable => f.pad("beyond the table"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Numbered, assert_well_formed};

    #[test]
    fn every_hypercall_number_reads_back_as_itself() {
        assert_well_formed::<Hypercall>();
        assert!(Hypercall::ALL.iter().all(|hypercall| hypercall.number() < TABLE_SIZE));
    }

    #[test]
    fn every_number_of_the_table_is_defined_or_named_as_unused() {
        let unused: Vec<u32> =
            (0..TABLE_SIZE).filter(|&number| describe(number) == NumberUse::Unused).collect();
        assert_eq!(unused, [11, 43, 44, 45, 46, 47].into_iter().chain(56..64).collect::<Vec<_>>());
        for number in 50..=55 {
            assert_eq!(describe(number), NumberUse::UnusedArch(number - 48));
        }
        for number in [TABLE_SIZE, u32::MAX] {
            assert_eq!(describe(number), NumberUse::OutOfTable);
            assert_eq!(describe(number).errno(), Some(Errno::Enosys));
        }
    }

    #[test]
    fn arguments_are_at_most_five_and_refer_to_one_another() {
        for &hypercall in Hypercall::ALL {
            for guests in [hypercall.args64(), hypercall.args32()] {
                assert!(guests.len() <= 5, "{hypercall}");
                for arg in guests {
                    let ArgKind::Pointer(pointer) = arg.kind else { continue };
                    match pointer.length {
                        Length::Arg(index) => {
                            let length = guests[usize::from(index)];
                            assert_eq!(length.kind, ArgKind::Count, "{hypercall} {}", arg.name);
                        }
                        Length::DescriptorFrames(index) => {
                            assert_eq!(guests[usize::from(index)].kind, ArgKind::Count);
                        }
                        Length::One | Length::UntilNullAddress => {}
                    }
                }
            }
        }
    }

    #[test]
    fn a_32_bit_guest_passes_a_wide_value_as_low_then_high() {
        for &hypercall in Hypercall::ALL {
            let wide = |args: &[Arg]| {
                args.iter()
                    .filter_map(|arg| {
                        if let ArgKind::Wide(wide) | ArgKind::High(wide) = arg.kind {
                            Some(wide)
                        } else {
                            None
                        }
                    })
                    .collect::<Vec<_>>()
            };
            assert_eq!(wide(hypercall.args64()), wide(hypercall.args32()), "{hypercall}");
            for (index, arg) in hypercall.args32().iter().enumerate() {
                if let ArgKind::Low(low) = arg.kind {
                    assert_eq!(hypercall.args32()[index + 1].kind, ArgKind::High(low), "{hypercall}");
                }
                assert!(!matches!(arg.kind, ArgKind::Wide(_)), "{hypercall} {}", arg.name);
            }
        }
    }

    #[test]
    fn a_command_argument_comes_first_and_its_family_has_rows() {
        for &hypercall in Hypercall::ALL {
            for (index, arg) in hypercall.args64().iter().enumerate() {
                if let ArgKind::Command(family) = arg.kind {
                    assert!(index == 0 || family == Family::VmAssistType, "{hypercall}");
                    assert!(family.rows().next().is_some());
                }
            }
        }
    }

    #[test]
    fn only_segment_bases_are_missing_from_32_bit_guests() {
        let missing: Vec<Hypercall> = Hypercall::ALL
            .iter()
            .copied()
            .filter(|hypercall| hypercall.facts().guests == Guests::Bits64)
            .collect();
        assert_eq!(missing, [Hypercall::SetSegmentBase]);
    }

    #[test]
    fn a_table_can_be_walked_without_its_type() {
        fn rows<T: Numbered>() -> usize {
            T::ALL.iter().filter(|member| !member.row().name.is_empty()).count()
        }
        assert_eq!(rows::<Hypercall>(), Hypercall::ALL.len());
    }
}
