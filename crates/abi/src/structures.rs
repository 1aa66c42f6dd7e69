//! Every structure of the interface that this crate has a layout of.

use crate::layout::Layout;
use crate::{
    console, event_channel, grant_table, memory, mmu, physdev, sched, shared_info, start_info, vcpu,
    vcpu_context, version, vm, xenstore,
};

/// The layouts, header by header.
pub const ALL: &[&Layout] = &[
    start_info::StartInfo::LAYOUT,
    shared_info::SharedInfo::LAYOUT,
    shared_info::ArchSharedInfo::LAYOUT,
    shared_info::VcpuInfo::LAYOUT,
    shared_info::ArchVcpuInfo::LAYOUT,
    shared_info::VcpuTimeInfo::LAYOUT,
    vcpu_context::VcpuGuestContext::LAYOUT,
    vcpu_context::UserRegs::LAYOUT,
    vcpu_context::TrapInfo::LAYOUT,
    vcpu_context::IretContext::LAYOUT,
    mmu::MmuUpdate::LAYOUT,
    mmu::MmuExtRequest::LAYOUT,
    mmu::MulticallEntry::LAYOUT,
    memory::MemoryReservation::LAYOUT,
    memory::MemoryExchange::LAYOUT,
    memory::MachphysMapping::LAYOUT,
    memory::MachphysMfnList::LAYOUT,
    memory::MemoryMap::LAYOUT,
    memory::ForeignMemoryMap::LAYOUT,
    memory::ReservedDeviceMemoryMap::LAYOUT,
    vcpu::RunstateInfo::LAYOUT,
    vcpu::RegisterRunstateMemoryArea::LAYOUT,
    vcpu::RegisterTimeMemoryArea::LAYOUT,
    vcpu::SetPeriodicTimer::LAYOUT,
    vcpu::SetSingleshotTimer::LAYOUT,
    vcpu::RegisterVcpuInfo::LAYOUT,
    vcpu::GetPhysid::LAYOUT,
    sched::SchedShutdown::LAYOUT,
    sched::SchedPoll::LAYOUT,
    sched::SchedRemoteShutdown::LAYOUT,
    sched::SchedWatchdog::LAYOUT,
    sched::SchedPinOverride::LAYOUT,
    event_channel::AllocUnbound::LAYOUT,
    event_channel::BindInterdomain::LAYOUT,
    event_channel::BindVirq::LAYOUT,
    event_channel::BindPirq::LAYOUT,
    event_channel::BindIpi::LAYOUT,
    event_channel::ClosePort::LAYOUT,
    event_channel::SendEvent::LAYOUT,
    event_channel::QueryStatus::LAYOUT,
    event_channel::BindVcpu::LAYOUT,
    event_channel::UnmaskPort::LAYOUT,
    event_channel::ResetPorts::LAYOUT,
    event_channel::InitControl::LAYOUT,
    event_channel::ExpandArray::LAYOUT,
    event_channel::SetPriority::LAYOUT,
    event_channel::FifoControlBlock::LAYOUT,
    event_channel::CompatOp::LAYOUT,
    grant_table::GrantEntryV1::LAYOUT,
    grant_table::GrantEntryV2Full::LAYOUT,
    grant_table::GrantEntryV2Sub::LAYOUT,
    grant_table::GrantEntryV2Transitive::LAYOUT,
    grant_table::MapGrantRef::LAYOUT,
    grant_table::UnmapGrantRef::LAYOUT,
    grant_table::SetupTable::LAYOUT,
    grant_table::TransferPage::LAYOUT,
    grant_table::CopySide::LAYOUT,
    grant_table::CopyBytes::LAYOUT,
    grant_table::QuerySize::LAYOUT,
    grant_table::UnmapAndReplace::LAYOUT,
    grant_table::SetVersion::LAYOUT,
    grant_table::GetStatusFrames::LAYOUT,
    grant_table::GetVersion::LAYOUT,
    grant_table::SwapGrantRef::LAYOUT,
    grant_table::CacheFlush::LAYOUT,
    physdev::SetIopl::LAYOUT,
    physdev::SetIobitmap::LAYOUT,
    physdev::Eoi::LAYOUT,
    physdev::PirqEoiGmfn::LAYOUT,
    physdev::IrqStatusQuery::LAYOUT,
    physdev::CompatOp::LAYOUT,
    version::CompileInfo::LAYOUT,
    version::PlatformParameters::LAYOUT,
    version::FeatureInfo::LAYOUT,
    vm::CallbackRegister::LAYOUT,
    vm::CallbackUnregister::LAYOUT,
    vm::NmiCallback::LAYOUT,
    console::ConsoleRing::LAYOUT,
    xenstore::StoreRing::LAYOUT,
    xenstore::Message::LAYOUT,
];

/// The layout of that C name, with or without `struct`.
pub fn find(name: &str) -> Option<&'static Layout> {
    let name = name.strip_prefix("struct ").unwrap_or(name);
    ALL.iter().copied().find(|layout| layout.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall::{ArgKind, DomU, Family, Hypercall};
    use crate::layout::{Abi, Ty};

    #[test]
    fn structures_have_different_names_and_say_what_they_are_for() {
        for (index, layout) in ALL.iter().enumerate() {
            assert_eq!(find(layout.name), Some(*layout));
            assert!(ALL[index + 1..].iter().all(|other| other.name != layout.name), "{}", layout.name);
            assert!(layout.meaning.ends_with('.'), "{}", layout.name);
            assert!(layout.source.starts_with("xen/include/public/"), "{}", layout.name);
        }
        assert_eq!(find("struct start_info"), Some(start_info::StartInfo::LAYOUT));
        assert_eq!(find("start_info_t"), None);
    }

    #[test]
    fn fields_have_different_names_and_sentences_in_each_abi() {
        for layout in ALL {
            for abi in Abi::ALL {
                let fields: Vec<_> = layout.fields_of(abi).collect();
                assert!(!fields.is_empty(), "{}", layout.name);
                for (index, field) in fields.iter().enumerate() {
                    assert!(fields[index + 1..].iter().all(|other| other.name != field.name));
                    assert!(field.meaning.ends_with('.'), "{} {}", layout.name, field.name);
                    assert_eq!(layout.field(field.name, abi), Some(*field));
                }
            }
        }
    }

    #[test]
    fn an_inner_structure_is_in_the_list_too() {
        fn inner(ty: &Ty) -> Option<&'static Layout> {
            if let Ty::Array(element, ..) = ty {
                return inner(element);
            }
            if let Ty::Struct(layout) = ty { Some(layout) } else { None }
        }
        let mut found = 0;
        for layout in ALL.iter().flat_map(|layout| layout.fields).filter_map(|field| inner(&field.ty)) {
            assert_eq!(find(layout.name), Some(layout));
            found += 1;
        }
        assert!(found >= 8, "{found}");
    }

    #[test]
    fn what_an_unprivileged_domain_can_call_takes_a_structure_of_the_list() {
        // Arguments that are no structure: plain numbers and buffers, and members of the mmuext_op union.
        let plain = [
            "",
            "char[]",
            "domid_t",
            "reason",
            "xen_extraversion_t",
            "xen_capabilities_info_t",
            "xen_changeset_info_t",
            "xen_domain_handle_t",
            "xen_commandline_t",
            "xen_varbuf",
        ];
        for &family in Family::ALL {
            for op in family.rows().filter(|op| op.facts.domu == DomU::Available) {
                let arg = op.facts.arg;
                let known = plain.contains(&arg)
                    || find(arg).is_some()
                    || family == Family::MmuExt
                    || (family, op.row.name) == (Family::Physdev, "get_free_pirq");
                assert!(known, "{family:?} {} takes {arg}", op.row.name);
            }
        }
    }

    #[test]
    fn every_pointer_of_an_available_hypercall_has_its_structure_in_the_list() {
        let plain = ["*", "char", "unsigned int", "xen_pfn_t"];
        for &hypercall in Hypercall::ALL {
            if hypercall.facts().domu != DomU::Available {
                continue;
            }
            for arg in hypercall.args64() {
                if let ArgKind::Pointer(pointer) = arg.kind {
                    let known = plain.contains(&pointer.element) || find(pointer.element).is_some();
                    assert!(known, "{hypercall} takes {}", pointer.element);
                }
            }
        }
    }

    #[test]
    fn sizes_that_differ_between_the_abis_are_these() {
        let sizes = |name: &str| find(name).map(|layout| (layout.size.bits64, layout.size.bits32));
        for (name, size) in [
            ("start_info", (1168, 1112)),
            ("shared_info", (3136, 2344)),
            ("vcpu_guest_context", (5168, 2800)),
            ("cpu_user_regs", (200, 68)),
            ("trap_info", (16, 8)),
            ("mmu_update", (16, 16)),
            ("mmuext_op", (24, 12)),
            ("multicall_entry", (64, 32)),
            ("vcpu_runstate_info", (48, 44)),
            ("vcpu_set_singleshot_timer", (16, 12)),
            ("vcpu_register_vcpu_info", (16, 16)),
            ("xen_memory_reservation", (32, 20)),
            ("xen_memory_exchange", (72, 44)),
            ("xen_machphys_mapping", (24, 12)),
            ("xen_memory_map", (16, 8)),
            ("callback_register", (16, 12)),
            ("sched_poll", (24, 16)),
            ("gnttab_setup_table", (24, 16)),
            ("gnttab_copy", (40, 24)),
            ("physdev_set_iobitmap", (16, 8)),
        ] {
            assert_eq!(sizes(name), Some(size), "{name}");
        }
    }
}
