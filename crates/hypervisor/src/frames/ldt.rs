//! The pages of the LDT, which come in when they are first used.
//!
//! `MMUEXT_SET_LDT` only names an address. When a selector needs a descriptor, the frame that the guest kernel has
//! mapped there becomes a descriptor page. A new page-table root drops them all, because the mapping may be another.
//!
//! Source: `pv_map_ldt_shadow_page` in `xen/arch/x86/pv/mm.c`, `handle_ldt_mapping_fault` in
//! `xen/arch/x86/traps.c`.

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, PAGE_SIZE},
};
use paravane_engine::PageFault;
use paravane_memory::paging::FaultCode;

use super::walk::find_leaf;
use crate::{
    crash::CrashCause,
    domain::{Call, Verdict},
    exits,
};

/// Descriptors in a page.
const ENTRIES_PER_PAGE: u16 = 512;

/// Answers an engine that needs a page of the LDT: it runs again with the page, or the guest gets the page fault that
/// reading a descriptor from it would have raised, or #GP where the table reaches beyond the addresses that exist.
///
/// # Errors
///
/// The crash of a guest that cannot take the page fault.
pub(crate) fn ldt_page(call: &mut Call<'_>, index: u8) -> Result<Verdict, CrashCause> {
    if bring_in_ldt_page(call, index).is_ok() {
        return Ok(Verdict::Run);
    }
    let address = page_address(call, index);
    if !address.is_canonical() {
        // The CPU would not even look there: the fault names the first selector of the page.
        const LOCAL_TABLE: u32 = 1 << 2;
        let offset = u32::from(index) * u32::from(ENTRIES_PER_PAGE) * 8;
        return exits::general_protection(call, offset | LOCAL_TABLE);
    }
    exits::inject_page_fault(call, PageFault { address: address.0, code: FaultCode(0) })
}

/// Makes page `index` of the LDT usable.
///
/// # Errors
///
/// `EFAULT` if the guest has not mapped it, `EINVAL` if it cannot hold descriptors.
pub(crate) fn bring_in_ldt_page(call: &mut Call<'_>, index: u8) -> Result<(), Errno> {
    if u16::from(index) * ENTRIES_PER_PAGE >= call.context.descriptors.ldt_entries {
        return Err(Errno::Efault);
    }
    let address = page_address(call, index);
    let leaf = find_leaf(&call.domain.memory, call.context.kernel_root, address);
    let leaf = leaf.filter(|leaf| leaf.entry.is_present()).ok_or(Errno::Efault)?;
    let frame = leaf.entry.frame();
    let vcpu = call.vcpu;
    call.domain.frames().load_ldt_page(vcpu, index, frame)?;
    if let Some(slot) = call.context.descriptors.ldt.get_mut(usize::from(index)) {
        *slot = Some(frame);
    }
    Ok(())
}

fn page_address(call: &Call<'_>, index: u8) -> GuestVirt {
    call.context.descriptors.ldt_base.wrapping_add(u64::from(index) * PAGE_SIZE)
}
