//! Operations of `physdev_op`. `physdev_op_compat` takes the same numbers inside a structure.

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// An operation of `physdev_op`. Most serve a domain that drives real devices.
    pub enum PhysdevOp(u32), "xen/include/public/physdev.h": SubOpFacts;
    4 IrqUnmaskNotify "IRQ_UNMASK_NOTIFY" "Ends all interrupts of the domain, the oldest form of eoi." {
        arg: "", domu: DomU::Available
    }
    5 IrqStatusQuery "irq_status_query" "Tells whether an interrupt needs an eoi and is shared." {
        arg: "physdev_irq_status_query", domu: DomU::Available
    }
    6 SetIopl "set_iopl" "Sets the vCPU's virtual I/O privilege level, 0 to 3." {
        arg: "physdev_set_iopl", domu: DomU::Available
    }
    7 SetIobitmap "set_iobitmap" "Sets the vCPU's I/O permission bitmap of up to 65536 ports." {
        arg: "physdev_set_iobitmap", domu: DomU::Available
    }
    8 ApicRead "apic_read" "Reads a register of an I/O APIC." {
        arg: "physdev_apic", domu: DomU::Refused(Errno::Eperm)
    }
    9 ApicWrite "apic_write" "Writes a register of an I/O APIC." {
        arg: "physdev_apic", domu: DomU::Refused(Errno::Eperm)
    }
    10 AllocIrqVector "alloc_irq_vector" "Once allocated a vector; now repeats the interrupt's number." {
        arg: "physdev_irq", domu: DomU::Refused(Errno::Eperm)
    }
    11 FreeIrqVector "free_irq_vector" "Once freed a vector." {
        arg: "physdev_irq", domu: DomU::Removed(Errno::Enosys)
    }
    12 Eoi "eoi" "Ends a physical interrupt; EINVAL if the domain has no such one." {
        arg: "physdev_eoi", domu: DomU::Available
    }
    13 MapPirq "map_pirq" "Maps a device's interrupt to a number of the domain." {
        arg: "physdev_map_pirq", domu: DomU::Refused(Errno::Eperm)
    }
    14 UnmapPirq "unmap_pirq" "Undoes map_pirq." {
        arg: "physdev_unmap_pirq", domu: DomU::Refused(Errno::Eperm)
    }
    15 ManagePciAdd "manage_pci_add" "Reports a PCI device, oldest form." {
        arg: "physdev_manage_pci", domu: DomU::Refused(Errno::Eperm)
    }
    16 ManagePciRemove "manage_pci_remove" "Reports the removal of a PCI device, oldest form." {
        arg: "physdev_manage_pci", domu: DomU::Refused(Errno::Eperm)
    }
    17 PirqEoiGmfnV1 "pirq_eoi_gmfn_v1"
    "Names a page in which Xen marks the interrupts that need an eoi, which then also unmasks." {
        arg: "physdev_pirq_eoi_gmfn", domu: DomU::Available
    }
    19 RestoreMsi "restore_msi" "Restores the MSI state of a device after resume." {
        arg: "physdev_restore_msi", domu: DomU::Refused(Errno::Enodev)
    }
    20 ManagePciAddExt "manage_pci_add_ext" "Reports a PCI device with extended functions." {
        arg: "physdev_manage_pci_ext", domu: DomU::Refused(Errno::Eperm)
    }
    21 SetupGsi "setup_gsi" "Sets trigger and polarity of a global interrupt." {
        arg: "physdev_setup_gsi", domu: DomU::Refused(Errno::Eperm)
    }
    23 GetFreePirq "get_free_pirq" "Reserves a free interrupt number of the domain." {
        arg: "physdev_get_free_pirq", domu: DomU::Available
    }
    24 PciMmcfgReserved "pci_mmcfg_reserved" "Confirms a PCI configuration window." {
        arg: "physdev_pci_mmcfg_reserved", domu: DomU::Refused(Errno::Eperm)
    }
    25 PciDeviceAdd "pci_device_add" "Reports a PCI device." {
        arg: "physdev_pci_device_add", domu: DomU::Refused(Errno::Eperm)
    }
    26 PciDeviceRemove "pci_device_remove" "Reports the removal of a PCI device." {
        arg: "physdev_pci_device", domu: DomU::Refused(Errno::Eperm)
    }
    27 RestoreMsiExt "restore_msi_ext" "As restore_msi, with a PCI segment." {
        arg: "physdev_pci_device", domu: DomU::Refused(Errno::Enodev)
    }
    28 PirqEoiGmfnV2 "pirq_eoi_gmfn_v2"
    "Names a page in which Xen marks the interrupts that need an eoi; EBUSY the second time." {
        arg: "physdev_pirq_eoi_gmfn", domu: DomU::Available
    }
    29 DbgpOp "dbgp_op" "Tells of the reset of a USB debug port." {
        arg: "physdev_dbgp_op", domu: DomU::Refused(Errno::Eperm)
    }
    30 PrepareMsix "prepare_msix" "Prepares a device's MSI-X table for the control domain." {
        arg: "physdev_pci_device", domu: DomU::Refused(Errno::Eperm)
    }
    31 ReleaseMsix "release_msix" "Undoes prepare_msix." {
        arg: "physdev_pci_device", domu: DomU::Refused(Errno::Eperm)
    }
    32 PciDeviceReset "pci_device_reset" "Tells that a PCI device was reset." {
        arg: "pci_device_reset", domu: DomU::Refused(Errno::Eperm)
    }
}

/// `IrqStatusQuery::flags`: the interrupt needs an eoi (`XENIRQSTAT_needs_eoi`).
pub const IRQ_NEEDS_EOI: u32 = 1;

/// The most ports that `PHYSDEVOP_set_iobitmap` takes.
pub const IO_PORTS: u32 = 65536;

abi_struct! {
    /// What `physdev_op_compat` takes: an operation of the new form, up to `free_irq_vector`, and its structure.
    pub struct CompatOp = "physdev_op", "xen/include/public/physdev.h", 24 / 16;
    [0 / 0] cmd: u32 = Ty::U32, "The operation.";
    pad _pad0: [u8; 4];
    [8 / 4] body: [u64; 2] = Ty::Array(&Ty::Word, 2, 3), "The operation's structure (a union in C).";
}

abi_struct! {
    /// The vCPU's virtual I/O privilege level.
    pub struct SetIopl = "physdev_set_iopl", "xen/include/public/physdev.h", 4 / 4;
    [0 / 0] iopl: u32 = Ty::U32, "0 to 3.";
}

abi_struct! {
    /// The vCPU's I/O permission bitmap.
    pub struct SetIobitmap = "physdev_set_iobitmap", "xen/include/public/physdev.h", 16 / 8;
    [0 / 0] bitmap: u64 = Ty::Pointer, "One bit per port; a clear bit permits.";
    [8 / 4] nr_ports: u32 = Ty::U32, "How many ports it covers.";
    pad _pad0: [u8; 4];
}

abi_struct! {
    /// An interrupt to end.
    pub struct Eoi = "physdev_eoi", "xen/include/public/physdev.h", 4 / 4;
    [0 / 0] irq: u32 = Ty::U32, "The interrupt's number in the domain.";
}

abi_struct! {
    /// The page in which Xen marks the interrupts that need an eoi.
    pub struct PirqEoiGmfn = "physdev_pirq_eoi_gmfn", "xen/include/public/physdev.h", 8 / 4;
    [0 / 0] gmfn: u64 = Ty::Pfn, "Its machine frame.";
}

abi_struct! {
    /// What an interrupt needs.
    pub struct IrqStatusQuery = "physdev_irq_status_query", "xen/include/public/physdev.h", 8 / 8;
    [0 / 0] irq: u32 = Ty::U32, "The interrupt's number in the domain.";
    [4 / 4] flags: u32 = Ty::U32, "Answer: bit 0 needs an eoi, bit 1 shared.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_read_back_around_the_holes() {
        assert_well_formed::<PhysdevOp>();
        for hole in [0, 1, 2, 3, 18, 22, 33] {
            assert_eq!(PhysdevOp::from_number(hole), None);
        }
    }
}
