//! Families of sub-operations: one per hypercall argument that is itself a number with a table.
//!
//! [`Family`] lets code that only knows "the first argument is a command of this family" (a trace, the
//! coverage page) reach the table without knowing the enum.

use serde::Serialize;

use super::domu::DomU;
use crate::table::{Numbered, Row};
use crate::{event_channel, grant_table, memory, mmu, physdev, sched, vcpu, version, vm};

/// The columns that every table of sub-operations has beyond number, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SubOpFacts {
    /// The C name of the argument structure; empty if there is none.
    pub arg: &'static str,
    /// What an unprivileged domain gets.
    pub domu: DomU,
}

/// A row of a family's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SubOp {
    /// Number, name and meaning.
    #[serde(flatten)]
    pub row: Row,
    /// The argument structure and who may call.
    #[serde(flatten)]
    pub facts: SubOpFacts,
}

/// Declares [`Family`] and its way to each table.
macro_rules! families {
    ($($Family:ident $name:literal $prefix:literal $doc:literal $Table:ty;)*) => {
        /// A family of sub-operations.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Family {
            $(#[doc = $doc] $Family,)*
        }

        impl Family {
            /// Every family, in the order of the hypercalls that take them.
            pub const ALL: &'static [Self] = &[$(Self::$Family),*];

            /// The family's name: the hypercall's, or what the argument selects.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Family => $name,)*
                }
            }

            /// What the members' names begin with in Xen's headers, such as `VCPUOP_`.
            pub const fn prefix(self) -> &'static str {
                match self {
                    $(Self::$Family => $prefix,)*
                }
            }

            /// The header that defines the family, by its path in Xen's source tree.
            pub const fn source(self) -> &'static str {
                match self {
                    $(Self::$Family => <$Table as Numbered>::SOURCE,)*
                }
            }

            /// Every row of the family's table.
            pub fn rows(self) -> impl Iterator<Item = SubOp> {
                let rows: Vec<SubOp> = match self {
                    $(Self::$Family => <$Table>::ALL.iter().map(|&op| {
                        SubOp { row: op.row(), facts: *op.facts() }
                    }).collect(),)*
                };
                rows.into_iter()
            }

            /// The row of that number; `None` if Xen defines none.
            pub fn find(self, number: i64) -> Option<SubOp> {
                match self {
                    $(Self::$Family => <$Table>::from_i64(number).map(|op| {
                        SubOp { row: op.row(), facts: *op.facts() }
                    }),)*
                }
            }
        }
    };
}

families! {
    MmuUpdate "mmu_update" "MMU_" "The low bits of an `mmu_update` pointer." mmu::MmuUpdateCommand;
    MmuExt "mmuext_op" "MMUEXT_" "Operations of `mmuext_op`." mmu::MmuExtOp;
    SchedCompat "sched_op_compat" "SCHEDOP_" "Operations of the old `sched_op`." sched::SchedOpCompat;
    Memory "memory_op" "XENMEM_" "Operations of `memory_op`." memory::MemoryOp;
    Version "xen_version" "XENVER_" "Questions of `xen_version`." version::XenVersionOp;
    ConsoleIo "console_io" "CONSOLEIO_" "Operations of `console_io`." vm::ConsoleIoOp;
    GrantTable "grant_table_op" "GNTTABOP_" "Operations of `grant_table_op`." grant_table::GrantTableOp;
    VmAssist "vm_assist" "VMASST_CMD_" "Commands of `vm_assist`." vm::VmAssistCommand;
    VmAssistType "vm_assist type" "VMASST_TYPE_" "What `vm_assist` turns on or off." vm::VmAssistType;
    Vcpu "vcpu_op" "VCPUOP_" "Operations of `vcpu_op`." vcpu::VcpuOp;
    SegmentBase "set_segment_base" "SEGBASE_" "Bases of `set_segment_base`." vm::SegmentBase;
    Nmi "nmi_op" "XENNMI_" "Operations of `nmi_op`." vm::NmiOp;
    Sched "sched_op" "SCHEDOP_" "Operations of `sched_op`." sched::SchedOp;
    Callback "callback_op" "CALLBACKOP_" "Operations of `callback_op`." vm::CallbackOp;
    CallbackType "callback type" "CALLBACKTYPE_" "The entry points of `callback_op`." vm::CallbackType;
    EventChannel "event_channel_op" "EVTCHNOP_" "Operations of `event_channel_op`."
        event_channel::EventChannelOp;
    Physdev "physdev_op" "PHYSDEVOP_" "Operations of `physdev_op`." physdev::PhysdevOp;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_number_and_ends_its_sentence() {
        for &family in Family::ALL {
            let rows: Vec<SubOp> = family.rows().collect();
            assert!(!rows.is_empty(), "{family:?}");
            for pair in rows.windows(2) {
                assert!(pair[0].row.number < pair[1].row.number, "{family:?} {pair:?}");
            }
            for row in rows {
                assert_eq!(family.find(row.row.number), Some(row), "{family:?}");
                assert!(row.row.meaning.ends_with('.'), "{family:?} {row:?}");
                assert!(row.facts.domu.is_guest_visible(), "{family:?} {row:?}");
            }
            assert_eq!(family.find(-1), None);
        }
    }

    #[test]
    fn names_are_unique_within_a_family_and_families_among_themselves() {
        for &family in Family::ALL {
            let mut names: Vec<&str> = family.rows().map(|op| op.row.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{family:?}");
        }
        let mut families: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), Family::ALL.len());
    }
}
