//! Loading segment registers on the guest's behalf: the hypercalls that end in a selector.
//!
//! The CPU's own rules apply, with the guest at ring 3: see [`paravane_x86::load`].

use paravane_engine::{GDT_FRAMES, LookupFault, Segment, lookup, vector};
use paravane_x86::{
    descriptor::Descriptor,
    load::{LoadFault, Privilege, may_load},
    mode::Mode,
    segments::{FLAT_RING3_CS64, FLAT_RING3_SS64, SegmentRegister},
    selector::{Ring, Selector},
};

use crate::{bounce, domain::Call, frames};

/// A selector that cannot be loaded; the fault's error code names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadSelector {
    /// Which fault the CPU raises.
    pub(crate) fault: LoadFault,
    /// Its error code.
    pub(crate) error_code: u32,
}

impl BadSelector {
    /// The fault's vector.
    pub(crate) fn vector(self) -> u8 {
        match self.fault {
            LoadFault::Gp | LoadFault::GpZero => vector::GENERAL_PROTECTION,
            LoadFault::Ss => vector::STACK,
            LoadFault::Np => vector::SEGMENT_NOT_PRESENT,
        }
    }
}

/// What loading `selector` into DS, ES, FS or GS caches.
pub(crate) fn load_data(call: &mut Call<'_>, selector: Selector) -> Result<Segment, BadSelector> {
    if selector.is_null() {
        return Ok(Segment::null(selector.0));
    }
    load(call, selector, SegmentRegister::Gs)
}

/// Loads CS and SS as IRET to ring 3 does.
pub(crate) fn load_code_and_stack(
    call: &mut Call<'_>,
    cs: Selector,
    ss: Selector,
) -> Result<(), BadSelector> {
    // Xen's own page of the GDT holds what it always holds, and IRET to these two is most of what happens here.
    let own = call.context.descriptors.gdt[GDT_FRAMES - 1].is_some();
    if let (true, (FLAT_RING3_CS64, FLAT_RING3_SS64), Some(code), Some(stack)) =
        (own, (cs, ss), bounce::usual(cs), bounce::usual(ss))
    {
        *call.context.segment_mut(SegmentRegister::Cs) = code;
        *call.context.segment_mut(SegmentRegister::Ss) = stack;
        return Ok(());
    }
    let code = load(call, cs, SegmentRegister::Cs)?;
    let stack = load(call, ss, SegmentRegister::Ss)?;
    *call.context.segment_mut(SegmentRegister::Cs) = code;
    *call.context.segment_mut(SegmentRegister::Ss) = stack;
    Ok(())
}

fn load(call: &mut Call<'_>, selector: Selector, register: SegmentRegister) -> Result<Segment, BadSelector> {
    let error_code = u32::from(selector.0 & !3);
    let bad = |fault| BadSelector { fault, error_code };
    if selector.is_null() {
        return Err(BadSelector { fault: LoadFault::GpZero, error_code: 0 });
    }
    let descriptor = descriptor(call, selector).ok_or(bad(LoadFault::Gp))?;
    let privilege = Privilege { cpl: Ring::R3, rpl: selector.rpl() };
    match may_load(Mode::Guest64, descriptor, register, privilege) {
        Ok(()) if descriptor == Descriptor::NULL => Err(bad(LoadFault::Gp)),
        Ok(()) => Ok(Segment::of_descriptor(selector.0, descriptor.0)),
        Err(obstacle) => Err(bad(obstacle.fault(register))),
    }
}

/// The descriptor that `selector` names; `None` beyond the table's end, or in an LDT page that cannot be used.
fn descriptor(call: &mut Call<'_>, selector: Selector) -> Option<Descriptor> {
    let found = lookup(&call.domain.memory, &call.context.descriptors, selector.0);
    match found {
        Ok(descriptor) => Some(Descriptor(descriptor)),
        Err(LookupFault::BeyondLimit) => None,
        Err(LookupFault::LdtPage(index)) => {
            frames::bring_in_ldt_page(call, index).ok()?;
            lookup(&call.domain.memory, &call.context.descriptors, selector.0).ok().map(Descriptor)
        }
    }
}
