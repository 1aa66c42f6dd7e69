//! Events and time: `event_channel_op`, `sched_op`, `set_timer_op`, `vcpu_op`, and the event callback.

use iced_x86::{IcedError, code_asm::*};
use paravane_abi::{hypercall::Hypercall, sched::ShutdownReason};
use paravane_minikernel::{Assembled, End, Entry, Layout, Outcome, Program, Setup, Way, both_ways};

const EFAULT: i64 = -14;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
const ENOENT: i64 = -2;
const ENOSYS: i64 = -38;
const EBUSY: i64 = -16;
/// Numbers of `sched_op`.
const BLOCK: u64 = 1;
const SHUTDOWN: u64 = 2;
const POLL: u64 = 3;
/// Offsets in `shared_info`.
const MASK: u64 = 1;
const SELECTOR: u64 = 8;
const PENDING: u64 = 2048;
const PORT_MASK: u64 = 2560;

/// One operation of `event_channel_op`, by its structure's words.
fn channel(p: &mut Program, what: &str, op: u64, words: &[u64], result: i64) -> Result<u64, IcedError> {
    let at = p.words(words);
    p.call_gives(what, Hypercall::EventChannelOp, &[op, at], result)?;
    Ok(at)
}

/// A 32-bit field of an operation's structure into RAX.
fn field(p: &mut Program, at: u64) -> Assembled {
    p.a.mov(rax, at)?;
    p.a.mov(eax, dword_ptr(rax))
}

/// The first port that a guest here gets: ports 1 and 2 are the console's and the store's.
const FIRST: u64 = 3;

/// Binds an IPI of vCPU 0, as port [`FIRST`].
fn bind_ipi(p: &mut Program) -> Assembled {
    let at = channel(p, "an IPI is bound", 7, &[0], 0)?;
    field(p, at + 4)?;
    p.check("to the first free port", FIRST)
}

/// Binds the timer's interrupt of vCPU 0, as port [`FIRST`], and stops the periodic timer.
fn bind_timer(p: &mut Program) -> Assembled {
    p.call_gives("no periodic timer", Hypercall::VcpuOp, &[7, 0, 0], 0)?;
    let at = channel(p, "the timer is bound", 1, &[0, 0], 0)?;
    field(p, at + 8)?;
    p.check("to the first free port", FIRST)
}

fn send(p: &mut Program) -> Assembled {
    channel(p, "sent", 4, &[FIRST], 0).map(|_| ())
}

fn unmask(p: &mut Program) -> Assembled {
    p.a.mov(rax, p.layout.shared_info() + MASK)?;
    p.a.mov(byte_ptr(rax), 0)
}

/// Loads the number of traps so far.
fn event_count(outcome: &Outcome) -> usize {
    outcome.traps().iter().filter(|trap| trap.entry == Entry::Event).count()
}

#[test]
fn an_event_reaches_the_callback_when_nothing_masks_it() {
    for outcome in both_ways(|p| {
        bind_ipi(p)?;
        unmask(p)?;
        p.catch(|p| {
            send(p)?;
            p.print("not reached")
        })?;
        let info = p.layout.shared_info();
        p.check_word("the port's bit is set", info + PENDING, 1 << FIRST)?;
        p.check_word("the word's bit is set", info + SELECTOR, 1)
    }) {
        let trap = outcome.trap();
        assert_eq!(trap.entry, Entry::Event, "{outcome}");
        assert_eq!((trap.mask, trap.pending), (1, 1), "events are masked on entry: {outcome}");
        assert_eq!(trap.cs(), 0xe030, "they were not before: {outcome}");
        assert_eq!(trap.rflags() & 0x200, 0x200, "{outcome}");
        assert_eq!(outcome.console, "");
    }
}

#[test]
fn a_masked_event_waits_for_the_mask_to_clear_and_a_way_into_the_hypervisor() {
    for outcome in both_ways(|p| {
        bind_ipi(p)?;
        send(p)?;
        p.print("1")?;
        // Clearing the mask alone delivers nothing: the guest has to look itself, or call.
        unmask(p)?;
        p.a.mov(ecx, 1000)?;
        let mut wait = p.a.create_label();
        p.a.set_label(&mut wait)?;
        p.a.dec(ecx)?;
        p.a.jne(wait)?;
        p.catch(|p| p.call(Hypercall::XenVersion, &[0, 0]))?;
        p.print("2")
    }) {
        assert_eq!(outcome.console, "12");
        assert_eq!(event_count(&outcome), 1, "{outcome}");
    }
}

#[test]
fn a_masked_port_stays_pending_until_it_is_unmasked() {
    for outcome in both_ways(|p| {
        let info = p.layout.shared_info();
        bind_ipi(p)?;
        p.store(info + PORT_MASK, 1 << FIRST)?;
        unmask(p)?;
        send(p)?;
        p.check_word("pending", info + PENDING, 1 << FIRST)?;
        p.check_word("but not shown", info + SELECTOR, 0)?;
        p.catch(|p| channel(p, "unmasked", 9, &[FIRST], 0).map(|_| ()))?;
        p.check_word("the mask bit is clear", info + PORT_MASK, 0)?;
        p.check_word("shown", info + SELECTOR, 1)
    }) {
        assert_eq!(event_count(&outcome), 1, "{outcome}");
    }
}

#[test]
fn iret_unmasks_events_and_delivers_what_is_pending() {
    for outcome in both_ways(|p| {
        bind_ipi(p)?;
        send(p)?;
        p.catch(|p| {
            let mut target = p.a.create_label();
            p.a.mov(rbx, rsp)?;
            p.a.mov(rax, 0xe02b_u64)?;
            p.a.push(rax)?;
            p.a.push(rbx)?;
            // IF set: events on.
            p.a.push(0x202)?;
            p.a.mov(rax, 0xe030_u64)?;
            p.a.push(rax)?;
            p.a.lea(rax, qword_ptr(target))?;
            p.a.push(rax)?;
            p.a.push(0)?;
            p.iret_here()?;
            p.a.set_label(&mut target)?;
            p.a.nop()?;
            p.print("not reached")
        })
    }) {
        assert_eq!(event_count(&outcome), 1, "{outcome}");
        assert_eq!(outcome.console, "");
    }
}

#[test]
fn ports_are_bound_closed_and_asked_about() {
    both_ways(|p| {
        // Status: the domain in the first word, the port above it, the answer behind.
        let at = channel(p, "the console's port", 5, &[0x7ff0 | 1 << 32, 0, 0], 0)?;
        field(p, at + 8)?;
        p.check("is connected", 2)?;
        channel(p, "port 0 is reserved, which counts as closed", 5, &[0x7ff0, 0, 0], 0)?;
        channel(p, "a closed port has a status", 5, &[0x7ff0 | FIRST << 32, 0, 0], 0)?;
        channel(p, "a port that cannot be", 5, &[0x7ff0 | 1 << 52, 0, 0], EINVAL)?;
        // A port to itself, both ends.
        let at = channel(p, "a port for itself", 6, &[0x7ff0 | 0x7ff0 << 16, 0], 0)?;
        field(p, at + 4)?;
        p.check("the first free one", FIRST)?;
        let at = channel(p, "and the other end", 0, &[0x7ff0 | FIRST << 32, 0], 0)?;
        field(p, at + 8)?;
        p.check("the second", FIRST + 1)?;
        p.check_word("it is pending at once", p.layout.shared_info() + PENDING, 1 << (FIRST + 1))?;
        channel(p, "connected twice", 0, &[0x7ff0 | FIRST << 32, 0], EINVAL)?;
        channel(p, "sending from one", 4, &[FIRST + 1], 0)?;
        p.check_word("raises the other", p.layout.shared_info() + PENDING, 3 << FIRST)?;
        channel(p, "one end is closed", 3, &[FIRST], 0)?;
        let at = channel(p, "the other", 5, &[0x7ff0 | (FIRST + 1) << 32, 0, 0], 0)?;
        field(p, at + 8)?;
        p.check("is unbound", 1)?;
        channel(p, "closing a closed port", 3, &[FIRST], EINVAL)?;
        channel(p, "closing port 0", 3, &[0], EINVAL)?;
        channel(p, "sending by a closed port", 4, &[FIRST], EINVAL)?;
        // Virtual interrupts.
        channel(p, "no such interrupt", 1, &[24, 0], EINVAL)?;
        channel(p, "no such vCPU", 1, &[9 << 32, 0], ENOENT)?;
        channel(p, "the timer", 1, &[0, 0], 0)?;
        channel(p, "the timer twice", 1, &[0, 0], EEXIST)?;
        channel(p, "one of the control domain's", 1, &[2, 0], EBUSY)?;
        channel(p, "an IPI on no vCPU", 7, &[9], ENOENT)?;
        channel(p, "the timer's port stays on its vCPU", 8, &[FIRST, 0], EINVAL)?;
        channel(p, "the console's port may move", 8, &[1, 0], 0)?;
        channel(p, "but not to no vCPU", 8, &[1 | 9 << 32, 0], ENOENT)?;
        channel(p, "for another domain", 6, &[0, 0], -1)?;
        channel(p, "for one that is not there", 6, &[5, 0], -3)?;
        channel(p, "no FIFO, no array", 12, &[0, 0], -95)?;
        channel(p, "no FIFO, no priority", 13, &[1, 0], ENOSYS)?;
        channel(p, "no such operation", 99, &[0, 0], ENOSYS)?;
        p.call_gives("no structure", Hypercall::EventChannelOp, &[4, 0x1234_5000], EFAULT)?;
        // The old form: the command before the structure.
        let old = p.words(&[4, 1]);
        p.store(old, 4 | 1 << 32)?;
        p.call_gives("the old form sends too", Hypercall::EventChannelOpCompat, &[old], 0)
    });
}

#[test]
fn a_blocked_kernel_wakes_by_its_timer() {
    type Arm = fn(&mut Program) -> Assembled;
    const LATER_NS: u64 = 5_000_000_000;
    let ways: [(&str, Arm); 2] = [
        ("set_timer_op", |p| p.call_gives("armed", Hypercall::SetTimerOp, &[LATER_NS], 0)),
        ("vcpu_op", |p| {
            let timer = p.words(&[LATER_NS, 0]);
            p.call_gives("armed", Hypercall::VcpuOp, &[8, 0, timer], 0)
        }),
    ];
    for (what, arm) in ways {
        for outcome in both_ways(|p| {
            bind_timer(p)?;
            arm(p)?;
            p.catch(|p| {
                // Blocking clears the mask.
                p.call(Hypercall::SchedOp, &[BLOCK, 0])?;
                p.print("not reached")
            })?;
            p.check_word("the timer's port", p.layout.shared_info() + PENDING, 1 << FIRST)?;
            // The time in vcpu_info has passed the deadline: TSC at 2 GHz, so that a tick is half a nanosecond.
            let time = p.words(&[0, 0, 0, 0, 0, 0]);
            p.call_gives("run states", Hypercall::VcpuOp, &[4, 0, time], 0)?;
            p.load(time + 16 + 2 * 8)?;
            p.a.mov(rcx, LATER_NS / 2)?;
            p.a.cmp(rax, rcx)?;
            p.a.seta(al)?;
            p.a.movzx(eax, al)?;
            p.check("most of the time was spent blocked", 1)
        }) {
            assert_eq!(event_count(&outcome), 1, "{what}: {outcome}");
            assert_eq!(outcome.console, "", "{what}");
        }
    }
}

#[test]
fn a_timer_interrupts_a_kernel_that_computes() {
    for outcome in both_ways(|p| {
        bind_timer(p)?;
        unmask(p)?;
        p.catch(|p| {
            // Soon, but not yet.
            let time = p.layout.shared_info() + 32 + 16;
            p.load(time)?;
            p.a.mov(rdi, rax)?;
            p.a.add(rdi, 3_000_000)?;
            p.invoke(Hypercall::SetTimerOp)?;
            // For ever, if nothing comes.
            let mut forever = p.a.create_label();
            p.a.set_label(&mut forever)?;
            p.a.inc(rcx)?;
            p.a.jmp(forever)
        })
    }) {
        assert_eq!(event_count(&outcome), 1, "{outcome}");
    }
}

#[test]
fn a_timer_interrupts_a_program_in_user_mode() {
    for outcome in both_ways(|p| {
        bind_timer(p)?;
        p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
        p.load(p.layout.shared_info() + 32 + 16)?;
        p.a.mov(rdi, rax)?;
        p.a.add(rdi, 3_000_000)?;
        p.invoke(Hypercall::SetTimerOp)?;
        p.in_user_mode(|p| {
            // The program's RFLAGS had IF clear, so events are masked: it unmasks them, as only a test's would.
            unmask(p)?;
            let mut forever = p.a.create_label();
            p.a.set_label(&mut forever)?;
            p.a.inc(rcx)?;
            p.a.jmp(forever)
        })?;
        p.call_gives("the kernel goes on in its own mode", Hypercall::XenVersion, &[7, 0], 4096)
    }) {
        let trap = outcome.trap();
        assert_eq!(trap.entry, Entry::Event, "{outcome}");
        assert_eq!(trap.cs(), 0xe033, "user mode, events on: {outcome}");
        assert_eq!(trap.frame_at, layout().kernel_stack_top() - 56, "{outcome}");
    }
}

fn layout() -> Layout {
    Layout::new(&Setup::default())
}

#[test]
fn poll_waits_for_a_port_or_a_time_even_with_events_masked() {
    both_ways(|p| {
        bind_timer(p)?;
        let ports = p.words(&[FIRST]);
        // Ports, how many, until when.
        let poll = p.words(&[ports, 1, 1_000_000_000]);
        p.call_gives("until a time", Hypercall::SchedOp, &[POLL, poll], 0)?;
        p.call_gives("a timer", Hypercall::SetTimerOp, &[3_000_000_000], 0)?;
        p.store(p.layout.shared_info() + PORT_MASK, 1 << FIRST)?;
        p.store(poll + 16, 0)?;
        p.call_gives("until a masked port is pending", Hypercall::SchedOp, &[POLL, poll], 0)?;
        p.check_word("it is", p.layout.shared_info() + PENDING, 1 << FIRST)?;
        p.call_gives("it still is", Hypercall::SchedOp, &[POLL, poll], 0)?;
        p.store(poll + 8, 129)?;
        p.call_gives("too many ports", Hypercall::SchedOp, &[POLL, poll], EINVAL)?;
        p.store(poll + 8, 1)?;
        p.store(poll, 0x1234_5000)?;
        p.call_gives("ports that are nowhere", Hypercall::SchedOp, &[POLL, poll], EFAULT)
    });
}

#[test]
fn every_reason_of_shutdown_ends_the_guest_with_it() {
    let reasons = [
        (0, ShutdownReason::Poweroff),
        (1, ShutdownReason::Reboot),
        (2, ShutdownReason::Suspend),
        (3, ShutdownReason::Crash),
        (4, ShutdownReason::Watchdog),
        (5, ShutdownReason::SoftReset),
    ];
    for (number, reason) in reasons {
        for old in [false, true] {
            for way in [Way::Page, Way::Raw] {
                let outcome = Program::assemble(&Setup { way, ..Setup::default() }, |p| {
                    if old {
                        return p.call(Hypercall::SchedOpCompat, &[SHUTDOWN, number]);
                    }
                    let argument = p.words(&[number]);
                    p.call(Hypercall::SchedOp, &[SHUTDOWN, argument])
                })
                .run();
                let End::Shutdown(found) = outcome.end else { panic!("{reason:?}: {outcome}") };
                assert_eq!(found, reason);
            }
        }
    }
    let outcome = Program::assemble(&Setup::default(), |p| {
        let argument = p.words(&[17]);
        p.call(Hypercall::SchedOp, &[SHUTDOWN, argument])
    })
    .run();
    assert!(outcome.crash().is_some(), "a reason that Xen does not define: {outcome}");
}

#[test]
fn small_operations_of_the_scheduler() {
    both_ways(|p| {
        p.call_gives("yield", Hypercall::SchedOp, &[0, 0], 0)?;
        p.call_gives("the old yield", Hypercall::SchedOpCompat, &[0, 0], 0)?;
        p.call_gives("for the control domain", Hypercall::SchedOp, &[4, 0], EFAULT)?;
        p.call_gives("no such operation", Hypercall::SchedOp, &[99, 0], ENOSYS)?;
        // Watchdogs: two, each with an id.
        let dog = p.words(&[10 << 32]);
        p.call_gives("the first", Hypercall::SchedOp, &[6, dog], 1)?;
        p.call_gives("the second", Hypercall::SchedOp, &[6, dog], 2)?;
        p.call_gives("there are but two", Hypercall::SchedOp, &[6, dog], -28)?;
        p.store(dog, 1)?;
        p.call_gives("one is stopped", Hypercall::SchedOp, &[6, dog], 0)?;
        p.store(dog, 7)?;
        p.call_gives("there is no seventh", Hypercall::SchedOp, &[6, dog], EINVAL)
    });
}

#[test]
fn a_watchdog_that_nobody_feeds_ends_the_guest() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let dog = p.words(&[10 << 32]);
        p.call_gives("ten seconds", Hypercall::SchedOp, &[6, dog], 1)?;
        p.call(Hypercall::SchedOp, &[BLOCK, 0])
    })
    .run();
    assert!(matches!(outcome.end, End::Shutdown(ShutdownReason::Watchdog)), "{outcome}");
}

#[test]
fn blocking_with_nothing_to_wake_it_is_for_ever() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.call_gives("no periodic timer", Hypercall::VcpuOp, &[7, 0, 0], 0)?;
        p.call(Hypercall::SchedOp, &[BLOCK, 0])
    })
    .run();
    assert!(matches!(outcome.end, End::BlockedForever), "{outcome}");
}

#[test]
fn vcpus_are_asked_about_and_set_up() {
    both_ways(|p| {
        p.call_gives("this one is up", Hypercall::VcpuOp, &[3, 0, 0], 1)?;
        p.call_gives("there is but one", Hypercall::VcpuOp, &[3, 1, 0], ENOENT)?;
        p.call_gives("or a thousandth", Hypercall::VcpuOp, &[3, 1000, 0], ENOENT)?;
        p.call_gives("it is up already", Hypercall::VcpuOp, &[1, 0, 0], 0)?;
        p.call_gives("no such operation", Hypercall::VcpuOp, &[99, 0, 0], ENOSYS)?;
        p.call_gives("it is not pinned", Hypercall::VcpuOp, &[12, 0, 0], EINVAL)?;
        // Run states, filled at once: state running.
        let area = p.words(&[9, 0, 0, 0, 0, 0]);
        let request = p.words(&[area]);
        p.call_gives("run states", Hypercall::VcpuOp, &[5, 0, request], 0)?;
        field(p, area)?;
        p.check("running", 0)?;
        let time = p.words(&[0, 0, 0, 0]);
        p.store(request, time)?;
        p.call_gives("time", Hypercall::VcpuOp, &[13, 0, request], 0)?;
        field(p, time + 24)?;
        p.a.test(eax, eax)?;
        p.a.setne(al)?;
        p.a.movzx(eax, al)?;
        p.check("the scale is there", 1)?;
        // vcpu_info moves; events show there.
        let page = p.pages(1);
        let info = p.words(&[p.layout.mfn(page).0, 0]);
        p.store(info + 8, 4090)?;
        p.call_gives("across a page's end", Hypercall::VcpuOp, &[10, 0, info], -6)?;
        p.store(info + 8, 128)?;
        p.call_gives("vcpu_info moves", Hypercall::VcpuOp, &[10, 0, info], 0)?;
        p.check_word("pending, masked as before", page + 128, 0x0101)?;
        p.check_word("every word may have something", page + 128 + 8, u64::MAX)?;
        p.call_gives("but once", Hypercall::VcpuOp, &[10, 0, info], EBUSY)?;
        let entry = p.layout.maddr(page).0 | 0x67;
        p.call_gives(
            "still the guest's to map",
            Hypercall::UpdateVaMapping,
            &[p.layout.free_page(0), entry, 2],
            0,
        )?;
        // Timers.
        let period = p.words(&[1000]);
        p.call_gives("a period below a millisecond", Hypercall::VcpuOp, &[6, 0, period], EINVAL)?;
        p.store(period, 10_000_000)?;
        p.call_gives("ten milliseconds", Hypercall::VcpuOp, &[6, 0, period], 0)?;
        p.call_gives("stopped", Hypercall::VcpuOp, &[9, 0, 0], 0)
    });
}

#[test]
fn an_nmi_comes_once_and_is_masked_until_iret() {
    for outcome in both_ways(|p| {
        p.pass_over(0, |p| p.call_gives("sent", Hypercall::VcpuOp, &[11, 0, 0], 0))?;
        // Its handler returned by the iret hypercall, so another one can come.
        p.pass_over(0, |p| p.call_gives("sent again", Hypercall::VcpuOp, &[11, 0, 0], 0))?;
        p.catch(|p| p.call(Hypercall::VcpuOp, &[11, 0, 0]))?;
        // That one was left without iret: the next stays pending.
        p.call_gives("sent and pending", Hypercall::VcpuOp, &[11, 0, 0], 0)?;
        p.print("on")
    }) {
        let traps = outcome.traps();
        assert_eq!(traps.len(), 3, "{outcome}");
        assert!(traps.iter().all(|trap| trap.entry == Entry::Vector(2)), "{outcome}");
        assert_eq!(outcome.console, "on");
    }
}

#[test]
fn a_last_vcpu_that_goes_down_powers_off() {
    let outcome = Program::assemble(&Setup::default(), |p| p.call(Hypercall::VcpuOp, &[2, 0, 0])).run();
    assert!(matches!(outcome.end, End::Shutdown(ShutdownReason::Poweroff)), "{outcome}");
}
