//! Lists of requests: `mmu_update` and `mmuext_op`.
//!
//! Requests are carried out one after another up to the first error. The guest learns how many succeeded from a
//! counter that it may name; they are *added* to it when the list is a continuation. A list that takes long is cut:
//! the guest makes the call again with the rest, marked by a bit in the count, and can take an event in between.
//!
//! Source: `do_mmu_update`, `do_mmuext_op` in `xen/arch/x86/mm.c`, `MMU_UPDATE_PREEMPTED` there.

use paravane_abi::{errno::Errno, units::GuestVirt};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    dispatch::{Args, Outcome, narrow},
    domain::{Call, Verdict},
    guest::is_guest_address,
    refusal::Refusal,
};

/// `MMU_UPDATE_PREEMPTED`: the count is that of the rest of a list.
const CONTINUED: u32 = 1 << 31;
/// What a request costs by itself, in page-table entries looked at.
const REQUEST_COST: u64 = 8;
/// After this much work a list is cut. Linux's lists stay far below.
const WORK_LIMIT: u64 = 1 << 16;

/// A list of requests whose address can be one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    args: Args,
    count: u32,
    counter: Option<GuestVirt>,
    done_before: u32,
}

impl List {
    /// The list that `args` name: its address, the number of requests, and the address of the counter.
    ///
    /// # Errors
    ///
    /// `EFAULT` for an address that no guest's list has. It comes before any look at the domains that are named.
    pub(crate) fn of(call: &Call<'_>, args: Args) -> Result<Self, Errno> {
        let [list, count, counter, _, _] = args;
        let count = narrow(count);
        let counter = (counter != 0).then_some(GuestVirt(counter));
        let done_before = match counter {
            Some(counter) if count & CONTINUED != 0 => call.space().read_value(counter).unwrap_or(0),
            Some(_) | None => 0,
        };
        if !is_guest_address(GuestVirt(list)) {
            return Err(Errno::Efault);
        }
        Ok(Self { args, count: count & !CONTINUED, counter, done_before })
    }

    /// Tells the guest that `done` more requests have succeeded.
    pub(crate) fn tell(&self, call: &Call<'_>, done: u32) {
        if let Some(counter) = self.counter {
            // A counter that cannot be written changes nothing about what was done.
            let _unwritten = call.space().write_value(counter, &self.done_before.wrapping_add(done));
        }
    }
}

/// Carries out a list.
///
/// # Errors
///
/// `EFAULT` if a request cannot be read; else the first error of `each`.
pub(crate) fn run<Request: FromBytes + IntoBytes>(
    call: &mut Call<'_>,
    batch: List,
    mut each: impl FnMut(&mut Call<'_>, Request) -> Result<(), Errno>,
) -> Result<Outcome, Refusal> {
    let ([list, _, counter, owner, _], count) = (batch.args, batch.count);
    call.domain.frame_table.work = 0;
    let mut done = 0;
    let mut result = Ok(Outcome::Return(0));
    while done < count {
        if call.domain.frame_table.work >= WORK_LIMIT && done > 0 {
            let rest = list.wrapping_add(u64::from(done) * size_of::<Request>() as u64);
            let args = [rest, u64::from((count - done) | CONTINUED), counter, owner, 0];
            result = Ok(Outcome::Again(args, Verdict::Run));
            break;
        }
        call.domain.frame_table.work += REQUEST_COST;
        let request = call.space().read_element(GuestVirt(list), u64::from(done)).map_err(Errno::from);
        if let Err(errno) = request.and_then(|request| each(call, request)) {
            result = Err(errno.into());
            break;
        }
        done += 1;
    }
    batch.tell(call, done);
    result
}
