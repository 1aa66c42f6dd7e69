//! How control passes between a guest's user mode, a guest's kernel and the hypervisor.
//!
//! Each [`Transition`] is an ordered list of steps. A step says who acts (the CPU, the hypervisor or the guest),
//! which registers change, and from which MSR or table each new value comes. [`Transition::walk`] plays the
//! steps on the registers with which the transition starts, so that every change shows its value before and
//! after. Registers are the CPU's own: while the hypervisor runs they hold the hypervisor's values, and what it
//! has saved for the guest is told in the step's text.
//!
//! Three facts explain most of what is odd:
//!
//! * Kernel and user of a 64-bit guest are both in ring 3. Which of the two runs is a bit in the hypervisor, and
//!   decides whether SYSCALL is a hypercall or a system call, which page-table root is loaded and which GS
//!   base. CS and RIP decide nothing.
//! * The hypervisor leaves by SYSRET whenever it can. That is why handlers start with CS 0xe033 and SS 0xe02b
//!   (see [`star`]) and why frames carry RCX and R11.
//! * RFLAGS.IF is always set while a guest runs. The event mask in `vcpu_info` is the guest's interrupt flag.
//!
//! Where a CPU has FRED, Xen may enter and leave by FRED's own instructions instead; what a guest sees is the
//! same, and the steps here describe the IDT, SYSCALL and SYSENTER.
//!
//! Sources are cited step by step. The hypervisor's steps are those of Xen 4.20 to 4.22.

mod model;
mod narrow;
pub mod star;
mod steps;
mod wide;

use serde::Serialize;

pub use self::model::{Actor, Change, Place, Register, Source, Start, Step, Transition, Value};

/// One register's change in a played step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlayedChange {
    /// The register.
    pub register: Register,
    /// Its value before the step.
    pub before: Value,
    /// Its value after the step.
    pub after: Value,
    /// Where the new value comes from.
    pub source: Source,
}

/// A step with the values before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlayedStep {
    /// The step's number, from 1.
    pub number: usize,
    /// Who acts.
    pub actor: Actor,
    /// What happens.
    pub text: &'static str,
    /// What changes.
    pub changes: Vec<PlayedChange>,
    /// Where to read about it.
    pub citations: &'static [&'static str],
}

/// Every transition: those of 64-bit guests, then those of 32-bit guests.
pub fn all() -> impl Iterator<Item = &'static Transition> {
    wide::ALL.iter().chain(narrow::ALL).copied()
}

/// The transition of that name, such as `hypercall-64`.
///
/// ```
/// use paravane_x86::transitions::{Register, Value, find};
///
/// let transition = find("syscall-64").expect("it is in the table");
/// let entry = &transition.walk()[0];
/// let cs = entry.changes.iter().find(|change| change.register == Register::Cs);
/// assert_eq!(cs.map(|change| change.after.to_string()), Some("0xe008".to_owned()));
/// ```
pub fn find(name: &str) -> Option<&'static Transition> {
    all().find(|transition| transition.name == name)
}

impl Transition {
    /// Plays the steps.
    pub fn walk(&self) -> Vec<PlayedStep> {
        let mut registers: Vec<(Register, Value)> = self.start.registers().collect();
        let mut played = Vec::with_capacity(self.steps.len());
        for (number, step) in (1..).zip(self.steps) {
            let changes = step
                .changes
                .iter()
                .filter_map(|change| {
                    let (_, value) =
                        registers.iter_mut().find(|(register, _)| *register == change.register)?;
                    let before = core::mem::replace(value, change.to);
                    Some(PlayedChange {
                        register: change.register,
                        before,
                        after: change.to,
                        source: change.source,
                    })
                })
                .collect();
            played.push(PlayedStep {
                number,
                actor: step.actor,
                text: step.text,
                changes,
                citations: step.citations,
            });
        }
        played
    }

    /// The value of a register when the transition is over.
    pub fn ends_with(&self, register: Register) -> Value {
        let last = self.steps.iter().rev().find_map(|step| {
            step.changes.iter().rev().find(|change| change.register == register).map(|change| change.to)
        });
        last.unwrap_or_else(|| self.start.value(register))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdt;
    use crate::mode::{Guest, Mode};
    use crate::segments::{
        FLAT_RING1_DS, FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64, HYPERVISOR_CS, HYPERVISOR_DS,
    };
    use crate::selector::Selector;

    #[test]
    fn names_are_different_and_end_in_the_guests_width() {
        let names: Vec<&str> = all().map(|transition| transition.name).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name), "{name}");
        }
        for transition in all() {
            let suffix = match transition.guest {
                Guest::Bits64 => "-64",
                Guest::Bits32 => "-32",
            };
            assert!(transition.name.ends_with(suffix), "{}", transition.name);
            assert_eq!(find(transition.name), Some(transition));
        }
    }

    #[test]
    fn every_change_of_every_step_is_played_and_every_step_cites_its_source() {
        for transition in all() {
            let played = transition.walk();
            assert_eq!(played.len(), transition.steps.len());
            for (played, step) in played.iter().zip(transition.steps) {
                assert_eq!(played.changes.len(), step.changes.len(), "{} {}", transition.name, step.text);
                assert!(!step.citations.is_empty(), "{} {}", transition.name, step.text);
                assert!(step.text.ends_with('.'), "{}", step.text);
            }
        }
    }

    #[test]
    fn the_mode_at_the_end_is_the_place_at_the_end() {
        for transition in all() {
            let mode = transition.ends_with(Register::Mode);
            let expected = match transition.to {
                Place::Kernel => Value::Text("kernel"),
                Place::User => Value::Text("user"),
            };
            assert_eq!(mode, expected, "{}", transition.name);
        }
    }

    #[test]
    fn control_ends_in_the_guest_on_segments_it_may_use() {
        for transition in all() {
            let mode = match transition.guest {
                Guest::Bits64 => Mode::Guest64,
                Guest::Bits32 => Mode::Guest32On64,
            };
            for register in [Register::Cs, Register::Ss] {
                if let Value::Selector(selector) = transition.ends_with(register) {
                    let descriptor = gdt::supplied_descriptor(mode, selector);
                    let dpl = descriptor.map(|descriptor| u8::from(descriptor.dpl()));
                    assert!(dpl.is_some_and(|dpl| dpl > 0), "{} {register} {selector}", transition.name);
                }
            }
        }
    }

    #[test]
    fn the_cpu_enters_the_hypervisor_on_the_hypervisors_own_segments() {
        let mut entries = 0;
        for transition in all() {
            for step in transition.walk() {
                let of = |wanted| step.changes.iter().find(|change| change.register == wanted);
                let (Some(cs), Some(ss)) = (of(Register::Cs), of(Register::Ss)) else { continue };
                if cs.after == Value::Selector(HYPERVISOR_CS) {
                    assert_eq!(step.actor, Actor::Cpu, "{}", transition.name);
                    let null = ss.source == Source::LongModeNull;
                    let expected = if null { Selector::NULL } else { HYPERVISOR_DS };
                    assert_eq!(ss.after, Value::Selector(expected), "{}", transition.name);
                    entries += 1;
                }
            }
        }
        assert!(entries >= 20, "{entries}");
    }

    #[test]
    fn every_handler_of_a_64_bit_guest_is_entered_by_sysret() {
        for name in [
            "syscall-64",
            "syscall-compat-64",
            "sysenter-64",
            "int80-64",
            "exception-user-64",
            "exception-kernel-64",
            "event-user-64",
            "event-kernel-64",
        ] {
            let transition = find(name).unwrap();
            assert_eq!(transition.ends_with(Register::Cs), Value::Selector(FLAT_RING3_CS64), "{name}");
            assert_eq!(transition.ends_with(Register::Ss), Value::Selector(FLAT_RING3_SS64), "{name}");
            assert_eq!(
                transition.ends_with(Register::Rcx),
                transition.ends_with(Register::Rip),
                "{name}: RCX holds the handler's address"
            );
            let last = transition.walk().pop().unwrap();
            assert!(last.changes.iter().any(|change| change.source == Source::Star63To48Plus16), "{name}");
        }
    }

    #[test]
    fn an_event_finds_the_mask_clear_and_leaves_it_set() {
        for name in ["event-user-64", "event-kernel-64", "event-user-32", "event-kernel-32"] {
            let transition = find(name).unwrap();
            assert_eq!(transition.start.value(Register::EventMask), Value::Number(0), "{name}");
            assert_eq!(transition.ends_with(Register::EventMask), Value::Number(1), "{name}");
        }
    }

    #[test]
    fn star_gives_the_selectors_of_the_segment_map() {
        assert_eq!(star::SYSCALL_CS, HYPERVISOR_CS);
        assert_eq!(star::SYSCALL_SS, HYPERVISOR_DS);
        assert_eq!(star::SYSRETQ_CS, FLAT_RING3_CS64);
        assert_eq!(star::SYSRET_SS, FLAT_RING3_SS64);
        assert_eq!(star::SYSRETL_CS, FLAT_RING3_CS32);
    }

    #[test]
    fn coming_from_user_mode_a_64_bit_guest_changes_root_and_gs_base_together() {
        for transition in all().filter(|transition| transition.guest == Guest::Bits64) {
            let changed = |register| transition.ends_with(register) != transition.start.value(register);
            let crossed = transition.from != transition.to;
            assert_eq!(changed(Register::Cr3), crossed, "{}", transition.name);
            assert_eq!(changed(Register::GsBase), crossed, "{}", transition.name);
        }
    }

    #[test]
    fn a_32_bit_guest_keeps_its_root_and_gs_base() {
        for transition in all().filter(|transition| transition.guest == Guest::Bits32) {
            for register in [Register::Cr3, Register::GsBase] {
                assert_eq!(transition.ends_with(register), transition.start.value(register));
            }
            if transition.to == Place::Kernel && transition.name != "hypercall-32" {
                let ss = transition.ends_with(Register::Ss);
                assert!(
                    matches!(ss, Value::Text(_)) || ss == Value::Selector(FLAT_RING1_DS),
                    "{} {ss}",
                    transition.name
                );
            }
        }
    }
}
