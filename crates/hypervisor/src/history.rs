//! The last hypercalls, kept for the crash report.

use std::fmt;

use paravane_abi::{errno::Errno, hypercall::Hypercall};

/// A hypercall that was carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PastHypercall {
    /// Its number, as the guest gave it.
    pub number: u64,
    /// Its arguments.
    pub args: [u64; 5],
    /// What it returned; `None` for one that does not return.
    pub result: Option<i64>,
}

/// How many are kept.
const KEPT: usize = 16;

/// A ring of the last hypercalls.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    entries: [PastHypercall; KEPT],
    /// How many there were in all.
    count: usize,
}

impl History {
    pub(crate) fn push(&mut self, hypercall: PastHypercall) {
        self.entries[self.count % KEPT] = hypercall;
        self.count = self.count.wrapping_add(1);
    }

    /// The kept ones, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PastHypercall> {
        let kept = self.count.min(KEPT);
        (self.count - kept..self.count).map(|index| &self.entries[index % KEPT])
    }
}

impl fmt::Display for PastHypercall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = u32::try_from(self.number).ok().and_then(Hypercall::from_number);
        let used = known.map_or(5, |hypercall| hypercall.args64().len()).min(5);
        let args: Vec<String> = self.args[..used].iter().map(|arg| format!("{arg:#x}")).collect();
        match known {
            Some(hypercall) => write!(f, "{}({})", hypercall.name(), args.join(", "))?,
            None => write!(f, "hypercall_{}({})", self.number, args.join(", "))?,
        }
        match self.result {
            None => f.write_str(" = ?"),
            Some(result) => {
                let errno = result.checked_neg().and_then(|number| u16::try_from(number).ok());
                match errno.and_then(Errno::from_number) {
                    Some(errno) => write!(f, " = -{}", errno.name()),
                    None => write!(f, " = {result:#x}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_in_order() {
        let mut history = History::default();
        for number in 0..20 {
            history.push(PastHypercall { number, ..PastHypercall::default() });
        }
        let numbers: Vec<u64> = history.iter().map(|past| past.number).collect();
        assert_eq!(numbers, (4..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_past_hypercall_reads_as_a_call() {
        let past = PastHypercall { number: 29, args: [1, 0, 7, 7, 7], result: Some(-22) };
        assert!(past.to_string().starts_with("sched_op(0x1, 0x0") && past.to_string().ends_with("= -EINVAL"));
    }
}
