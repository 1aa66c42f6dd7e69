//! Status flags between RFLAGS and the form that translated code keeps.
//!
//! LAHF and SETO are the cheapest way to save the six status flags without a stack; they put SF, ZF, AF, PF and CF
//! into AH in their RFLAGS positions and OF into AL.

use paravane_engine::rflags;

/// The flags that AH holds.
const IN_AH: u64 = rflags::SF | rflags::ZF | rflags::AF | rflags::PF | rflags::CF;

/// RFLAGS to AX as LAHF and SETO AL leave it.
pub(crate) fn pack(flags: u64) -> u32 {
    let high = crate::bits::low32(((flags & IN_AH) | rflags::FIXED) << 8);
    high | u32::from(flags & rflags::OF != 0)
}

/// Status flags out of AX.
pub(crate) fn unpack(status: u32) -> u64 {
    let overflow = if status & 1 == 0 { 0 } else { rflags::OF };
    (u64::from(status >> 8) & IN_AH) | overflow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_status_flags_survives() {
        let bits = [rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF, rflags::OF];
        for choice in 0..64_u32 {
            let flags =
                bits.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 != 0).map(|(_, f)| f).sum();
            assert_eq!(unpack(pack(flags)), flags);
        }
    }
}
