//! A census: every hypercall and every sub-operation is made once, as a guest would make it, and answers what the
//! table says. What is absent returns its error for a request that is good otherwise; everything else succeeds.

mod events;
mod grants;
mod hypercalls;
mod memory;
mod small;
mod vcpus;

use core::fmt::Debug;

use paravane_abi::{errno::Errno, grant_table::GrantStatus, units::MachAddr};
use zerocopy::{Immutable, IntoBytes};

use super::*;
use crate::testing::{BUFFER, Guest, machine_address, virt};

/// A request that succeeds if it is done at all.
#[derive(Debug)]
struct Request {
    args: Vec<u64>,
    /// What it returns, if that is not just anything that is no error.
    returns: Option<i64>,
    /// Where the status of a grant operation is in the buffer, which must be "okay".
    status_at: Option<usize>,
}

impl Request {
    fn new(args: &[u64]) -> Self {
        Self { args: args.to_vec(), returns: None, status_at: None }
    }

    fn returns(self, value: i64) -> Self {
        Self { returns: Some(value), ..self }
    }

    fn status_at(self, offset: usize) -> Self {
        Self { status_at: Some(offset), ..self }
    }
}

impl Guest {
    /// Puts an argument into the buffer, and returns its address.
    fn place(&self, argument: &(impl IntoBytes + Immutable + ?Sized)) -> u64 {
        self.domain.memory.write(machine_address(BUFFER), argument.as_bytes()).unwrap();
        virt(BUFFER).0
    }

    /// Makes a request of which the table says `support`.
    #[track_caller]
    fn take_part(&mut self, what: &dyn Debug, hypercall: Hypercall, support: Support, request: &Request) {
        let result = self.call(hypercall, &request.args);
        match support {
            Absent(errno) => assert_eq!(result, Err(errno), "{hypercall} {what:?}"),
            Whole | Partly(_) => {
                let returned = result.unwrap_or_else(|errno| panic!("{hypercall} {what:?}: {errno}"));
                assert_eq!(request.returns.unwrap_or(returned), returned, "{hypercall} {what:?}");
                if let Some(offset) = request.status_at {
                    let at = MachAddr(machine_address(BUFFER).0 + offset as u64);
                    assert_eq!(self.get::<i16>(at), GrantStatus::Okay.number(), "{hypercall} {what:?}");
                }
            }
        }
        self.domain.recount().unwrap();
    }
}

/// Makes one request for each member of a family, each in a guest of its own.
fn census<T: Supported + Debug>(hypercall: Hypercall, request: fn(&mut Guest, T) -> Request) {
    for &op in T::ALL {
        let mut guest = Guest::new(2);
        let request = request(&mut guest, op);
        guest.take_part(&op, hypercall, op.support(), &request);
    }
}

#[test]
fn what_the_page_prints_is_what_dispatch_answers() {
    for family in Family::ALL {
        for op in family.rows() {
            assert!(Support::of_operation(*family, op.row.number).is_some(), "{op:?}");
        }
        assert_eq!(Support::of_operation(*family, -1), None);
    }
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
    let hypercalls = Hypercall::ALL.iter().map(|&hypercall| Support::of_hypercall(hypercall));
    let operations = Family::ALL
        .iter()
        .flat_map(|&family| family.rows().filter_map(move |op| Support::of_operation(family, op.row.number)));
    for support in hypercalls.chain(operations) {
        if let Partly(missing) = support {
            assert!(missing.ends_with('.') && missing.contains(' '), "{missing:?}");
        }
    }
}

#[test]
fn stock_xen_refuses_nothing_that_is_refused_with_another_error() {
    let optional = |domu: paravane_abi::hypercall::DomU, support| match support {
        Absent(errno) => domu.errno().is_none_or(|stock: Errno| stock == errno),
        Whole | Partly(_) => true,
    };
    for hypercall in Hypercall::ALL {
        assert!(optional(hypercall.facts().domu, hypercall.support()), "{hypercall}");
    }
    for family in Family::ALL {
        for op in family.rows() {
            let support = Support::of_operation(*family, op.row.number).unwrap();
            assert!(optional(op.facts.domu, support), "{op:?} {support}");
        }
    }
}
