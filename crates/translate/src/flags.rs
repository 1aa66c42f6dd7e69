//! Status flags between RFLAGS and the form that translated code keeps.
//!
//! LAHF and SETO are the cheapest way to save the six status flags without a stack; they put SF, ZF, AF, PF and CF
//! into AH in their RFLAGS positions and OF into AL. LAHF always clears bit 3 of AH; a word in which it is set holds no
//! flags but the number of a recipe that makes them (see `recall`).

use paravane_engine::rflags;

use crate::bits::low8;

/// The flags that AH holds.
const IN_AH: u64 = rflags::SF | rflags::ZF | rflags::AF | rflags::PF | rflags::CF;

/// Says that the upper half is a recipe's number.
const OWED: u32 = 1 << 11;

/// The word that says that a recipe makes the flags.
pub(crate) fn owed(recipe: u16) -> u32 {
    u32::from(recipe) << 16 | OWED
}

/// The recipe that makes the flags, if they are not in the word itself.
pub(crate) fn recipe(status: u32) -> Option<usize> {
    (status & OWED != 0).then_some((status >> 16) as usize)
}

/// Status flags of `left - right`, numbers of `size` bytes.
pub(crate) fn of_difference(left: u64, right: u64, size: usize) -> u64 {
    let result = cut(left.wrapping_sub(right), size);
    let borrow = if left < right { rflags::CF } else { 0 };
    borrow
        | of_carries(left ^ right ^ result, (left ^ right) & (left ^ result), size)
        | of_result(result, size)
}

/// Status flags of `left + right`, numbers of `size` bytes.
pub(crate) fn of_sum(left: u64, right: u64, size: usize) -> u64 {
    let result = cut(left.wrapping_add(right), size);
    let carry = if result < left { rflags::CF } else { 0 };
    carry
        | of_carries(left ^ right ^ result, (left ^ result) & (right ^ result), size)
        | of_result(result, size)
}

/// AF and OF, given what flowed into each bit and whether the sign is wrong.
fn of_carries(carries: u64, wrong: u64, size: usize) -> u64 {
    let auxiliary = if carries & 0x10 == 0 { 0 } else { rflags::AF };
    let overflow = if wrong & sign(size) == 0 { 0 } else { rflags::OF };
    auxiliary | overflow
}

/// Status flags of a logical operation: those that its result alone determines.
pub(crate) fn of_result(result: u64, size: usize) -> u64 {
    let parity = if low8(result).count_ones().is_multiple_of(2) { rflags::PF } else { 0 };
    let zero = if result == 0 { rflags::ZF } else { 0 };
    let negative = if result & sign(size) == 0 { 0 } else { rflags::SF };
    parity | zero | negative
}

fn sign(size: usize) -> u64 {
    1 << (8 * size - 1)
}

/// The low `size` bytes of a number.
pub(crate) fn cut(value: u64, size: usize) -> u64 {
    value & (u64::MAX >> (64 - 8 * size))
}

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
