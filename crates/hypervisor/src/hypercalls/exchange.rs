//! `XENMEM_exchange`: memory for other memory, to get runs of frames or frames below a boundary.
//!
//! Extents are exchanged chunk by chunk. A chunk is as many extents of one side as make one of the other. Its pages
//! must have no mapping and no use; either all of it is exchanged or nothing.
//!
//! Source: `memory_exchange` in `xen/common/memory.c`, `steal_page` in `xen/arch/x86/mm.c`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    memory::{MemoryExchange, MemoryReservation},
    units::{DomId, GuestVirt, Mfn, Pfn},
};

use super::{
    memory::{MAX_ORDER, frame_limit, names_node},
    owner::require_own,
};
use crate::{
    dispatch::Outcome,
    domain::{Call, Verdict},
    guest::is_guest_address,
    refusal::Refusal,
};

/// Pages after which a list is cut.
const BATCH_PAGES: u64 = 4096;

/// A checked request.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    input: MemoryReservation,
    output: MemoryReservation,
    /// log2 of the input extents in a chunk.
    input_order: u32,
    /// log2 of the output extents in a chunk.
    output_order: u32,
    limit: u64,
}

/// `exchange(argument)`.
///
/// # Errors
///
/// `EPERM` for extents that are too large and for other domains, `EINVAL` for lists that do not match and for pages
/// that are not the guest's or in use, `ENOMEM` if there is no memory, `EFAULT` for lists that cannot be read or
/// written. The number of exchanged extents is written back, unless nothing was left to do.
pub(super) fn exchange(call: &mut Call<'_>, argument: GuestVirt) -> Result<Outcome, Refusal> {
    let request: MemoryExchange = call.space().read_value(argument)?;
    let mut exchanged = request.nr_exchanged;
    let result = match check(call, &request) {
        Ok(Some(checked)) => run(call, checked, &mut exchanged),
        Ok(None) => return Ok(Outcome::Return(0)),
        Err(errno) => Err(errno),
    };
    let counter = argument.wrapping_add(offset_of!(MemoryExchange, nr_exchanged) as u64);
    call.space().write_value(counter, &exchanged)?;
    match result? {
        Progress::Done => Ok(Outcome::Return(0)),
        Progress::Cut => {
            let command = u64::from(paravane_abi::memory::MemoryOp::Exchange.number());
            Ok(Outcome::Again([command, argument.0, 0, 0, 0], Verdict::Run))
        }
    }
}

/// The request, if anything of it is left to do.
fn check(call: &Call<'_>, request: &MemoryExchange) -> Result<Option<Exchange>, Errno> {
    let MemoryExchange { input, output, .. } = *request;
    if input.extent_order.max(output.extent_order) > MAX_ORDER {
        return Err(Errno::Eperm);
    }
    let pages = |side: MemoryReservation| side.nr_extents.checked_mul(1 << side.extent_order);
    let matching = pages(input).is_some() && pages(input) == pages(output) && input.domid == output.domid;
    if !matching || request.nr_exchanged > input.nr_extents {
        return Err(Errno::Einval);
    }
    if request.nr_exchanged == input.nr_extents {
        return Ok(None);
    }
    if [input.extent_start, output.extent_start].iter().any(|list| !is_guest_address(GuestVirt(*list))) {
        return Err(Errno::Efault);
    }
    if names_node(output.mem_flags) {
        return Err(Errno::Einval);
    }
    // So few address bits that no frame has them are no error of their own: there is no such memory.
    let limit = frame_limit(call, output.mem_flags).unwrap_or(0);
    require_own(call, DomId(input.domid))?;
    Ok(Some(Exchange {
        input,
        output,
        input_order: output.extent_order.saturating_sub(input.extent_order),
        output_order: input.extent_order.saturating_sub(output.extent_order),
        limit,
    }))
}

/// How far a run came.
enum Progress {
    Done,
    Cut,
}

fn run(call: &mut Call<'_>, exchange: Exchange, exchanged: &mut u64) -> Result<Progress, Errno> {
    let first = *exchanged >> exchange.input_order;
    let chunks = exchange.input.nr_extents >> exchange.input_order;
    let pages_per_chunk = 1 << (exchange.input_order + exchange.input.extent_order);
    for chunk in first..chunks {
        *exchanged = chunk << exchange.input_order;
        if (chunk - first) * pages_per_chunk >= BATCH_PAGES {
            return Ok(Progress::Cut);
        }
        exchange_chunk(call, exchange, chunk)?;
    }
    *exchanged = exchange.input.nr_extents;
    Ok(Progress::Done)
}

fn exchange_chunk(call: &mut Call<'_>, exchange: Exchange, chunk: u64) -> Result<(), Errno> {
    let Exchange { input, output, .. } = exchange;
    let given = given_pages(call, exchange, chunk)?;
    let mut taken = Vec::with_capacity(1 << exchange.output_order);
    while taken.len() < 1 << exchange.output_order {
        let Some(first) = call.domain.frames().allocate(output.extent_order, exchange.limit, None) else {
            let run = 0..1_u64 << output.extent_order;
            for frame in taken.iter().flat_map(|first: &Mfn| run.clone().map(|offset| Mfn(first.0 + offset)))
            {
                give_back(call, frame);
            }
            return Err(Errno::Enomem);
        };
        taken.push(first);
    }
    // From here on nothing of the chunk can fail but telling the guest.
    for frame in given {
        give_back(call, frame);
    }
    let mut told = Ok(());
    for (first, index) in taken.iter().zip(chunk << exchange.output_order..) {
        let list = GuestVirt(output.extent_start);
        let Ok(pfn) = call.space().read_element::<u64>(list, index) else {
            told = Err(Errno::Efault);
            continue;
        };
        let frames = call.domain.frames();
        for offset in 0..1 << output.extent_order {
            frames.set_m2p(Mfn(first.0 + offset), Pfn(pfn).0.wrapping_add(offset));
        }
        told = told.and(call.space().write_element(list, index, &first.0).map_err(Errno::from));
    }
    debug_assert_eq!(
        1_u64 << (exchange.input_order + input.extent_order),
        1 << (exchange.output_order + output.extent_order),
        "both sides of a chunk have the same size"
    );
    told
}

/// The pages of a chunk that the guest gives, none of them in use, none of them twice.
fn given_pages(call: &mut Call<'_>, exchange: Exchange, chunk: u64) -> Result<Vec<Mfn>, Errno> {
    let mut given = Vec::with_capacity(1 << (exchange.input_order + exchange.input.extent_order));
    for extent in chunk << exchange.input_order..(chunk + 1) << exchange.input_order {
        let first: u64 = call.space().read_element(GuestVirt(exchange.input.extent_start), extent)?;
        for offset in 0..1 << exchange.input.extent_order {
            let frame = Mfn(first.checked_add(offset).ok_or(Errno::Einval)?);
            if !call.domain.frames().is_unreferenced(frame) {
                return Err(Errno::Einval);
            }
            given.push(frame);
        }
    }
    given.sort_unstable();
    if given.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Errno::Einval);
    }
    Ok(given)
}

fn give_back(call: &mut Call<'_>, frame: Mfn) {
    let released = call.domain.frames().release(frame);
    debug_assert!(released.is_ok(), "the frame was found to be the guest's");
}
