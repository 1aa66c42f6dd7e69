//! Random use by a backend and by the guest, with what must hold after each step.

use proptest::prelude::*;

use paravane_abi::grant_table::{MapGrantRef, UnmapGrantRef};

use super::*;
use crate::{BackendGrant, GrantAccess, testing::OWN};

const REFERENCES: u32 = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { reference: u32, flags: u16, own: bool, page: u64 },
    Use { reference: u32, write: bool },
    Release(usize),
    Map { reference: u32, window: u64, flags: u32 },
    Unmap { handle: u32, window: u64 },
    Version(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let reference = || 8..8 + REFERENCES;
    prop_oneof![
        (reference(), 0_u16..8, any::<bool>(), 3_u64..20)
            .prop_map(|(reference, flags, own, page)| Step::Write { reference, flags, own, page }),
        (reference(), any::<bool>()).prop_map(|(reference, write)| Step::Use { reference, write }),
        (0_usize..8).prop_map(Step::Release),
        (reference(), 30_u64..34, 0_u32..8).prop_map(|(reference, window, flags)| Step::Map {
            reference,
            window,
            flags
        }),
        (0_u32..5, 30_u64..34).prop_map(|(handle, window)| Step::Unmap { handle, window }),
        (1_u32..3).prop_map(Step::Version),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn entries_say_that_they_are_in_use_exactly_while_they_are(steps in prop::collection::vec(step(), 1..60)) {
        let mut guest = Guest::new(1);
        let mut held: Vec<(u32, BackendGrant)> = Vec::new();
        for step in steps {
            match step {
                Step::Write { reference, flags, own, page } => {
                    // A guest that keeps to the rules leaves entries in use alone.
                    let reference = GrantRef(reference);
                    let domain = if own { OWN } else { CONTROL_DOMAIN };
                    if guest.in_use(reference) == 0 {
                        match guest.domain.grants.version {
                            crate::grants::Version::V1 => guest.put_v1(reference, flags, domain, frame(Pfn(page))),
                            crate::grants::Version::V2 => guest.put_v2(reference, flags, domain, frame(Pfn(page))),
                        }
                    }
                }
                Step::Use { reference, write } => {
                    let access = if write { GrantAccess::Write } else { GrantAccess::Read };
                    if let Ok(grant) = guest.domain.backend_grant(GrantRef(reference), access) {
                        held.push((reference, grant));
                    }
                }
                Step::Release(index) if !held.is_empty() => {
                    let (_, grant) = held.swap_remove(index % held.len());
                    guest.domain.release_grant(grant);
                }
                Step::Release(_) => {}
                Step::Map { reference, window, flags } => {
                    let mut request = MapGrantRef::new_zeroed();
                    (request.reference, request.dom, request.flags) = (reference, OWN.0, flags);
                    request.host_addr = virt(Pfn(window)).0;
                    guest.grant_op(GrantTableOp::MapGrantRef, &mut request).unwrap();
                }
                Step::Unmap { handle, window } => {
                    let mut request = UnmapGrantRef::new_zeroed();
                    (request.handle, request.host_addr) = (handle, virt(Pfn(window)).0);
                    request.dev_bus_addr = machine_address(Pfn(window)).0;
                    guest.grant_op(GrantTableOp::UnmapGrantRef, &mut request).unwrap();
                }
                Step::Version(version) => {
                    let _busy = guest.set_version(version);
                }
            }
            for reference in (8..8 + REFERENCES).map(GrantRef) {
                let reading = guest.in_use(reference) & gtf::READING != 0;
                prop_assert_eq!(reading, guest.domain.grants.is_pinned(reference), "{} {:?}", reference, step);
                let by_backend = |access| {
                    held.iter().any(|(held, grant)| *held == reference.0 && grant.access() == access)
                };
                if by_backend(GrantAccess::Write) {
                    prop_assert!(guest.in_use(reference) & gtf::WRITING != 0);
                }
            }
            guest.domain.recount().unwrap();
        }
    }
}
