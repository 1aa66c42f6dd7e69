//! Port I/O of a guest that owns no ports.
//!
//! A guest whose virtual IOPL or I/O bitmap permits a port still finds nothing there: reads are all ones, writes are
//! dropped. Only the PCI address register 0xCF8 and the index register of the CMOS, 0x70, remember what was written to
//! them, as on real Xen, so that a probe for a PCI host bridge gets the answer "no devices" instead of nonsense.
//!
//! I/O breakpoints are found here: the access is made, and a debug exception follows it.
//!
//! Source: `guest_io_read`, `guest_io_write`, `guest_io_okay` in `xen/arch/x86/pv/emul-priv-op.c`.

use paravane_abi::units::GuestVirt;
use paravane_engine::{Control4, Gpr, PageFault, Port, StringIo, Width, rflags};
use paravane_memory::paging::{Access, FaultCode};

use super::{Emulated, iopl_allows};
use crate::{domain::Call, guest::AddressSpace, hypercalls::segments::DR7};

const PCI_ADDRESS: Port = 0xcf8;
/// The index of a register of the CMOS.
const CMOS_INDEX: Port = 0x70;
/// Elements of a string instruction that are done before the guest gets its events.
const MAX_ELEMENTS: u64 = 512;

pub(super) fn input(call: &mut Call<'_>, port: Port, width: Width) -> Emulated {
    if let Some(refused) = permission(call, port, width) {
        return refused;
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
    done(call, port, width)
}

pub(super) fn output(call: &mut Call<'_>, port: Port, width: Width, value: u32) -> Emulated {
    if let Some(refused) = permission(call, port, width) {
        return refused;
    }
    write(call, port, width, value);
    done(call, port, width)
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
    if let Some(refused) = permission(call, string.port, string.width) {
        return refused;
    }
    let hit = if string.count == 0 { 0 } else { breakpoints(call, string.port, string.width) };
    let bytes = byte_count(string.width);
    let step =
        if call.context.rflags & rflags::DF == 0 { bytes as u64 } else { (bytes as u64).wrapping_neg() };
    let mut at = string.address;
    let turn = if hit == 0 { MAX_ELEMENTS } else { 1 };
    for _ in 0..string.count.min(turn) {
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
    match (hit, string.count > turn) {
        (0, false) => Emulated::Done,
        (0, true) => Emulated::Again,
        (breakpoints, more) => Emulated::Trapped { breakpoints, finished: !more },
    }
}

/// The end of an access, with the debug exception of the breakpoints that it hit.
fn done(call: &Call<'_>, port: Port, width: Width) -> Emulated {
    match breakpoints(call, port, width) {
        0 => Emulated::Done,
        breakpoints => Emulated::Trapped { breakpoints, finished: true },
    }
}

/// The I/O breakpoints that an access hits, a bit each as in DR6.
fn breakpoints(call: &Call<'_>, port: Port, width: Width) -> u64 {
    let enabled = call.vcpu().io_breakpoints;
    if enabled == 0 || !call.context.cr4.has(Control4::DE) {
        return 0;
    }
    let first = u64::from(port);
    let end = first + u64::from(width_bytes(width));
    (0..4).filter(|breakpoint| enabled >> (2 * breakpoint) & 3 != 0).fold(0, |hit, breakpoint| {
        // Lengths are 1, 2, 8 and 4 bytes in this order.
        let length = [1, 2, 8, 4][(call.context.debug[DR7] >> (18 + 4 * breakpoint) & 3) as usize];
        let start = call.context.debug[breakpoint] & !(length - 1);
        hit | u64::from(start < end && first < start + length) << breakpoint
    })
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

/// How an access ends that neither the virtual IOPL nor, for user mode and kernel alike, the I/O bitmap permits.
///
/// As on a CPU, two bytes of the bitmap are read for any access. If they cannot be, that is the guest's page fault.
fn permission(call: &Call<'_>, port: Port, width: Width) -> Option<Emulated> {
    if iopl_allows(call) {
        return None;
    }
    let ports = width_bytes(width);
    let Some(bitmap) = call.vcpu().io_bitmap.filter(|bitmap| u32::from(port) + ports <= bitmap.ports) else {
        return Some(Emulated::Refused);
    };
    // The bitmap is read through the kernel's page tables, whichever mode asks.
    let space = AddressSpace { memory: &call.domain.memory, root: call.context.kernel_root };
    match space.read_value::<u16>(bitmap.at.wrapping_add(u64::from(port / 8))) {
        Ok(bits) if u32::from(bits) >> (port % 8) & ((1 << ports) - 1) == 0 => None,
        Ok(_) => Some(Emulated::Refused),
        Err(unreachable) => {
            Some(Emulated::Fault(PageFault { address: unreachable.at.0, code: fault_code(Access::Read) }))
        }
    }
}

fn read(call: &Call<'_>, port: Port, width: Width) -> u32 {
    match width {
        Width::Dword if port == PCI_ADDRESS => call.domain.pci_address,
        Width::Byte | Width::Word | Width::Dword => {
            let byte = |port| if port == u32::from(CMOS_INDEX) { call.domain.cmos_index } else { 0xff };
            let bytes = (0..width_bytes(width))
                .map(|offset| u32::from(byte(u32::from(port) + offset)) << (8 * offset));
            bytes.fold(0, |value, byte| value | byte)
        }
    }
}

fn write(call: &mut Call<'_>, port: Port, width: Width, value: u32) {
    if port == PCI_ADDRESS && width == Width::Dword {
        call.domain.pci_address = value;
    }
    let bytes = value.to_le_bytes();
    let index =
        CMOS_INDEX.checked_sub(port).and_then(|offset| bytes[..byte_count(width)].get(usize::from(offset)));
    if let Some(index) = index {
        // The upper bit masks NMIs on real machines and is not part of the index.
        call.domain.cmos_index = index & 0x7f;
    }
}
