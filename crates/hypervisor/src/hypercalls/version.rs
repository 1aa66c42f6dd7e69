//! `xen_version`: what the hypervisor says of itself.
//!
//! Guests choose their ways by it, so it says what a Xen of that version says; the texts that guests only print say
//! what is really there.
//!
//! Source: `do_xen_version`, `xenver_varbuf_op` in `xen/common/kernel.c`, `xsm_xen_version` in
//! `xen/include/xsm/dummy.h`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    features::{Feature, Reported},
    units::{GuestVirt, PAGE_SIZE},
    version::{
        CAPABILITIES_BYTES, CHANGESET_BYTES, CompileInfo, EXTRAVERSION_BYTES, FeatureInfo,
        PlatformParameters, XenVersionOp,
    },
    vm::VmAssistType,
};
use zerocopy::FromZeros;

use crate::{
    dispatch::{Outcome, narrow},
    domain::Call,
    guest::XEN_START,
    refusal::Refusal,
    support::Supported as _,
};

/// The version whose interface this is.
const MAJOR: i64 = 4;
const MINOR: i64 = 17;
/// What follows the version's number.
const EXTRAVERSION: &str = ".0-paravane";
/// The kinds of guest that can run.
const CAPABILITIES: &str = "xen-3.0-x86_64 ";
/// The revision of Xen's own source: there is none.
const CHANGESET: &str = "paravane";
/// What a guest reads instead of what is not its business.
const DENIED: &[u8] = b"<denied>\0";

/// `xen_version(cmd, arg)`.
///
/// # Errors
///
/// `ENOSYS` for an unknown question, `EFAULT` for an answer that cannot be written, `EPERM` for what is the control
/// domain's to ask, `EINVAL` for another submap than 0 or an argument to the page size, `ENOBUFS` for a text that
/// does not fit.
pub(crate) fn xen_version(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    let at = GuestVirt(argument);
    match XenVersionOp::from_number(narrow(command)).ok_or(Errno::Enosys)? {
        XenVersionOp::Version => return Ok(Outcome::Return(MAJOR << 16 | MINOR)),
        XenVersionOp::Extraversion => {
            call.space().write(at, &text::<EXTRAVERSION_BYTES>(EXTRAVERSION))?;
        }
        XenVersionOp::CompileInfo => call.space().write_value(at, &compile_info())?,
        XenVersionOp::Capabilities => {
            call.space().write(at, &text::<CAPABILITIES_BYTES>(CAPABILITIES))?;
        }
        XenVersionOp::Changeset => call.space().write(at, &text::<CHANGESET_BYTES>(CHANGESET))?,
        XenVersionOp::PlatformParameters => {
            call.space().write_value(at, &PlatformParameters { virt_start: XEN_START })?;
        }
        XenVersionOp::GetFeatures => {
            let mut request: FeatureInfo = call.space().read_value(at)?;
            if request.submap_idx != 0 {
                return Err(Errno::Einval.into());
            }
            request.submap = features(call);
            call.space().write_value(at, &request)?;
        }
        XenVersionOp::Pagesize if argument != 0 => return Err(Errno::Einval.into()),
        XenVersionOp::Pagesize => return Ok(Outcome::from(PAGE_SIZE)),
        XenVersionOp::GuestHandle => call.space().write(at, &call.domain.handle)?,
        XenVersionOp::Commandline => call.space().write(at, DENIED)?,
        XenVersionOp::Extraversion2 => return whole_text(call, at, EXTRAVERSION),
        XenVersionOp::Capabilities2 => return whole_text(call, at, CAPABILITIES),
        XenVersionOp::Changeset2 => return whole_text(call, at, CHANGESET),
        question @ (XenVersionOp::BuildId | XenVersionOp::Commandline2) => {
            return Err(question.refusal().into());
        }
    }
    Ok(Outcome::Return(0))
}

/// The features that a PV domain is offered.
fn features(call: &Call<'_>) -> u32 {
    let extended_cr3 = call.domain.assists & 1 << VmAssistType::PaeExtendedCr3.number() != 0;
    let offered = |feature: &&Feature| match feature.facts().reported {
        Reported::Yes | Reported::RecentlyYes => true,
        Reported::WithExtendedCr3 => extended_cr3,
        Reported::Dom0 | Reported::Translated | Reported::No => false,
    };
    Feature::ALL.iter().filter(offered).fold(0, |submap, feature| submap | 1 << feature.number())
}

fn compile_info() -> CompileInfo {
    let mut info = CompileInfo::new_zeroed();
    put(&mut info.compiler, "rustc");
    put(&mut info.compile_by, "paravane");
    put(&mut info.compile_domain, "");
    put(&mut info.compile_date, "");
    info
}

/// A text as a C string in a field of fixed size.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    put(&mut field, text);
    field
}

/// Copies a text into a field, leaving room for the final zero.
fn put(field: &mut [u8], text: &str) {
    let room = field.len().saturating_sub(1);
    for (to, from) in field[..room].iter_mut().zip(text.as_bytes()) {
        *to = *from;
    }
}

/// Answers with a text of any length, into a buffer whose length stands before it. Returns the text's length; a null
/// pointer asks for that alone.
fn whole_text(call: &Call<'_>, at: GuestVirt, text: &str) -> Result<Outcome, Refusal> {
    /// `struct xen_varbuf`: the length, then the bytes.
    #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
    #[repr(C)]
    struct Header {
        len: u32,
        buf: [u8; 0],
    }
    let length = Outcome::from(text.len() as u64);
    if at.0 == 0 {
        return Ok(length);
    }
    let header: Header = call.space().read_value(at)?;
    if text.len() > header.len as usize {
        return Err(Errno::Enobufs.into());
    }
    call.space().write(at.wrapping_add(offset_of!(Header, buf) as u64), text.as_bytes())?;
    Ok(length)
}
