//! The console ring: the page in which a domain and its console backend exchange bytes.
//!
//! Two byte rings in one page. Indexes run freely; a byte's place is the index modulo the ring's size. The
//! guest writes `out` and moves `out_prod`; the backend consumes and moves `out_cons`, and the other way
//! round for `in`. Whoever moves an index raises the event channel. A peer that lets `prod - cons` exceed
//! the ring's size has broken the protocol.
//!
//! Source: `xen/include/public/io/console.h`.

use crate::layout::{Ty, abi_struct};

/// `ConsoleRing::connection`: somebody serves the console.
pub const CONNECTED: u8 = 0;

/// `ConsoleRing::connection`: nobody serves the console yet; the value that builders write.
pub const DISCONNECTED: u8 = 1;

abi_struct! {
    /// The console page, of which the rest is unused.
    pub struct ConsoleRing = "xencons_interface", "xen/include/public/io/console.h", 3092 / 3092;
    [0 / 0] input: [u8; 1024] = Ty::Array(&Ty::Char, 1024, 1024), "Bytes to the guest (C name: in).";
    [1024 / 1024] output: [u8; 2048] = Ty::Array(&Ty::Char, 2048, 2048), "Bytes from the guest (C name: out).";
    [3072 / 3072] in_cons: u32 = Ty::U32, "What the guest has read of input.";
    [3076 / 3076] in_prod: u32 = Ty::U32, "What the backend has written to input.";
    [3080 / 3080] out_cons: u32 = Ty::U32, "What the backend has read of output.";
    [3084 / 3084] out_prod: u32 = Ty::U32, "What the guest has written to output.";
    [3088 / 3088] connection: u8 = Ty::U8, "0 when the backend serves the ring, 1 before.";
    pad _pad0: [u8; 3];
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_zeroed_page_reads_as_connected() {
        assert_eq!(ConsoleRing::new_zeroed().connection, CONNECTED);
    }

    #[test]
    fn rings_are_powers_of_two_so_that_free_running_indexes_wrap() {
        let ring = ConsoleRing::new_zeroed();
        assert!(ring.input.len().is_power_of_two() && ring.output.len().is_power_of_two());
    }
}
