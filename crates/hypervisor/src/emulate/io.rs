//! Port I/O of a guest that owns no ports.
//!
//! A guest whose virtual IOPL or I/O bitmap permits a port still finds nothing there: reads are all ones, writes are
//! dropped. Only the PCI address register 0xCF8 remembers what was written to it, as on real Xen, so that a probe for a PCI
//! host bridge gets the answer "no devices" instead of nonsense.
//!
//! Source: `guest_io_read`, `guest_io_write`, `guest_io_okay` in `xen/arch/x86/pv/emul-priv-op.c`.

use paravane_abi::units::GuestVirt;
use paravane_engine::{Gpr, PageFault, Port, StringIo, Width, rflags};
use paravane_memory::paging::{Access, FaultCode};

use super::{Emulated, iopl_allows};
use crate::{domain::Call, guest::AddressSpace};

const PCI_ADDRESS: Port = 0xcf8;
/// Elements of a string instruction that are done before the guest gets its events.
const MAX_ELEMENTS: u64 = 512;

pub(super) fn input(call: &mut Call<'_>, port: Port, width: Width) -> Emulated {
    if !permitted(call, port, width) {
        return Emulated::Refused;
    }
    let value = u64::from(read(call, port, width));
    let old = call.context.gpr(Gpr::Rax);
    // A 32-bit result clears the upper half, smaller ones leave the rest alone.
    let result = match width {
        Width::Byte => old & !0xff | value,
        Width::Word => old & !0xffff | value,
        Width::Dword => value,
    };
    call.context.set_gpr(Gpr::Rax, result);
    Emulated::Done
}

pub(super) fn output(call: &mut Call<'_>, port: Port, width: Width, value: u32) -> Emulated {
    if !permitted(call, port, width) {
        return Emulated::Refused;
    }
    write(call, port, width, value);
    Emulated::Done
}

pub(super) fn input_string(call: &mut Call<'_>, string: StringIo) -> Emulated {
    transfer(call, string, Gpr::Rdi, Access::Write, |call, at, bytes| {
        let value = read(call, string.port, string.width).to_le_bytes();
        current_space(call).is_some_and(|space| space.write(at, &value[..bytes]).is_ok())
    })
}

pub(super) fn output_string(call: &mut Call<'_>, string: StringIo) -> Emulated {
    transfer(call, string, Gpr::Rsi, Access::Read, |call, at, bytes| {
        let mut value = [0; 4];
        let readable = current_space(call).is_some_and(|space| space.read(at, &mut value[..bytes]).is_ok());
        if readable {
            write(call, string.port, string.width, u32::from_le_bytes(value));
        }
        readable
    })
}

/// Moves elements until the count, a fault or the limit of one turn is reached, registers kept in step.
fn transfer(
    call: &mut Call<'_>,
    string: StringIo,
    pointer: Gpr,
    access: Access,
    mut element: impl FnMut(&mut Call<'_>, GuestVirt, usize) -> bool,
) -> Emulated {
    if !permitted(call, string.port, string.width) {
        return Emulated::Refused;
    }
    let bytes = byte_count(string.width);
    let step =
        if call.context.rflags & rflags::DF == 0 { bytes as u64 } else { (bytes as u64).wrapping_neg() };
    let mut at = string.address;
    for _ in 0..string.count.min(MAX_ELEMENTS) {
        if !element(call, GuestVirt(at), bytes) {
            return Emulated::Fault(PageFault { address: at, code: fault_code(access) });
        }
        at = at.wrapping_add(step);
        let moved = call.context.gpr(pointer).wrapping_add(step);
        call.context.set_gpr(pointer, moved);
        if string.repeated {
            let left = call.context.gpr(Gpr::Rcx).wrapping_sub(1);
            call.context.set_gpr(Gpr::Rcx, left);
        }
    }
    if string.count > MAX_ELEMENTS { Emulated::Again } else { Emulated::Done }
}

fn fault_code(access: Access) -> FaultCode {
    let write = match access {
        Access::Write => FaultCode::WRITE,
        Access::Read | Access::Execute => 0,
    };
    FaultCode(FaultCode::USER | write)
}

/// The address space of the mode that executed the instruction.
fn current_space<'a>(call: &'a Call<'_>) -> Option<AddressSpace<'a>> {
    call.context.root().map(|root| AddressSpace { memory: &call.domain.memory, root })
}

fn width_bytes(width: Width) -> u32 {
    match width {
        Width::Byte => 1,
        Width::Word => 2,
        Width::Dword => 4,
    }
}

fn byte_count(width: Width) -> usize {
    width_bytes(width) as usize
}

/// Whether the virtual IOPL, or for user mode and kernel alike the I/O bitmap, permits the ports.
fn permitted(call: &Call<'_>, port: Port, width: Width) -> bool {
    if iopl_allows(call) {
        return true;
    }
    let Some(bitmap) = call.vcpu().io_bitmap else { return false };
    let last = u32::from(port) + width_bytes(width) - 1;
    if last >= bitmap.ports {
        return false;
    }
    // The bitmap is read through the kernel's page tables, whichever mode asks.
    let space = AddressSpace { memory: &call.domain.memory, root: call.context.kernel_root };
    (u32::from(port)..=last).all(|port| {
        let byte = bitmap.at.0.checked_add(u64::from(port / 8)).map(GuestVirt);
        let byte = byte.and_then(|at| space.read_value::<u8>(at).ok());
        byte.is_some_and(|byte| byte >> (port % 8) & 1 == 0)
    })
}

fn read(call: &Call<'_>, port: Port, width: Width) -> u32 {
    match width {
        Width::Dword if port == PCI_ADDRESS => call.domain.pci_address,
        Width::Byte => 0xff,
        Width::Word => 0xffff,
        Width::Dword => u32::MAX,
    }
}

fn write(call: &mut Call<'_>, port: Port, width: Width, value: u32) {
    if port == PCI_ADDRESS && width == Width::Dword {
        call.domain.pci_address = value;
    }
}
