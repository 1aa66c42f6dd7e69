//! What the control domain's tools ask of Xen. A domU is refused, but not before its request was looked at: a tool that
//! was built for another Xen learns that first.
//!
//! Source: `do_platform_op` in `xen/arch/x86/platform_hypercall.c`, `do_sysctl` in `xen/common/sysctl.c`, `do_domctl` in
//! `xen/common/domctl.c`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    units::{DomId, GuestVirt},
};

use crate::{
    dispatch::Outcome,
    domain::{CONTROL_DOMAIN, Call},
    refusal::Refusal,
    support::Supported as _,
};

/// `XENPF_INTERFACE_VERSION`.
const PLATFORM_VERSION: u32 = 0x0300_0001;
/// `XEN_SYSCTL_INTERFACE_VERSION` and `XEN_DOMCTL_INTERFACE_VERSION` of the version whose interface this is.
const TOOLS_VERSION: u32 = 0x15;

/// `platform_op(op)`.
///
/// # Errors
///
/// `EFAULT` for a request that cannot be read, `EACCES` for one of another version, else `EPERM`.
pub(crate) fn platform_op(call: &Call<'_>, request: u64) -> Result<Outcome, Refusal> {
    let [_command, version]: [u32; 2] = call.space().read_value(GuestVirt(request))?;
    refuse(Hypercall::PlatformOp, version == PLATFORM_VERSION)
}

/// `sysctl(op)`.
///
/// # Errors
///
/// As [`platform_op`].
pub(crate) fn sysctl(call: &Call<'_>, request: u64) -> Result<Outcome, Refusal> {
    let [_command, version]: [u32; 2] = call.space().read_value(GuestVirt(request))?;
    refuse(Hypercall::Sysctl, version == TOOLS_VERSION)
}

/// `domctl(op)`.
///
/// # Errors
///
/// As [`platform_op`]; `ESRCH` for a domain that does not exist, unless it is to be created or to be searched from.
pub(crate) fn domctl(call: &Call<'_>, request: u64) -> Result<Outcome, Refusal> {
    // `xen/include/public/domctl.h`.
    const CREATE_DOMAIN: u32 = 1;
    const GET_DOMAIN_INFO: u32 = 5;
    let [command, version, domain]: [u32; 3] = call.space().read_value(GuestVirt(request))?;
    if version != TOOLS_VERSION || matches!(command, CREATE_DOMAIN | GET_DOMAIN_INFO) {
        return refuse(Hypercall::Domctl, version == TOOLS_VERSION);
    }
    // Fits: masked.
    let domain = DomId((domain & 0xffff) as u16);
    if domain != call.domain.id && domain != CONTROL_DOMAIN {
        return Err(Errno::Esrch.into());
    }
    refuse(Hypercall::Domctl, true)
}

fn refuse(hypercall: Hypercall, right_version: bool) -> Result<Outcome, Refusal> {
    Err(if right_version { hypercall.refusal() } else { Errno::Eacces }.into())
}
