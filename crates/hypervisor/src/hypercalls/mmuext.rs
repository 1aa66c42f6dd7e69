//! `mmuext_op`: pins, roots, flushes, the LDT, whole pages.
//!
//! Source: `do_mmuext_op` in `xen/arch/x86/mm.c`.

use paravane_abi::{
    errno::Errno,
    mmu::{MmuExtOp, MmuExtRequest},
    units::{DomId, GuestVirt, Mfn, PAGE_BYTES},
};
use paravane_engine::TlbFlush;

use super::{batch, descriptors, flush::vcpus_in_bitmap, owner::FrameOwner};
use crate::{
    dispatch::{Args, Outcome, narrow},
    domain::Call,
    frames::{self, Level, RootChange},
    guest::is_guest_address,
    refusal::Refusal,
    support::Supported as _,
};

/// `mmuext_op(requests, count, done, domain)`.
///
/// # Errors
///
/// `EFAULT` for a list that cannot be one, `ESRCH` for an unknown domain, `EPERM` for another than the guest, `ENOSYS` for an unknown operation; else as each
/// operation says.
pub(crate) fn mmuext_op(call: &mut Call<'_>, args: Args) -> Result<Outcome, Refusal> {
    let list = batch::List::of(call, args)?;
    // Fits: masked.
    let owner = FrameOwner::named(call, DomId((narrow(args[3]) & 0xffff) as u16))?;
    if owner != FrameOwner::Own {
        return Err(Errno::Eperm.into());
    }
    batch::run(call, list, |call, request: MmuExtRequest| {
        let op = MmuExtOp::from_number(request.cmd).ok_or(Errno::Enosys)?;
        carry_out(call, op, request.arg1, request.arg2)
    })
}

fn carry_out(call: &mut Call<'_>, op: MmuExtOp, arg1: u64, arg2: u64) -> Result<(), Errno> {
    let frame = Mfn(arg1);
    match op {
        MmuExtOp::PinL1Table => call.domain.frames().pin(frame, Level::L1),
        MmuExtOp::PinL2Table => call.domain.frames().pin(frame, Level::L2),
        MmuExtOp::PinL3Table => call.domain.frames().pin(frame, Level::L3),
        MmuExtOp::PinL4Table => call.domain.frames().pin(frame, Level::L4),
        MmuExtOp::UnpinTable => call.domain.frames().unpin(frame),
        MmuExtOp::NewBaseptr => frames::set_kernel_root(call, frame),
        MmuExtOp::NewUserBaseptr => set_user_root(call, frame),
        MmuExtOp::TlbFlushLocal => {
            call.flush_local(TlbFlush::All);
            Ok(())
        }
        MmuExtOp::TlbFlushAll => {
            call.flush_all(TlbFlush::All);
            Ok(())
        }
        MmuExtOp::TlbFlushMulti => flush_multi(call, Some(TlbFlush::All), arg2),
        MmuExtOp::InvlpgLocal => {
            if let Some(what) = page(arg1) {
                call.flush_local(what);
            }
            Ok(())
        }
        MmuExtOp::InvlpgAll => {
            if let Some(what) = page(arg1) {
                call.flush_all(what);
            }
            Ok(())
        }
        MmuExtOp::InvlpgMulti => flush_multi(call, page(arg1), arg2),
        MmuExtOp::SetLdt => descriptors::set_ldt(call, arg1, arg2),
        MmuExtOp::ClearPage => frames::fill_guest_page(call.domain, frame, &[0; PAGE_BYTES]),
        MmuExtOp::CopyPage => copy_page(call, frame, Mfn(arg2)),
        MmuExtOp::FlushCache | MmuExtOp::FlushCacheGlobal | MmuExtOp::MarkSuper | MmuExtOp::UnmarkSuper => {
            Err(op.refusal())
        }
    }
}

/// The flush of one page; `None` for an address that can have no translation of the guest's, which is no error.
fn page(address: u64) -> Option<TlbFlush> {
    let address = GuestVirt(address);
    (address.is_canonical() && is_guest_address(address)).then(|| TlbFlush::Page(address.page()))
}

fn flush_multi(call: &mut Call<'_>, what: Option<TlbFlush>, bitmap: u64) -> Result<(), Errno> {
    let vcpus = vcpus_in_bitmap(call, GuestVirt(bitmap)).map_err(|_| Errno::Einval)?;
    for vcpu in vcpus {
        if let Some(what) = what {
            call.flush_one(vcpu, what);
        }
    }
    Ok(())
}

fn set_user_root(call: &mut Call<'_>, frame: Mfn) -> Result<(), Errno> {
    let root = (frame != Mfn(0)).then_some(frame);
    let vcpu = call.vcpu;
    match call.domain.frames().load_user_root(vcpu, root)? {
        RootChange::Same => {}
        RootChange::New => call.context.user_root = root,
    }
    Ok(())
}

fn copy_page(call: &mut Call<'_>, to: Mfn, from: Mfn) -> Result<(), Errno> {
    let mut frames = call.domain.frames();
    frames.get(from)?;
    let contents = zerocopy::transmute!(frames.entries(from));
    let copied = frames.fill(to, &contents);
    frames.put(from);
    copied
}
