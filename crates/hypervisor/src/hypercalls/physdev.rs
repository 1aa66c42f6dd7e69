//! `physdev_op` and its older form: I/O privilege, and a shadow of what domains with real devices need.
//!
//! Source: `do_physdev_op` in `xen/arch/x86/physdev.c`, `do_physdev_op_compat` in `xen/arch/x86/compat.c`.

use paravane_abi::{
    errno::Errno,
    physdev::{Eoi, IO_PORTS, IRQ_NEEDS_EOI, IrqStatusQuery, PhysdevOp, PirqEoiGmfn, SetIobitmap, SetIopl},
    units::{GuestVirt, Mfn},
};

use crate::{
    dispatch::{Outcome, narrow},
    domain::Call,
    guest::is_guest_address,
    refusal::Refusal,
    support::Supported as _,
    vcpu::IoBitmap,
};

/// How many numbers of physical interrupts the domain has: those of a machine without an I/O APIC, and none beside them.
pub(super) const PIRQS: u32 = 16;

/// `physdev_op(cmd, arg)`.
///
/// # Errors
///
/// `ENOSYS` for an unknown command, `EFAULT` for an unreadable argument, `EINVAL` for a bad one or an interrupt that is
/// not the domain's (none is), `EBUSY` for a second page of ends of interrupts, `ENOSPC` when asked for an interrupt,
/// `ENODEV` for a device (there is none), `EPERM` for what is the hardware domain's.
pub(crate) fn physdev_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    let op = PhysdevOp::from_number(narrow(command)).ok_or(Errno::Enosys)?;
    let at = GuestVirt(argument);
    match op {
        PhysdevOp::SetIopl => set_iopl(call, at),
        PhysdevOp::SetIobitmap => set_iobitmap(call, at),
        PhysdevOp::PirqEoiGmfnV1 | PhysdevOp::PirqEoiGmfnV2 => register_eoi_page(call, at),
        // All interrupts of a domain that has none.
        PhysdevOp::IrqUnmaskNotify => Ok(Outcome::Return(0)),
        PhysdevOp::Eoi => {
            call.space().read_value::<Eoi>(at)?;
            Err(op.refusal().into())
        }
        PhysdevOp::IrqStatusQuery => irq_status(call, at),
        PhysdevOp::GetFreePirq => {
            // struct physdev_get_free_pirq: a type and the answer.
            call.space().read_value::<[u32; 2]>(at)?;
            Err(op.refusal().into())
        }
        PhysdevOp::ApicRead
        | PhysdevOp::ApicWrite
        | PhysdevOp::AllocIrqVector
        | PhysdevOp::FreeIrqVector
        | PhysdevOp::MapPirq
        | PhysdevOp::UnmapPirq
        | PhysdevOp::ManagePciAdd
        | PhysdevOp::ManagePciRemove
        | PhysdevOp::RestoreMsi
        | PhysdevOp::ManagePciAddExt
        | PhysdevOp::SetupGsi
        | PhysdevOp::PciMmcfgReserved
        | PhysdevOp::PciDeviceAdd
        | PhysdevOp::PciDeviceRemove
        | PhysdevOp::RestoreMsiExt
        | PhysdevOp::DbgpOp
        | PhysdevOp::PrepareMsix
        | PhysdevOp::ReleaseMsix
        | PhysdevOp::PciDeviceReset => Err(op.refusal().into()),
    }
}

/// Any interrupt of the domain may need an end, as far as stock Xen tells a guest that does not look at the page of ends.
fn irq_status(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let mut query: IrqStatusQuery = call.space().read_value(at)?;
    if query.irq >= PIRQS {
        return Err(Errno::Einval.into());
    }
    query.flags = IRQ_NEEDS_EOI;
    call.space().write_value(at, &query)?;
    Ok(Outcome::Return(0))
}

/// `physdev_op_compat(op)`: the command stands before the argument.
///
/// # Errors
///
/// As [`physdev_op`].
pub(crate) fn physdev_op_compat(call: &mut Call<'_>, argument: u64) -> Result<Outcome, Refusal> {
    // struct physdev_op: the command, padding, and the largest of the arguments.
    const ARGUMENT_AT: u64 = size_of::<u64>() as u64;
    const WORDS: usize = 1 + size_of::<SetIobitmap>() / size_of::<u64>();
    let words: [u64; WORDS] = call.space().read_value(GuestVirt(argument))?;
    physdev_op(call, u64::from(narrow(words[0])), argument.wrapping_add(ARGUMENT_AT))
}

fn set_iopl(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let SetIopl { iopl } = call.space().read_value(at)?;
    let iopl = u8::try_from(iopl).ok().filter(|iopl| *iopl <= 3).ok_or(Errno::Einval)?;
    call.vcpu_mut().iopl = iopl;
    Ok(Outcome::Return(0))
}

/// The bitmap is read when an instruction needs it; here only its address is looked at.
fn set_iobitmap(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let request: SetIobitmap = call.space().read_value(at)?;
    let bitmap = GuestVirt(request.bitmap);
    if !is_guest_address(bitmap) || request.nr_ports > IO_PORTS {
        return Err(Errno::Einval.into());
    }
    call.vcpu_mut().io_bitmap = Some(IoBitmap { at: bitmap, ports: request.nr_ports });
    Ok(Outcome::Return(0))
}

/// No interrupt will ever be marked in the page, but it stays claimed, as the guest may tell.
fn register_eoi_page(call: &mut Call<'_>, at: GuestVirt) -> Result<Outcome, Refusal> {
    let PirqEoiGmfn { gmfn } = call.space().read_value(at)?;
    let frame = Mfn(gmfn);
    call.domain.claim_writable(frame).map_err(|_| Errno::Einval)?;
    if call.domain.pirq_eoi.is_some() {
        call.domain.release_writable(frame);
        return Err(Errno::Ebusy.into());
    }
    call.domain.pirq_eoi = Some(frame);
    Ok(Outcome::Return(0))
}
