//! What becomes of a descriptor in the hands of a guest: what Xen stores, and what the guest may load.
//!
//! Both questions have an answer for each mode. The descriptor that counts for a load is the one in the
//! table, so the loads are worked out twice: for the quadword as the guest wrote it, and as Xen stored it.

use paravane_x86::{
    descriptor::{Descriptor, Kind, SystemType},
    gdt,
    load::{Obstacle, Privilege, may_load},
    mode::{Guest, Mode},
    segments::SegmentRegister,
    selector::Ring,
    submit::{Submission, submit},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::entry::Entry;
use crate::output::page::{Block, Page};

/// The answers for one descriptor in one mode.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Verdict {
    mode: Mode,
    entry: Entry,
    /// What Xen does to the first quadword.
    submission: Submission,
    /// What Xen does to the second one, which it checks as a descriptor of its own.
    upper: Option<Submission>,
    loads: Vec<Load>,
}

/// One attempt to load the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    register: SegmentRegister,
    ring: Ring,
    form: Form,
    result: Result<(), Obstacle>,
}

/// Which quadword is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// The one that the guest wrote.
    Submitted,
    /// The one that Xen made of it.
    Stored,
    /// Either, because they are the same or fare the same.
    Both,
}

/// The registers whose answers can differ; ES, FS and GS fare as DS does.
const REGISTERS: [SegmentRegister; 3] = [SegmentRegister::Cs, SegmentRegister::Ss, SegmentRegister::Ds];

/// Works out what becomes of `entry` in `mode`.
pub(in crate::commands) fn verdict(mode: Mode, entry: Entry) -> Verdict {
    let submission = submit(mode, entry.low);
    let stored = stored(&submission);
    let mut loads = Vec::new();
    for register in REGISTERS {
        for &ring in guest_rings(mode) {
            let attempt =
                |descriptor| may_load(mode, descriptor, register, Privilege { cpl: ring, rpl: ring });
            let load = |form, result| Load { register, ring, form, result };
            let submitted_result = attempt(entry.low);
            match stored.map(attempt) {
                None => loads.push(load(Form::Submitted, submitted_result)),
                Some(result) if result == submitted_result => loads.push(load(Form::Both, result)),
                Some(result) => {
                    loads.push(load(Form::Submitted, submitted_result));
                    loads.push(load(Form::Stored, result));
                }
            }
        }
    }
    let upper = entry.high.map(|high| submit(mode, Descriptor(high)));
    Verdict { mode, entry, submission, upper, loads }
}

/// What is in the table afterwards; `None` if Xen refuses.
pub(in crate::commands) fn stored(submission: &Submission) -> Option<Descriptor> {
    match submission {
        Submission::Accepted { stored, .. } => Some(*stored),
        Submission::Refused(_) => None,
    }
}

/// The rings in which a guest runs: its kernel's first.
fn guest_rings(mode: Mode) -> &'static [Ring] {
    match mode.guest() {
        Guest::Bits64 => &[Ring::R3],
        Guest::Bits32 => &[Ring::R1, Ring::R3],
    }
}

fn runs_there(mode: Mode, ring: Ring) -> &'static str {
    match mode.guest() {
        Guest::Bits64 => "kernel and user",
        Guest::Bits32 if ring == gdt::kernel_ring(mode) => "kernel",
        Guest::Bits32 => "user",
    }
}

fn register_names(register: SegmentRegister) -> &'static str {
    match register {
        SegmentRegister::Cs => "CS",
        SegmentRegister::Ss => "SS",
        SegmentRegister::Ds | SegmentRegister::Es | SegmentRegister::Fs | SegmentRegister::Gs => {
            "DS, ES, FS, GS"
        }
    }
}

impl Verdict {
    /// The answer in one line.
    pub(in crate::commands) fn headline(&self) -> String {
        let fate = match &self.submission {
            Submission::Refused(_) => return "refused with -EINVAL".to_owned(),
            Submission::Accepted { stored, changes, .. }
                if changes.is_empty() && *stored == self.entry.low =>
            {
                "stored as it is".to_owned()
            }
            Submission::Accepted { stored, .. } => format!("stored as {stored}"),
        };
        let takers: Vec<Option<String>> =
            guest_rings(self.mode).iter().map(|&ring| self.registers_that_take_it(ring)).collect();
        match takers.as_slice() {
            [None] | [None, None] => format!("{fate}; no segment register takes it"),
            [Some(registers)] => format!("{fate}; may be loaded into {registers}"),
            [Some(kernel), Some(user)] if kernel == user => format!("{fate}; may be loaded into {kernel}"),
            [kernel, user] => format!(
                "{fate}; {}; {}",
                allowed("the kernel", kernel.as_deref()),
                allowed("user programs", user.as_deref())
            ),
            _ => fate,
        }
    }

    /// The registers into which the stored descriptor may be loaded from `ring`, if any.
    fn registers_that_take_it(&self, ring: Ring) -> Option<String> {
        let registers: Vec<&str> = self
            .loads
            .iter()
            .filter(|load| load.ring == ring && load.form != Form::Submitted && load.result.is_ok())
            .map(|load| register_names(load.register))
            .collect();
        (!registers.is_empty()).then(|| registers.join(", "))
    }

    /// The mode that the answers are for.
    pub(in crate::commands) fn mode(&self) -> Mode {
        self.mode
    }

    /// Adds the answers to `page`.
    pub(in crate::commands) fn describe(&self, page: &mut Page) {
        match &self.submission {
            Submission::Refused(refusal) => {
                page.text(format!("Refused with -EINVAL: {refusal}. The table keeps what was there before."));
            }
            Submission::Accepted { rule, changes, stored } if changes.is_empty() => {
                page.text(format!("Stored as it is, {stored}: {rule}."));
            }
            Submission::Accepted { stored, changes, .. } => {
                page.push(Block::Verbatim(difference(self.entry.low, *stored)));
                page.list(changes);
            }
        }
        match &self.upper {
            Some(Submission::Refused(refusal)) => page.text(format!(
                "The upper half is checked as a descriptor of its own, and refused with -EINVAL: {refusal}."
            )),
            Some(Submission::Accepted { stored, changes, .. }) if !changes.is_empty() => page.text(format!(
                "The upper half is checked as a descriptor of its own, and stored as {stored}: {}.",
                changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            )),
            Some(Submission::Accepted { .. }) | None => {}
        }
        if self.mode == Mode::Guest64
            && self.entry.low.is_present()
            && self.entry.low.kind() == Kind::System(SystemType::CallGate)
        {
            page.text(
                "Nobody can use it: calling through the stored gate faults, and Xen emulates the transfer for 32-bit \
                 guests only.",
            );
        }
        self.describe_loads(page);
    }

    fn describe_loads(&self, page: &mut Page) {
        if let Some(obstacle) = self.common_obstacle() {
            page.text(format!(
                "No segment register takes it, in any ring: {}, because {obstacle}.",
                obstacle.fault(SegmentRegister::Ds)
            ));
            return;
        }
        let differs = self.loads.iter().any(|load| load.form != Form::Both);
        let rows = self.loads.iter().map(|load| {
            let mut row = vec![
                register_names(load.register).to_owned(),
                format!("{} ({})", load.ring, runs_there(self.mode, load.ring)),
            ];
            if differs {
                row.push(
                    match load.form {
                        Form::Submitted => "as submitted",
                        Form::Stored => "as stored",
                        Form::Both => "both",
                    }
                    .to_owned(),
                );
            }
            row.push(match load.result {
                Ok(()) => "yes".to_owned(),
                Err(obstacle) => format!("no, {}: {obstacle}", obstacle.fault(load.register)),
            });
            row
        });
        if differs {
            page.table(&["Load into", "From ring", "Descriptor", "Allowed"], rows);
        } else {
            page.table(&["Load into", "From ring", "Allowed"], rows);
        }
    }

    /// The obstacle that all loads meet, if it does not depend on register, ring and form.
    fn common_obstacle(&self) -> Option<Obstacle> {
        let first = self.loads.first()?.result.err()?;
        let same = self.loads.iter().all(|load| load.result == Err(first));
        (same && matches!(first, Obstacle::System(_))).then_some(first)
    }

    /// The answers as data.
    pub(in crate::commands) fn to_json(&self) -> Value {
        let loads: Vec<Value> = self
            .loads
            .iter()
            .map(|load| {
                json!({
                    "registers": register_names(load.register).split(", ").collect::<Vec<_>>(),
                    "ring": load.ring,
                    "descriptor": load.form,
                    "allowed": load.result.is_ok(),
                    "fault": load.result.err().map(|obstacle| obstacle.fault(load.register)),
                    "reason": load.result.err().map(|obstacle| obstacle.to_string()),
                })
            })
            .collect();
        json!({
            "guest": self.mode.guest(),
            "hypervisor": self.mode.hypervisor(),
            "xen": submission_json(self.entry.low, &self.submission),
            "xen_upper_half": self
                .entry
                .high
                .zip(self.upper.as_ref())
                .map(|(high, submission)| submission_json(Descriptor(high), submission)),
            "loads": loads,
        })
    }
}

/// Into which of `registers` somebody may load a descriptor, in words.
fn allowed(who: &str, registers: Option<&str>) -> String {
    match registers {
        Some(registers) => format!("{who} may load it into {registers}"),
        None => format!("{who} may not load it"),
    }
}

/// What Xen does to `submitted`, as data.
pub(in crate::commands) fn submission_json(submitted: Descriptor, submission: &Submission) -> Value {
    match submission {
        Submission::Accepted { stored, changes, rule } => json!({
            "outcome": if *stored == submitted { "accepted" } else { "changed" },
            "stored": stored.to_string(),
            "changes": changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "reason": rule.to_string(),
        }),
        Submission::Refused(refusal) => json!({
            "outcome": "refused",
            "errno": "EINVAL",
            "reason": refusal.to_string(),
        }),
    }
}

/// Both quadwords below one another, with the digits marked that differ.
fn difference(submitted: Descriptor, stored: Descriptor) -> String {
    let (before, after) = (submitted.to_string(), stored.to_string());
    let marks: String =
        before.chars().zip(after.chars()).map(|(old, new)| if old == new { ' ' } else { '^' }).collect();
    format!("submitted  {before}\nstored     {after}\n           {}", marks.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headline(mode: Mode, low: u64) -> String {
        verdict(mode, Entry { low: Descriptor(low), high: None }).headline()
    }

    #[test]
    fn the_headline_names_what_is_stored_and_what_takes_it() {
        for (mode, low, line) in [
            (Mode::Guest64, 0x00af_fb00_0000_ffff, "stored as it is; may be loaded into CS, DS, ES, FS, GS"),
            (
                Mode::Guest64,
                0x00cf_b200_0000_ffff,
                "stored as 0x00cff2000000ffff; may be loaded into SS, DS, ES, FS, GS",
            ),
            (
                Mode::Guest32On64,
                0x00cf_b200_0000_ffff,
                "stored as it is; the kernel may load it into SS, DS, ES, FS, GS; user programs may not load it",
            ),
            (Mode::Guest32On64, 0x00af_fb00_0000_ffff, "refused with -EINVAL"),
            (Mode::Guest64, 0x0000_8900_0000_0067, "refused with -EINVAL"),
            (Mode::Guest64, 0x00cf_7300_0000_ffff, "stored as it is; no segment register takes it"),
        ] {
            assert_eq!(headline(mode, low), line, "{mode}: {low:#x}");
        }
    }

    #[test]
    fn the_digits_that_xen_changes_are_marked() {
        let marked = difference(Descriptor(0x00cf_b200_0000_ffff), Descriptor(0x00cf_f200_0000_ffff));
        assert_eq!(
            marked,
            "submitted  0x00cfb2000000ffff\nstored     0x00cff2000000ffff\n                 ^"
        );
    }
}
