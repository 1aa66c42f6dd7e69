//! The Xen side of the PV interface: all guest-visible state and its rules.
//!
//! [`Domain`] is a running guest as its hypervisor sees it. It is a state machine over values: an engine reports
//! what a vCPU did as an [`Exit`](paravane_engine::Exit), [`Domain::handle`] changes the domain's state and the
//! vCPU's registers, and says with a [`Verdict`] how to go on. It knows no engine, does no I/O, reads no clock and
//! starts no thread: the time is a parameter ([`Tsc`]), notifications to backends and TLB flushes are
//! collected for the caller to carry out.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `domain.rs`, `vcpu.rs` | the state |
//! | `exits.rs` | what each kind of exit leads to |
//! | `bounce.rs` | the frames by which control passes to the guest kernel |
//! | `dispatch.rs`, `hypercalls/` | the hypercalls, a file for each family |
//! | `frames/` | owners, types and counts of machine frames; page-table validation |
//! | `events/`, `grants/` | event channels; grant tables |
//! | `schedule.rs`, `timers.rs`, `watchdog.rs` | which vCPU can run, what the others wait for |
//! | `time.rs`, `timekeeping.rs`, `runstate.rs`, `areas.rs` | the clock, and what is published of it to the guest |
//! | `claims.rs` | what all of these ask of frames |
//! | `emulate/` | privileged instructions |
//! | `support.rs` | which of the interface is done |
//! | `guest.rs` | reading and writing guest memory at guest addresses |
//!
//! Whatever a guest does ends in a result, a fault delivered to it, or [`Verdict::Crash`] with the reason.
#![forbid(unsafe_code)]

#[cfg(test)]
mod advisories;
mod areas;
mod bounce;
mod claims;
mod console;
mod crash;
mod dispatch;
mod domain;
mod emulate;
mod events;
mod exits;
mod frames;
mod grants;
mod guest;
mod history;
mod hypercalls;
mod refusal;
mod runstate;
mod schedule;
mod selectors;
mod support;
#[cfg(test)]
mod testing;
mod time;
mod timekeeping;
mod timers;
mod trace;
mod vcpu;
mod watchdog;

pub use console::ConsoleText;
pub use crash::{CrashCause, CrashReport};
pub use domain::{CONTROL_DOMAIN, Domain, DomainConfig, Flush, Verdict};
pub use emulate::CpuidPolicy;
pub use events::PortError;
pub use frames::{AdoptError, BadSize, Machine, Miscount, ShadowWrite};
pub use grants::{BackendGrant, GrantAccess, GrantRefusal};
pub use history::PastHypercall;
pub use schedule::StartedVcpu;
pub use support::Support;
pub use time::{ClockSource, Tsc};
pub use vcpu::Vcpu;
