//! Which vCPUs a flush is for.
//!
//! Source: `vcpumask_to_pcpumask` in `xen/arch/x86/mm.c`.

use paravane_abi::units::{GuestVirt, VcpuId};

use crate::{
    domain::Call,
    guest::{Unreachable, is_guest_address},
};

/// The vCPUs in a bitmap of the guest's, one bit each. Bits beyond the last vCPU are ignored.
///
/// # Errors
///
/// [`Unreachable`] if a word of the bitmap cannot be read.
pub(crate) fn vcpus_in_bitmap(call: &Call<'_>, bitmap: GuestVirt) -> Result<Vec<VcpuId>, Unreachable> {
    if !is_guest_address(bitmap) {
        return Err(Unreachable { at: bitmap });
    }
    let mut named = Vec::new();
    for (word_index, vcpus) in call.domain.vcpus.chunks(64).enumerate() {
        let word: u64 = call.space().read_element(bitmap, word_index as u64)?;
        named.extend(
            vcpus.iter().enumerate().filter(|(bit, _)| word >> bit & 1 != 0).map(|(_, vcpu)| vcpu.id),
        );
    }
    Ok(named)
}
