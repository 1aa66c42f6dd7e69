//! The guest's memory as the crashed vCPU saw it.

use std::fmt::Write as _;

use paravane_abi::units::{GuestVirt, MachAddr, PAGE_SHIFT, PAGE_SIZE};
use paravane_engine::VcpuContext;
use paravane_memory::{Memory, paging};
use paravane_x86::pte::Pte;

use crate::{commands::pte_summary, run::symbols::Symbols};

pub(super) struct View<'a> {
    pub(super) memory: &'a Memory,
    pub(super) context: &'a VcpuContext,
    pub(super) symbols: &'a Symbols,
}

impl View<'_> {
    /// An address, with its symbol where that is known.
    pub(super) fn place(&self, address: u64) -> String {
        self.symbols.place(address)
    }

    /// The page of an address, if it is mapped.
    pub(super) fn page(&self, address: u64) -> Option<paging::Translation> {
        let at = GuestVirt(address);
        at.is_canonical().then(|| paging::inspect(self.memory, self.context.root()?, at).1)?
    }

    /// As many bytes from `address` on as can be read, at most `count`.
    pub(super) fn read(&self, address: u64, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < count {
            let at = address.wrapping_add(bytes.len() as u64);
            let Some(base) = self.page(at).map(|page| page.frame.0 << PAGE_SHIFT) else { break };
            let room = (PAGE_SIZE - at % PAGE_SIZE).min(count - bytes.len() as u64);
            let mut piece = vec![0; usize::try_from(room).unwrap_or(0)];
            if self.memory.read(MachAddr(base + at % PAGE_SIZE), &mut piece).is_err() {
                break;
            }
            bytes.extend(piece);
        }
        bytes
    }

    /// How an address is reached, or where the way ends.
    pub(super) fn walk(&self, out: &mut String, what: &str, address: u64) {
        let _ = writeln!(out, "\npage walk of {what}, {}:", self.place(address));
        let Some(root) = self.context.root() else {
            out.push_str("  there is no page table\n");
            return;
        };
        if !GuestVirt(address).is_canonical() {
            out.push_str("  it is not canonical: bits 63 to 47 differ, and no page can be there\n");
            return;
        }
        let (steps, found) = paging::inspect(self.memory, root, GuestVirt(address));
        for step in steps {
            let entry = match step.entry {
                Some(entry) => format!("{entry:#018x}  {}", pte_summary(step.level, Pte(entry))),
                None => "not in guest memory".to_owned(),
            };
            let _ = writeln!(out, "  L{} at {:#x}: {entry}", step.level, step.address);
        }
        match found {
            Some(page) => {
                let may = |allowed: bool, what: &'static str| if allowed { what } else { "" };
                let _ = writeln!(
                    out,
                    "  frame {}: readable{}{}{}",
                    page.frame,
                    may(page.writable, ", writable"),
                    may(page.executable, ", executable"),
                    // Both modes of a 64-bit PV guest run in ring 3.
                    may(!page.user, ", but not from ring 3, where a PV guest runs")
                );
            }
            None => out.push_str("  not mapped\n"),
        }
    }
}
