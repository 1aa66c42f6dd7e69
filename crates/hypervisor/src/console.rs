//! What a guest writes to Xen's own console.
//!
//! Early in boot, before the console ring works, a guest kernel prints through `console_io`. The bytes are kept
//! here, as the guest wrote them, until the caller takes them; what does not fit is counted and dropped, so that
//! a guest cannot make the hypervisor grow.

/// The most bytes that are kept.
pub(crate) const CAPACITY: usize = 64 * 1024;

/// Console output on its way out.
#[derive(Debug, Default)]
pub(crate) struct ConsoleOutput {
    bytes: Vec<u8>,
    dropped: u64,
}

/// Console output of a guest since it was last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleText {
    /// The bytes, unfiltered: whoever shows them on a terminal must make them harmless first.
    pub bytes: Vec<u8>,
    /// How many more there were after these, which did not fit.
    pub dropped: u64,
}

impl ConsoleOutput {
    /// Keeps `bytes` as far as there is room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let (kept, dropped) = bytes.split_at(bytes.len().min(CAPACITY - self.bytes.len()));
        self.bytes.extend_from_slice(kept);
        self.dropped += dropped.len() as u64;
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.dropped == 0
    }

    /// Takes what is kept.
    pub(crate) fn take(&mut self) -> ConsoleText {
        let Self { bytes, dropped } = core::mem::take(self);
        ConsoleText { bytes, dropped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut output = ConsoleOutput::default();
        output.push(&[b'a'; CAPACITY - 1]);
        output.push(b"bcd");
        output.push(b"e");
        let text = output.take();
        assert_eq!((text.bytes.len(), text.bytes.last(), text.dropped), (CAPACITY, Some(&b'b'), 3));
        assert_eq!(output.take(), ConsoleText::default());
    }
}
