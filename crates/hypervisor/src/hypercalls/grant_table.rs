//! `grant_table_op`: an array of requests, each answered by a status of its own.
//!
//! Source: `do_grant_table_op` in `xen/common/grant_table.c`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    grant_table::{
        CopyBytes, GetStatusFrames, GetVersion, GrantStatus, GrantTableOp, MapGrantRef, QuerySize,
        SetVersion, SetupTable, SwapGrantRef, UnmapAndReplace, UnmapGrantRef,
    },
    units::{DomId, GrantRef, GuestVirt, Mfn},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    dispatch::{Outcome, narrow},
    domain::{CONTROL_DOMAIN, Call, Verdict},
    grants::{Unmap, Version},
    guest::is_guest_address,
    refusal::Refusal,
    support::Supported as _,
};

/// Requests that are answered before the guest gets a chance to take an event.
const BATCH: u64 = 64;

/// `grant_table_op(cmd, requests, count)`.
///
/// # Errors
///
/// `ENOSYS` for an unknown command, `EINVAL` for a negative count or, where one request is all that makes sense,
/// another count than 1, `EFAULT` for requests that cannot be read or answered; `EOPNOTSUPP` for transfers; those of
/// the two operations on versions.
pub(crate) fn grant_table_op(
    call: &mut Call<'_>,
    command: u64,
    requests: u64,
    count: u64,
) -> Result<Outcome, Refusal> {
    // A command with more than 12 bits is one that real Xen had continued; only cache flushes do.
    const COMMAND_BITS: u32 = 12;
    let (command, at) = (narrow(command), GuestVirt(requests));
    let count = u32::try_from(narrow(count).cast_signed()).map_err(|_| Errno::Einval)?;
    if command >> COMMAND_BITS != 0 {
        return Err(Errno::Einval.into());
    }
    let op = GrantTableOp::from_number(command).ok_or(Errno::Enosys)?;
    match op {
        GrantTableOp::MapGrantRef => each(call, op, at, count, map),
        GrantTableOp::UnmapGrantRef => each(call, op, at, count, unmap),
        GrantTableOp::UnmapAndReplace => each(call, op, at, count, unmap_and_replace),
        GrantTableOp::Copy => each(call, op, at, count, copy),
        GrantTableOp::SwapGrantRef => each(call, op, at, count, swap),
        GrantTableOp::SetupTable => one(call, at, count, setup_table),
        GrantTableOp::QuerySize => one(call, at, count, query_size),
        GrantTableOp::GetStatusFrames => one(call, at, count, get_status_frames),
        GrantTableOp::SetVersion => set_version(call, at),
        GrantTableOp::GetVersion => get_version(call, at),
        GrantTableOp::Transfer if !is_guest_address(at) => Err(Errno::Efault.into()),
        GrantTableOp::Transfer | GrantTableOp::DumpTable | GrantTableOp::CacheFlush => {
            Err(op.refusal().into())
        }
    }
}

/// Answers requests one after another. `answer` gets the call, the request and where it is.
fn each<T: FromBytes + IntoBytes>(
    call: &mut Call<'_>,
    op: GrantTableOp,
    at: GuestVirt,
    count: u32,
    answer: fn(&mut Call<'_>, T, GuestVirt) -> Result<(), Refusal>,
) -> Result<Outcome, Refusal> {
    if !is_guest_address(at) {
        return Err(Errno::Efault.into());
    }
    let size = size_of::<T>() as u64;
    let now = u64::from(count).min(BATCH);
    for index in 0..now {
        let at = at.wrapping_add(index * size);
        let request = call.space().read_value(at)?;
        answer(call, request, at)?;
    }
    match u64::from(count) - now {
        0 => Ok(Outcome::Return(0)),
        rest => {
            let next = at.wrapping_add(now * size);
            Ok(Outcome::Again([op.number().into(), next.0, rest, 0, 0], Verdict::Run))
        }
    }
}

/// Answers the only request.
fn one<T: FromBytes + IntoBytes>(
    call: &mut Call<'_>,
    at: GuestVirt,
    count: u32,
    answer: fn(&mut Call<'_>, T, GuestVirt) -> Result<(), Refusal>,
) -> Result<Outcome, Refusal> {
    if count != 1 {
        return Err(Errno::Einval.into());
    }
    let request = call.space().read_value(at)?;
    answer(call, request, at)?;
    Ok(Outcome::Return(0))
}

/// Stores a status in the field at `offset` of the request.
fn store_status(call: &Call<'_>, at: GuestVirt, offset: usize, status: GrantStatus) -> Result<(), Refusal> {
    Ok(call.space().write_value(at.wrapping_add(offset as u64), &status.number())?)
}

fn map(call: &mut Call<'_>, mut request: MapGrantRef, at: GuestVirt) -> Result<(), Refusal> {
    call.map_grant(&mut request);
    Ok(call.space().write_value(at, &request)?)
}

fn unmap(call: &mut Call<'_>, request: UnmapGrantRef, at: GuestVirt) -> Result<(), Refusal> {
    let status = call.unmap_grant(Unmap {
        host_addr: request.host_addr,
        dev_bus_addr: request.dev_bus_addr,
        new_addr: 0,
        handle: request.handle,
    });
    store_status(call, at, offset_of!(UnmapGrantRef, status), status)
}

fn unmap_and_replace(call: &mut Call<'_>, request: UnmapAndReplace, at: GuestVirt) -> Result<(), Refusal> {
    let status = call.unmap_grant(Unmap {
        host_addr: request.host_addr,
        dev_bus_addr: 0,
        new_addr: request.new_addr,
        handle: request.handle,
    });
    store_status(call, at, offset_of!(UnmapAndReplace, status), status)
}

fn copy(call: &mut Call<'_>, request: CopyBytes, at: GuestVirt) -> Result<(), Refusal> {
    let status = call.domain.copy_grant(&request);
    store_status(call, at, offset_of!(CopyBytes, status), status)
}

fn swap(call: &mut Call<'_>, request: SwapGrantRef, at: GuestVirt) -> Result<(), Refusal> {
    let status = call.domain.swap_grants(GrantRef(request.ref_a), GrantRef(request.ref_b));
    store_status(call, at, offset_of!(SwapGrantRef, status), status)
}

/// Whether the guest may command the table of `domain`: its own.
fn own_table(call: &Call<'_>, domain: u16) -> Result<(), GrantStatus> {
    match call.domain.named_domain(DomId(domain)) {
        own if own == call.domain.id => Ok(()),
        CONTROL_DOMAIN => Err(GrantStatus::PermissionDenied),
        _ => Err(GrantStatus::BadDomain),
    }
}

fn setup_table(call: &mut Call<'_>, request: SetupTable, at: GuestVirt) -> Result<(), Refusal> {
    let list = GuestVirt(request.frame_list);
    if !is_guest_address(list) {
        return Err(Errno::Efault.into());
    }
    let too_many = request.nr_frames > call.domain.grants.max_frames();
    let status = match own_table(call, request.dom) {
        Err(status) => status,
        Ok(()) if too_many => GrantStatus::GeneralError,
        Ok(()) => {
            call.domain.grow_grant_table(request.nr_frames);
            let frames = call.domain.grants.shared_frames();
            list_frames(call, list, frames.take(request.nr_frames as usize))
        }
    };
    store_status(call, at, offset_of!(SetupTable, status), status)
}

fn get_status_frames(call: &mut Call<'_>, request: GetStatusFrames, at: GuestVirt) -> Result<(), Refusal> {
    let list = GuestVirt(request.frame_list);
    if !is_guest_address(list) {
        return Err(Errno::Efault.into());
    }
    let too_many = request.nr_frames > call.domain.grants.status_count;
    let status = match own_table(call, request.dom) {
        Err(status) => status,
        Ok(()) if too_many => GrantStatus::GeneralError,
        Ok(()) => {
            let frames = call.domain.grants.status_frames();
            list_frames(call, list, frames.take(request.nr_frames as usize))
        }
    };
    store_status(call, at, offset_of!(GetStatusFrames, status), status)
}

/// Stores frame numbers in a list of the guest's. Both kinds of list have 8 bytes an element.
fn list_frames(call: &Call<'_>, list: GuestVirt, frames: impl Iterator<Item = Mfn>) -> GrantStatus {
    for (index, frame) in (0..).zip(frames) {
        if call.space().write_element(list, index, &frame.0).is_err() {
            return GrantStatus::BadVirtAddr;
        }
    }
    GrantStatus::Okay
}

fn query_size(call: &mut Call<'_>, mut request: QuerySize, at: GuestVirt) -> Result<(), Refusal> {
    let status = match own_table(call, request.dom) {
        Err(status) => status,
        Ok(()) => {
            request.nr_frames = call.domain.grants.frame_count;
            request.max_nr_frames = call.domain.grants.max_frames();
            GrantStatus::Okay
        }
    };
    request.status = status.number();
    Ok(call.space().write_value(at, &request)?)
}

/// `GNTTABOP_set_version`. Whatever happens, the version in use is written back.
fn set_version(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let mut request: SetVersion = call.space().read_value(at)?;
    let changed = match Version::from_number(request.version) {
        Some(version) => call.domain.set_grant_version(version),
        None => Err(Errno::Einval),
    };
    request.version = call.domain.grants.version.number();
    call.space().write_value(at, &request)?;
    changed?;
    Ok(Outcome::Return(0))
}

fn get_version(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let request: GetVersion = call.space().read_value(at)?;
    own_table(call, request.dom).map_err(|status| {
        if status == GrantStatus::PermissionDenied { Errno::Eperm } else { Errno::Esrch }
    })?;
    let version = call.domain.grants.version.number();
    call.space().write_value(at.wrapping_add(offset_of!(GetVersion, version) as u64), &version)?;
    Ok(Outcome::Return(0))
}
