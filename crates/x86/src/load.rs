//! May a guest load this descriptor into that segment register, and which fault does it get if not?
//!
//! The CPU checks type, privilege and presence when a selector is loaded; limits are checked at each access
//! instead. In a PV guest the current ring (CPL) is the guest kernel's: 3 in a 64-bit guest, 1 in a 32-bit
//! one, 3 in its user programs.
//!
//! CS cannot be written with MOV: it is loaded by far jumps, calls and returns and by IRET. The answer for CS is
//! that of a far jump or of a return to the same ring, which agree when RPL equals CPL.
//!
//! Source: Intel SDM vol. 2, "MOV", "LDS/LES/LFS/LGS/LSS", "JMP" and "IRET"; vol. 3A, "Privilege Level Checking
//! When Accessing Data Segments", "Privilege Level Checking When Loading the SS Register", "Privilege Level
//! Checking When Transferring Program Control Between Code Segments"; AMD APM vol. 2, "Data-Access Privilege
//! Checks", "Control-Transfer Privilege Checks".

use core::fmt;

use serde::Serialize;

use crate::{
    descriptor::{Descriptor, Kind, SystemType, kind::CodeWidth},
    mode::{Hypervisor, Mode},
    segments::SegmentRegister,
    selector::Ring,
};

/// The rings of a load: who loads, and in whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// The ring of the code that loads.
    pub cpl: Ring,
    /// The RPL of the selector it loads.
    pub rpl: Ring,
}

/// Why a load fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// The null descriptor's selector: only DS, ES, FS and GS may be null (and SS in 64-bit code below ring 3).
    Null,
    /// A system segment or gate.
    System(SystemType),
    /// Data in CS.
    DataInCs,
    /// L and D both set, in long mode.
    ReservedWidth,
    /// Code in SS.
    CodeInSs,
    /// Read-only data in SS.
    ReadOnlyInSs,
    /// Execute-only code in a data register.
    ExecuteOnly,
    /// The DPL does not allow this ring.
    Privilege {
        /// The descriptor's DPL.
        dpl: Ring,
        /// The ring that loads.
        cpl: Ring,
        /// The selector's RPL.
        rpl: Ring,
    },
    /// P = 0.
    NotPresent,
}

/// The fault that a failing load raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LoadFault {
    /// #GP with error code 0: the null selector.
    #[serde(rename = "#GP(0)")]
    GpZero,
    /// #GP with the selector's index and table as error code.
    #[serde(rename = "#GP(selector)")]
    Gp,
    /// #SS with the selector's index and table as error code: a stack segment that is not present.
    #[serde(rename = "#SS(selector)")]
    Ss,
    /// #NP with the selector's index and table as error code.
    #[serde(rename = "#NP(selector)")]
    Np,
}

/// Whether the CPU lets code at `privilege.cpl` load `descriptor` into `register` with a selector of
/// `privilege.rpl`, in the CPU mode of `mode`'s hypervisor.
///
/// # Errors
///
/// The first obstacle in the order in which the CPU checks. [`Obstacle::fault`] names the fault.
pub fn may_load(
    mode: Mode,
    descriptor: Descriptor,
    register: SegmentRegister,
    privilege: Privilege,
) -> Result<(), Obstacle> {
    if descriptor == Descriptor::NULL {
        return match register {
            SegmentRegister::Cs | SegmentRegister::Ss => Err(Obstacle::Null),
            SegmentRegister::Ds | SegmentRegister::Es | SegmentRegister::Fs | SegmentRegister::Gs => Ok(()),
        };
    }
    match register {
        SegmentRegister::Cs => check_cs(mode, descriptor, privilege),
        SegmentRegister::Ss => check_ss(descriptor, privilege),
        SegmentRegister::Ds | SegmentRegister::Es | SegmentRegister::Fs | SegmentRegister::Gs => {
            check_data(descriptor, privilege)
        }
    }?;
    if descriptor.is_present() { Ok(()) } else { Err(Obstacle::NotPresent) }
}

fn check_cs(mode: Mode, descriptor: Descriptor, privilege: Privilege) -> Result<(), Obstacle> {
    let code = match descriptor.kind() {
        Kind::Code(code) => code,
        Kind::Data(_) => return Err(Obstacle::DataInCs),
        Kind::System(system) => return Err(Obstacle::System(system)),
    };
    let dpl = descriptor.dpl();
    let allowed = if code.conforming {
        dpl <= privilege.cpl
    } else {
        privilege.rpl <= privilege.cpl && dpl == privilege.cpl
    };
    if !allowed {
        return Err(Obstacle::Privilege { dpl, cpl: privilege.cpl, rpl: privilege.rpl });
    }
    if code.width == CodeWidth::Reserved && mode.hypervisor() == Hypervisor::Bits64 {
        return Err(Obstacle::ReservedWidth);
    }
    Ok(())
}

fn check_ss(descriptor: Descriptor, privilege: Privilege) -> Result<(), Obstacle> {
    let dpl = descriptor.dpl();
    let level = Obstacle::Privilege { dpl, cpl: privilege.cpl, rpl: privilege.rpl };
    match descriptor.kind() {
        Kind::System(system) => Err(Obstacle::System(system)),
        Kind::Code(_) => Err(Obstacle::CodeInSs),
        Kind::Data(data) if !data.writable => Err(Obstacle::ReadOnlyInSs),
        Kind::Data(_) if privilege.rpl != privilege.cpl || dpl != privilege.cpl => Err(level),
        Kind::Data(_) => Ok(()),
    }
}

fn check_data(descriptor: Descriptor, privilege: Privilege) -> Result<(), Obstacle> {
    let privileged = match descriptor.kind() {
        Kind::System(system) => return Err(Obstacle::System(system)),
        Kind::Code(code) if !code.readable => return Err(Obstacle::ExecuteOnly),
        // Readable conforming code can be read from any ring.
        Kind::Code(code) => !code.conforming,
        Kind::Data(_) => true,
    };
    let dpl = descriptor.dpl();
    if privileged && (privilege.rpl > dpl || privilege.cpl > dpl) {
        return Err(Obstacle::Privilege { dpl, cpl: privilege.cpl, rpl: privilege.rpl });
    }
    Ok(())
}

impl Obstacle {
    /// The fault that loading `register` raises for this reason.
    pub fn fault(self, register: SegmentRegister) -> LoadFault {
        match self {
            Self::Null => LoadFault::GpZero,
            Self::NotPresent if register == SegmentRegister::Ss => LoadFault::Ss,
            Self::NotPresent => LoadFault::Np,
            Self::System(_)
            | Self::DataInCs
            | Self::ReservedWidth
            | Self::CodeInSs
            | Self::ReadOnlyInSs
            | Self::ExecuteOnly
            | Self::Privilege { .. } => LoadFault::Gp,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("a null selector is not allowed here"),
            Self::System(system) => write!(f, "a system descriptor ({}) is not a segment", system.name()),
            Self::DataInCs => f.write_str("data cannot be executed"),
            Self::ReservedWidth => f.write_str("L and D are both set"),
            Self::CodeInSs => f.write_str("a stack must be writable data, and this is code"),
            Self::ReadOnlyInSs => f.write_str("a stack must be writable data, and this is read-only"),
            Self::ExecuteOnly => f.write_str("execute-only code cannot be read"),
            Self::Privilege { dpl, cpl, rpl } => {
                write!(f, "DPL {dpl} does not allow a load from ring {cpl} with RPL {rpl}")
            }
            Self::NotPresent => f.write_str("not present"),
        }
    }
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GpZero => "#GP(0)",
            Self::Gp => "#GP(selector)",
            Self::Ss => "#SS(selector)",
            Self::Np => "#NP(selector)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdt;

    const RING3: Privilege = Privilege { cpl: Ring::R3, rpl: Ring::R3 };
    const RING1: Privilege = Privilege { cpl: Ring::R1, rpl: Ring::R1 };

    fn load(raw: u64, register: SegmentRegister) -> Result<(), Obstacle> {
        may_load(Mode::Guest64, Descriptor(raw), register, RING3)
    }

    #[test]
    fn the_64_bit_code_segment_cannot_be_a_stack() {
        assert_eq!(load(0x00af_fb00_0000_ffff, SegmentRegister::Cs), Ok(()));
        let obstacle = load(0x00af_fb00_0000_ffff, SegmentRegister::Ss).unwrap_err();
        assert_eq!(obstacle, Obstacle::CodeInSs);
        assert_eq!(obstacle.fault(SegmentRegister::Ss), LoadFault::Gp);
    }

    #[test]
    fn each_obstacle_has_its_fault() {
        use SegmentRegister::{Cs, Ds, Ss};
        let ring3 = |dpl| Obstacle::Privilege { dpl, cpl: Ring::R3, rpl: Ring::R3 };
        for (raw, register, obstacle, fault) in [
            (0, Cs, Obstacle::Null, LoadFault::GpZero),
            (0, Ss, Obstacle::Null, LoadFault::GpZero),
            (0x00cf_f300_0000_ffff, Cs, Obstacle::DataInCs, LoadFault::Gp),
            (0x00ef_fb00_0000_ffff, Cs, Obstacle::ReservedWidth, LoadFault::Gp),
            (0x00af_9b00_0000_ffff, Cs, ring3(Ring::R0), LoadFault::Gp),
            (0x00cf_f100_0000_ffff, Ss, Obstacle::ReadOnlyInSs, LoadFault::Gp),
            (0x00cf_9300_0000_ffff, Ss, ring3(Ring::R0), LoadFault::Gp),
            (0x00cf_9300_0000_ffff, Ds, ring3(Ring::R0), LoadFault::Gp),
            (0x00cf_f900_0000_ffff, Ds, Obstacle::ExecuteOnly, LoadFault::Gp),
            (0x0000_8900_0000_0067, Ds, Obstacle::System(SystemType::TssAvailable), LoadFault::Gp),
            (0x00cf_7300_0000_ffff, Ds, Obstacle::NotPresent, LoadFault::Np),
            (0x00cf_7300_0000_ffff, Ss, Obstacle::NotPresent, LoadFault::Ss),
            (0x00af_7b00_0000_ffff, Cs, Obstacle::NotPresent, LoadFault::Np),
        ] {
            assert_eq!(load(raw, register), Err(obstacle), "{raw:#x} into {register}");
            assert_eq!(obstacle.fault(register), fault, "{raw:#x} into {register}");
        }
    }

    #[test]
    fn a_data_register_accepts_null_data_and_readable_code() {
        for raw in
            [0, 0x00cf_f300_0000_ffff, 0x00cf_f100_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_9f00_0000_ffff]
        {
            assert_eq!(load(raw, SegmentRegister::Es), Ok(()), "{raw:#x}");
        }
    }

    #[test]
    fn a_32_bit_guest_kernel_may_read_through_ring_3_data_but_not_stack_on_it() {
        let user_data = Descriptor(0x00cf_f300_0000_ffff);
        let load = |register| may_load(Mode::Guest32On64, user_data, register, RING1);
        assert_eq!(load(SegmentRegister::Ds), Ok(()));
        assert!(matches!(load(SegmentRegister::Ss), Err(Obstacle::Privilege { .. })));
    }

    #[test]
    fn the_l_bit_means_nothing_to_a_32_bit_hypervisor() {
        let both = Descriptor(0x00ef_bb00_0000_ffff);
        assert_eq!(may_load(Mode::Guest32On32Pae, both, SegmentRegister::Cs, RING1), Ok(()));
    }

    #[test]
    fn xen_private_entries_cannot_be_loaded_and_guest_entries_can() {
        for mode in Mode::ALL {
            for entry in gdt::reserved_entries(mode) {
                let Some(descriptor) =
                    entry.descriptor().filter(|descriptor| *descriptor != Descriptor::NULL)
                else {
                    continue;
                };
                let ring = entry.selector.rpl().max(gdt::kernel_ring(mode));
                let privilege = Privilege { cpl: ring, rpl: ring };
                let loadable = SegmentRegister::ALL
                    .into_iter()
                    .any(|register| may_load(mode, descriptor, register, privilege).is_ok());
                assert_eq!(loadable, entry.access == gdt::Access::Guest, "{mode}: {entry:?}");
            }
        }
    }
}
