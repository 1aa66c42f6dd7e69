//! The registers of a hypercall: where number, arguments and result travel.
//!
//! The caller may rely on no argument register afterwards: a long call is continued by Xen, which rewrites the
//! arguments to what is left to do and lets the guest execute the instruction again, and a debug build of Xen
//! overwrites them on purpose.
//!
//! Source: `xen/include/public/arch-x86/xen-x86_64.h` and `xen-x86_32.h`, "Hypercall interface".

use serde::Serialize;

use crate::layout::PerAbi;

/// The registers of one ABI's hypercalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Convention {
    /// The instruction that enters the hypervisor, and where it must be executed.
    pub instruction: &'static str,
    /// The register with the hypercall's number.
    pub number: &'static str,
    /// The registers with the arguments, in order.
    pub arguments: [&'static str; 5],
    /// The register with the result: a value, or an error number negated.
    pub result: &'static str,
    /// What the caller loses.
    pub lost: &'static str,
}

/// The registers of both ABIs.
pub const CONVENTION: PerAbi<Convention> = PerAbi {
    bits64: Convention {
        instruction: "SYSCALL in kernel mode",
        number: "rax",
        arguments: ["rdi", "rsi", "rdx", "r10", "r8"],
        result: "rax",
        lost: "rcx and r11 (SYSCALL), argument registers",
    },
    bits32: Convention {
        instruction: "INT 0x82 in ring 1",
        number: "eax",
        arguments: ["ebx", "ecx", "edx", "esi", "edi"],
        result: "eax",
        lost: "argument registers",
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall::Hypercall;
    use crate::layout::Abi;

    #[test]
    fn every_hypercall_fits_the_registers_and_none_is_used_twice() {
        for abi in Abi::ALL {
            let convention = CONVENTION.get(abi);
            let mut registers = convention.arguments.to_vec();
            registers.push(convention.number);
            registers.sort_unstable();
            registers.dedup();
            assert_eq!(registers.len(), convention.arguments.len() + 1);
            for &call in Hypercall::ALL {
                assert!(call.args64().len().max(call.args32().len()) <= convention.arguments.len(), "{call}");
            }
        }
    }
}
