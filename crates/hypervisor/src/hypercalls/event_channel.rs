//! `event_channel_op` and its older form.
//!
//! Source: `do_event_channel_op` in `xen/common/event_channel.c`, `do_event_channel_op_compat` in
//! `xen/arch/x86/compat.c`.

use paravane_abi::{
    errno::Errno,
    event_channel::{
        AllocUnbound, BindInterdomain, BindIpi, BindPirq, BindVcpu, BindVirq, ClosePort, EventChannelOp,
        ExpandArray, InitControl, QueryStatus, ResetPorts, SendEvent, SetPriority, UnmaskPort, VIRQS, Virq,
        VirqScope, fifo,
    },
    units::{DomId, GuestVirt, Mfn, Port, VcpuId},
};

use super::physdev;
use crate::{
    dispatch::{Outcome, narrow},
    domain::{CONTROL_DOMAIN, Call},
    events::{Peer, State},
    refusal::Refusal,
    support::Supported as _,
};

/// `event_channel_op(cmd, arg)`.
///
/// # Errors
///
/// `ENOSYS` for an unknown command, `EFAULT` for an argument that cannot be read or answered, and those of each
/// operation.
pub(crate) fn event_channel_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    let op = EventChannelOp::from_number(narrow(command)).ok_or(Errno::Enosys)?;
    let at = GuestVirt(argument);
    match op {
        EventChannelOp::AllocUnbound => alloc_unbound(call, at)?,
        EventChannelOp::BindInterdomain => bind_interdomain(call, at)?,
        EventChannelOp::BindVirq => bind_virq(call, at)?,
        EventChannelOp::BindPirq => {
            let request: BindPirq = call.space().read_value(at)?;
            // The numbers exist, but no physical interrupt is the guest's.
            return Err(if request.pirq < physdev::PIRQS { op.refusal() } else { Errno::Einval }.into());
        }
        EventChannelOp::BindIpi => bind_ipi(call, at)?,
        EventChannelOp::Close => {
            let ClosePort { port } = call.space().read_value(at)?;
            call.domain.close(Port(port))?;
        }
        EventChannelOp::Send => {
            let SendEvent { port } = call.space().read_value(at)?;
            call.domain.send(Port(port))?;
        }
        EventChannelOp::Status => status(call, at)?,
        EventChannelOp::BindVcpu => bind_vcpu(call, at)?,
        EventChannelOp::Unmask => {
            let UnmaskPort { port } = call.space().read_value(at)?;
            call.domain.unmask(Port(port))?;
        }
        EventChannelOp::Reset => {
            reset_target(call, at)?;
            call.domain.reset_events();
        }
        EventChannelOp::ResetCont => {
            reset_target(call, at)?;
            return Err(op.refusal().into());
        }
        EventChannelOp::InitControl => init_control(call, at)?,
        EventChannelOp::ExpandArray => {
            let ExpandArray { array_gfn } = call.space().read_value(at)?;
            call.domain.fifo_expand_array(Mfn(array_gfn))?;
        }
        EventChannelOp::SetPriority => {
            let SetPriority { port, priority } = call.space().read_value(at)?;
            call.domain.fifo_set_priority(Port(port), priority)?;
        }
    }
    Ok(Outcome::Return(0))
}

/// `event_channel_op_compat(op)`: the command stands before the argument. It knows the first ten operations.
///
/// # Errors
///
/// As [`event_channel_op`].
pub(crate) fn event_channel_op_compat(call: &mut Call<'_>, argument: u64) -> Result<Outcome, Refusal> {
    // struct evtchn_op: the command and the largest of the arguments.
    const WORDS: usize = 1 + size_of::<QueryStatus>() / 4;
    let words: [u32; WORDS] = call.space().read_value(GuestVirt(argument))?;
    let command = words[0];
    match EventChannelOp::from_number(command) {
        Some(
            EventChannelOp::BindInterdomain
            | EventChannelOp::BindVirq
            | EventChannelOp::BindPirq
            | EventChannelOp::Close
            | EventChannelOp::Send
            | EventChannelOp::Status
            | EventChannelOp::AllocUnbound
            | EventChannelOp::BindIpi
            | EventChannelOp::BindVcpu
            | EventChannelOp::Unmask,
        ) => event_channel_op(call, u64::from(command), argument.wrapping_add(size_of::<u32>() as u64)),
        Some(
            EventChannelOp::Reset
            | EventChannelOp::InitControl
            | EventChannelOp::ExpandArray
            | EventChannelOp::SetPriority
            | EventChannelOp::ResetCont,
        )
        | None => Err(Errno::Enosys.into()),
    }
}

/// Bits of a link, as `EVTCHNOP_init_control` answers.
const LINK_BITS: u8 = 17;

const _: () = assert!(LINK_BITS as u32 == fifo::LINK_BITS);

/// The domain that an operation names must be the guest's own.
///
/// # Errors
///
/// `EPERM` for the control domain, which exists but is not the guest's to command, `ESRCH` for any other.
fn own_domain(call: &Call<'_>, domain: u16) -> Result<(), Errno> {
    match call.domain.named_domain(DomId(domain)) {
        own if own == call.domain.id => Ok(()),
        CONTROL_DOMAIN => Err(Errno::Eperm),
        _ => Err(Errno::Esrch),
    }
}

fn vcpu_exists(call: &Call<'_>, vcpu: u32) -> Result<VcpuId, Errno> {
    if (vcpu as usize) < call.domain.vcpus.len() { Ok(VcpuId(vcpu)) } else { Err(Errno::Enoent) }
}

fn alloc_unbound(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let mut request: AllocUnbound = call.space().read_value(at)?;
    own_domain(call, request.dom)?;
    let remote = call.domain.named_domain(DomId(request.remote_dom));
    request.port = call.domain.allocate_port(State::Unbound { remote }, VcpuId(0))?.0;
    Ok(call.space().write_value(at, &request)?)
}

/// Only an own port can be connected to: backends wait for the guest to offer a port, and offer none themselves.
fn bind_interdomain(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let mut request: BindInterdomain = call.space().read_value(at)?;
    match own_domain(call, request.remote_dom) {
        Ok(()) => {}
        Err(Errno::Eperm) => {
            // Room for the local port is looked for first.
            call.domain.find_free_port()?;
            return Err(Errno::Einval.into());
        }
        Err(errno) => return Err(errno.into()),
    }
    request.local_port = call.domain.bind_own(Port(request.remote_port))?.0;
    Ok(call.space().write_value(at, &request)?)
}

fn bind_virq(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let mut request: BindVirq = call.space().read_value(at)?;
    if request.virq >= VIRQS {
        return Err(Errno::Einval.into());
    }
    let virq = Virq::from_number(request.virq);
    // Numbers without a meaning count as interrupts of the host.
    let scope = virq.map_or(VirqScope::Global, |virq| virq.facts().scope);
    if scope != VirqScope::Vcpu && request.vcpu != 0 {
        return Err(Errno::Einval.into());
    }
    let vcpu = vcpu_exists(call, request.vcpu)?;
    let Some(virq) = virq.filter(|_| scope != VirqScope::Global) else {
        // Those of the host are the control domain's.
        return Err(Errno::Ebusy.into());
    };
    if call.domain.events.virq_port(vcpu, virq).is_some() {
        return Err(Errno::Eexist.into());
    }
    let port = call.domain.allocate_port(State::Virq(virq), vcpu)?;
    call.domain.events.set_virq_port(vcpu, virq, Some(port));
    request.port = port.0;
    Ok(call.space().write_value(at, &request)?)
}

fn bind_ipi(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let mut request: BindIpi = call.space().read_value(at)?;
    let vcpu = vcpu_exists(call, request.vcpu)?;
    request.port = call.domain.allocate_port(State::Ipi, vcpu)?.0;
    Ok(call.space().write_value(at, &request)?)
}

fn status(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let mut request: QueryStatus = call.space().read_value(at)?;
    own_domain(call, request.dom)?;
    let channel = *call.domain.events.ports.get(Port(request.port)).ok_or(Errno::Einval)?;
    request.status = channel.state.status().number();
    request.vcpu = channel.notifies.0;
    // A domain number fills only the low half of the first word of the union, and the rest stays as it was.
    let with_domain = |word: u32, domain: DomId| word & 0xffff_0000 | u32::from(domain.0);
    match channel.state {
        State::Free | State::Reserved | State::Ipi => {}
        State::Unbound { remote } => request.u0 = with_domain(request.u0, remote),
        State::Interdomain(peer) => {
            let (domain, port) = match peer {
                Peer::Own(port) => (call.domain.id, port),
                Peer::Backend { domain, port } => (domain, port),
            };
            request.u0 = with_domain(request.u0, domain);
            request.u1 = port.0;
        }
        State::Virq(virq) => request.u0 = virq.number(),
    }
    Ok(call.space().write_value(at, &request)?)
}

fn bind_vcpu(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let request: BindVcpu = call.space().read_value(at)?;
    let vcpu = vcpu_exists(call, request.vcpu)?;
    let channel = call.domain.events.ports.get_mut(Port(request.port)).ok_or(Errno::Einval)?;
    let movable = match channel.state {
        State::Unbound { .. } | State::Interdomain(_) => true,
        State::Virq(virq) => virq.facts().scope != VirqScope::Vcpu,
        State::Free | State::Reserved | State::Ipi => false,
    };
    if !movable {
        return Err(Errno::Einval.into());
    }
    channel.notifies = vcpu;
    Ok(())
}

fn reset_target(call: &Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let ResetPorts { dom } = call.space().read_value(at)?;
    Ok(own_domain(call, dom)?)
}

fn init_control(call: &mut Call<'_>, at: GuestVirt) -> Result<(), Refusal> {
    let mut request: InitControl = call.space().read_value(at)?;
    let frame = Mfn(request.control_gfn);
    call.domain.fifo_init_control(VcpuId(request.vcpu), frame, request.offset)?;
    request.link_bits = LINK_BITS;
    Ok(call.space().write_value(at, &request)?)
}
