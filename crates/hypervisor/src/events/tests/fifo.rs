//! The FIFO ABI, with the guest's side written as a guest kernel writes it.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    event_channel::{
        BindVcpu, EventChannelOp, ExpandArray, FifoControlBlock, InitControl, ResetPorts, SetPriority,
        fifo::{BUSY, LINK_MASK, LINKED, MASKED, PENDING, PRIORITY_DEFAULT},
    },
    units::{DomId, MachAddr, Pfn, Port, VcpuId},
};
use zerocopy::FromZeros;

use crate::testing::{FREE, Guest, frame, machine_address};

const BOOT: VcpuId = VcpuId(0);
/// The control blocks' page, then two pages of words.
const CONTROL: Pfn = FREE;
const WORDS: [Pfn; 2] = [Pfn(FREE.0 + 1), Pfn(FREE.0 + 2)];

/// Offset of a vCPU's control block.
fn control_offset(vcpu: u32) -> u32 {
    vcpu * 80
}

impl Guest {
    fn init_control(&mut self, vcpu: u32, page: Pfn, offset: u32) -> Result<u8, Errno> {
        let mut request = InitControl::new_zeroed();
        (request.control_gfn, request.offset, request.vcpu) = (frame(page).0, offset, vcpu);
        self.event(EventChannelOp::InitControl, &mut request)?;
        Ok(request.link_bits)
    }

    fn expand_array(&mut self, page: Pfn) -> Result<i64, Errno> {
        self.event(EventChannelOp::ExpandArray, &mut ExpandArray { array_gfn: frame(page).0 })
    }

    fn set_priority(&mut self, port: Port, priority: u32) -> Result<i64, Errno> {
        self.event(EventChannelOp::SetPriority, &mut SetPriority { port: port.0, priority })
    }

    /// A guest that has turned the ABI on, with a page of words.
    pub(super) fn with_fifo(vcpus: u32) -> Self {
        let mut guest = Self::new(vcpus).all_up();
        for vcpu in 0..vcpus {
            assert_eq!(guest.init_control(vcpu, CONTROL, control_offset(vcpu)), Ok(17));
        }
        guest.expand_array(WORDS[0]).unwrap();
        guest
    }

    pub(super) fn word_at(&self, port: Port) -> MachAddr {
        let page = machine_address(WORDS[port.0 as usize / 1024]);
        MachAddr(page.0 + u64::from(port.0 % 1024) * 4)
    }

    pub(super) fn word(&self, port: Port) -> u32 {
        self.get(self.word_at(port))
    }

    fn control(&self, vcpu: VcpuId) -> MachAddr {
        MachAddr(machine_address(CONTROL).0 + u64::from(control_offset(vcpu.0)))
    }

    /// Handles everything on a vCPU's queues, as Linux does: the highest priority first, each port unlinked before its
    /// pending bit is cleared. Returns the ports whose events were handled, with the priority of their queue.
    pub(super) fn drain(&self, vcpu: VcpuId) -> Vec<(u32, Port)> {
        let memory = &self.domain.memory;
        let control = self.control(vcpu);
        self.put(self.domain.vcpus[vcpu.0 as usize].vcpu_info, &0_u8);
        let mut handled = Vec::new();
        let mut ready = memory.swap_u32(control, 0).unwrap();
        while ready != 0 {
            let priority = ready.trailing_zeros();
            let head_at =
                MachAddr(control.0 + offset_of!(FifoControlBlock, head) as u64 + u64::from(priority) * 4);
            let port = Port(self.get(head_at));
            let word = self.word_at(port);
            // Unlinking keeps only PENDING and MASKED (and BUSY, which guests wait for when they unmask).
            let old = memory.fetch_and_u32(word, !(LINKED | LINK_MASK)).unwrap();
            assert_ne!(old & LINKED, 0, "{port} is on the queue");
            let next = old & LINK_MASK;
            if next == 0 {
                ready &= !(1 << priority);
            }
            self.put(head_at, &next);
            if old & MASKED == 0 && old & PENDING != 0 {
                memory.fetch_and_u32(word, !PENDING).unwrap();
                handled.push((priority, port));
            }
            ready |= memory.swap_u32(control, 0).unwrap();
        }
        handled
    }
}

#[test]
fn a_control_block_lies_aligned_in_a_writable_page_of_the_guest() {
    let mut guest = Guest::new(2);
    for (vcpu, page, offset, errno) in [
        (2, CONTROL, 0, Errno::Enoent),
        (0, CONTROL, 4, Errno::Einval),
        (0, CONTROL, 4096 - 64, Errno::Einval),
        (0, CONTROL, u32::MAX - 7, Errno::Einval),
        // A page table.
        (0, Pfn(3), 0, Errno::Einval),
    ] {
        assert_eq!(guest.init_control(vcpu, page, offset), Err(errno), "{vcpu} {page} {offset}");
    }
    let mut request = InitControl::new_zeroed();
    request.control_gfn = u64::MAX;
    assert_eq!(guest.event(EventChannelOp::InitControl, &mut request), Err(Errno::Einval));
    assert!(guest.domain.events.fifo.is_none(), "a failed first one leaves the ABI off");
    assert_eq!(guest.init_control(0, CONTROL, 4096 - 72), Ok(17));
    assert_eq!(guest.init_control(0, CONTROL, 0), Err(Errno::Einval), "it has one");
    assert_eq!(guest.init_control(1, CONTROL, 0), Ok(17));
    guest.domain.recount().unwrap();
}

#[test]
fn the_array_takes_128_pages_of_the_guest() {
    let mut guest = Guest::new(1);
    guest.init_control(0, CONTROL, 0).unwrap();
    assert_eq!(guest.expand_array(Pfn(0)), Err(Errno::Einval), "a page table");
    for _ in 0..128 {
        guest.expand_array(WORDS[0]).unwrap();
    }
    assert_eq!(guest.expand_array(WORDS[0]), Err(Errno::Enospc));
    assert_eq!(guest.event(EventChannelOp::Reset, &mut ResetPorts { dom: DomId::SELF.0 }), Ok(0));
    guest.domain.recount().unwrap();
}

#[test]
fn a_raised_port_is_linked_at_the_head_of_an_empty_queue() {
    let mut guest = Guest::with_fifo(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    assert_eq!(guest.word(port), PENDING | LINKED);
    let control: FifoControlBlock = guest.get(guest.control(BOOT));
    assert_eq!(control.ready, 1 << PRIORITY_DEFAULT);
    assert_eq!(control.head[PRIORITY_DEFAULT as usize], port.0);
    assert_eq!(guest.info(BOOT).evtchn_upcall_pending, 1);
    assert!(!guest.is_pending(port), "the two-level bits are not used");
}

#[test]
fn ports_leave_a_queue_in_the_order_they_were_raised() {
    let mut guest = Guest::with_fifo(1);
    let ports: Vec<Port> = (0..5).map(|_| guest.bind_ipi(0).unwrap()).collect();
    for index in [3, 0, 4, 3, 1] {
        guest.send_event(ports[index]).unwrap();
    }
    let expected: Vec<_> = [3, 0, 4, 1].map(|index| (PRIORITY_DEFAULT, ports[index])).into();
    assert_eq!(guest.drain(BOOT), expected);
    assert_eq!(guest.drain(BOOT), []);
    guest.send_event(ports[4]).unwrap();
    assert_eq!(guest.drain(BOOT), [(PRIORITY_DEFAULT, ports[4])]);
}

#[test]
fn a_higher_priority_comes_first_from_the_next_event_on() {
    let mut guest = Guest::with_fifo(1);
    let (low, high) = (guest.bind_ipi(0).unwrap(), guest.bind_ipi(0).unwrap());
    guest.send_event(low).unwrap();
    guest.send_event(high).unwrap();
    assert_eq!(guest.set_priority(high, 16), Err(Errno::Einval));
    assert_eq!(guest.set_priority(Port(9), 1), Err(Errno::Eacces));
    assert_eq!(guest.set_priority(Port(900), 1), Err(Errno::Einval));
    guest.set_priority(high, 0).unwrap();
    assert_eq!(guest.drain(BOOT), [(7, low), (7, high)], "it was on the old queue already");
    guest.send_event(low).unwrap();
    guest.send_event(high).unwrap();
    assert_eq!(guest.drain(BOOT), [(0, high), (7, low)]);
}

#[test]
fn a_masked_port_is_pending_but_not_linked_until_it_is_unmasked() {
    let mut guest = Guest::with_fifo(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.put(guest.word_at(port), &MASKED);
    guest.send_event(port).unwrap();
    assert_eq!(guest.word(port), PENDING | MASKED);
    assert_eq!(guest.info(BOOT).evtchn_upcall_pending, 0);
    guest.unmask_port(port).unwrap();
    assert_eq!(guest.word(port), PENDING | LINKED);
    assert_eq!(guest.drain(BOOT), [(7, port)]);
}

#[test]
fn a_port_that_moves_while_linked_finishes_on_the_old_queue() {
    let mut guest = Guest::with_fifo(2);
    let port = guest.alloc_unbound(DomId::SELF).unwrap();
    let peer = guest.bind_interdomain(DomId::SELF, port).unwrap();
    guest.drain(BOOT);
    guest.send_event(peer).unwrap();
    guest.event(EventChannelOp::BindVcpu, &mut BindVcpu { port: port.0, vcpu: 1 }).unwrap();
    guest.send_event(peer).unwrap();
    assert_eq!(guest.drain(VcpuId(1)), []);
    assert_eq!(guest.drain(BOOT), [(7, port)]);
    // It was the old queue's tail: what comes next there starts a new list.
    guest.send_event(peer).unwrap();
    guest.send_event(port).unwrap();
    assert_eq!(guest.drain(VcpuId(1)), [(7, port)]);
    assert_eq!(guest.drain(BOOT), [(7, peer)]);
}

#[test]
fn a_closed_port_is_not_given_out_while_it_is_linked() {
    let mut guest = Guest::with_fifo(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    guest.close_port(port).unwrap();
    assert_eq!(guest.word(port), LINKED, "no longer pending");
    assert_eq!(guest.bind_ipi(0), Ok(Port(port.0 + 1)));
    assert_eq!(guest.drain(BOOT), [], "the guest ignores it");
    assert_eq!(guest.bind_ipi(0), Ok(port));
}

#[test]
fn events_before_their_word_exists_are_raised_when_it_comes() {
    let mut guest = Guest::new(1);
    let early = guest.bind_ipi(0).unwrap();
    guest.send_event(early).unwrap();
    guest.init_control(0, CONTROL, 0).unwrap();
    let late = guest.bind_ipi(0).unwrap();
    guest.send_event(late).unwrap();
    assert_eq!(guest.domain.poll(late), Ok(false));
    guest.expand_array(WORDS[0]).unwrap();
    assert_eq!(guest.drain(BOOT), [(7, early), (7, late)]);
    // The second page serves the ports from 1024 on.
    while guest.bind_ipi(0).unwrap() < Port(1030) {}
    guest.send_event(Port(1030)).unwrap();
    guest.expand_array(WORDS[1]).unwrap();
    assert_eq!(guest.drain(BOOT), [(7, Port(1030))]);
}

#[test]
fn a_vcpu_without_a_control_block_loses_its_events() {
    let mut guest = Guest::new(2).all_up();
    guest.init_control(0, CONTROL, 0).unwrap();
    guest.expand_array(WORDS[0]).unwrap();
    let port = guest.bind_ipi(1).unwrap();
    guest.send_event(port).unwrap();
    assert_eq!(guest.word(port), 0);
}

#[test]
fn a_queue_works_again_after_its_guest_wrote_nonsense() {
    let mut guest = Guest::with_fifo(1);
    let (a, b) = (guest.bind_ipi(0).unwrap(), guest.bind_ipi(0).unwrap());
    for nonsense in [u32::MAX, BUSY | LINKED | LINK_MASK, LINKED, BUSY, LINK_MASK, PENDING, 0x0fff_0000] {
        for port in [a, b] {
            guest.put(guest.word_at(port), &nonsense);
        }
        guest.put(guest.control(BOOT), &[nonsense; 18]);
        for port in [a, b, a] {
            assert_eq!(guest.send_event(port), Ok(0), "{nonsense:#x}");
        }
        // The guest comes to its senses.
        guest.put(guest.word_at(a), &0_u32);
        guest.put(guest.word_at(b), &0_u32);
        guest.put(guest.control(BOOT), &[0_u32; 18]);
        guest.send_event(b).unwrap();
        guest.send_event(a).unwrap();
        assert_eq!(guest.drain(BOOT), [(7, b), (7, a)], "{nonsense:#x}");
    }
}

#[test]
fn a_reset_returns_to_the_two_level_abi() {
    let mut guest = Guest::with_fifo(1);
    guest.bind_ipi(0).unwrap();
    guest.event(EventChannelOp::Reset, &mut ResetPorts { dom: DomId::SELF.0 }).unwrap();
    assert_eq!(guest.expand_array(WORDS[0]), Err(Errno::Eopnotsupp));
    let port = guest.bind_ipi(0).unwrap();
    guest.send_event(port).unwrap();
    assert!(guest.is_pending(port));
    assert_eq!(guest.init_control(0, CONTROL, 8), Ok(17));
}

#[test]
fn a_port_that_is_given_out_again_has_the_priority_of_a_new_one() {
    let mut guest = Guest::with_fifo(1);
    let port = guest.bind_ipi(0).unwrap();
    guest.set_priority(port, 0).unwrap();
    guest.close_port(port).unwrap();
    assert_eq!(guest.bind_ipi(0), Ok(port));
    guest.send_event(port).unwrap();
    assert_eq!(guest.drain(BOOT), [(PRIORITY_DEFAULT, port)]);
}
