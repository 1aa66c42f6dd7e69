//! Questions of `xen_version`.

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// A question of `xen_version`.
    pub enum XenVersionOp(u32), "xen/include/public/version.h": SubOpFacts;
    0 Version "version" "Returns major << 16 | minor; the argument is ignored." {
        arg: "", domu: DomU::Available
    }
    1 Extraversion "extraversion" "Copies out the rest of the version, 16 bytes." {
        arg: "xen_extraversion_t", domu: DomU::Available
    }
    2 CompileInfo "compile_info" "Copies out compiler, user, domain and date of the build, 144 bytes." {
        arg: "xen_compile_info", domu: DomU::Available
    }
    3 Capabilities "capabilities" "Copies out the kinds of guest that can run, 1024 bytes." {
        arg: "xen_capabilities_info_t", domu: DomU::Available
    }
    4 Changeset "changeset" "Copies out the source revision, 64 bytes." {
        arg: "xen_changeset_info_t", domu: DomU::Available
    }
    5 PlatformParameters "platform_parameters" "Copies out the address at which the hypervisor begins." {
        arg: "xen_platform_parameters", domu: DomU::Available
    }
    6 GetFeatures "get_features" "Copies out one 32-bit submap of offered features." {
        arg: "xen_feature_info", domu: DomU::Available
    }
    7 Pagesize "pagesize" "Returns 4096; EINVAL unless the argument is null." {
        arg: "", domu: DomU::Available
    }
    8 GuestHandle "guest_handle" "Copies out the domain's UUID, 16 bytes." {
        arg: "xen_domain_handle_t", domu: DomU::Available
    }
    9 Commandline "commandline" "Copies out Xen's own command line, 1024 bytes; a domU reads a refusal instead." {
        arg: "xen_commandline_t", domu: DomU::Available
    }
    10 BuildId "build_id" "Copies out the build id and returns its length; null asks for the length." {
        arg: "xen_varbuf", domu: DomU::Refused(Errno::Eperm)
    }
    11 Extraversion2 "extraversion2" "As extraversion, of any length." {
        arg: "xen_varbuf", domu: DomU::Optional(Errno::Enosys)
    }
    12 Capabilities2 "capabilities2" "As capabilities, of any length." {
        arg: "xen_varbuf", domu: DomU::Optional(Errno::Enosys)
    }
    13 Changeset2 "changeset2" "As changeset, of any length." {
        arg: "xen_varbuf", domu: DomU::Optional(Errno::Enosys)
    }
    14 Commandline2 "commandline2" "As commandline, of any length." {
        arg: "xen_varbuf", domu: DomU::Refused(Errno::Eperm)
    }
}

/// Bytes that `XENVER_extraversion` writes.
pub const EXTRAVERSION_BYTES: usize = 16;
/// Bytes that `XENVER_capabilities` writes.
pub const CAPABILITIES_BYTES: usize = 1024;
/// Bytes that `XENVER_changeset` writes.
pub const CHANGESET_BYTES: usize = 64;
/// Bytes that `XENVER_guest_handle` writes.
pub const GUEST_HANDLE_BYTES: usize = 16;
/// Bytes that `XENVER_commandline` writes.
pub const COMMANDLINE_BYTES: usize = 1024;

abi_struct! {
    /// Who built the hypervisor, with what, when.
    pub struct CompileInfo = "xen_compile_info", "xen/include/public/version.h", 144 / 144;
    [0 / 0] compiler: [u8; 64] = Ty::Array(&Ty::Char, 64, 64), "The compiler.";
    [64 / 64] compile_by: [u8; 16] = Ty::Array(&Ty::Char, 16, 16), "The user.";
    [80 / 80] compile_domain: [u8; 32] = Ty::Array(&Ty::Char, 32, 32), "The host's domain.";
    [112 / 112] compile_date: [u8; 32] = Ty::Array(&Ty::Char, 32, 32), "The date.";
}

abi_struct! {
    /// Where the hypervisor begins.
    pub struct PlatformParameters = "xen_platform_parameters", "xen/include/public/version.h", 8 / 4;
    [0 / 0] virt_start: u64 = Ty::Word, "The lowest virtual address that the hypervisor keeps for itself.";
}

abi_struct! {
    /// One submap of features.
    pub struct FeatureInfo = "xen_feature_info", "xen/include/public/version.h", 8 / 8;
    [0 / 0] submap_idx: u32 = Ty::U32, "Which submap; only 0 exists.";
    [4 / 4] submap: u32 = Ty::U32, "Answer: its bits.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn questions_read_back() {
        assert_well_formed::<XenVersionOp>();
        assert_eq!(XenVersionOp::from_number(15), None);
    }
}
