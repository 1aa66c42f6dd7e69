//! Code pages and their blocks.
//!
//! A *code page* is a page of guest code as it can be executed: a linear page, the machine frame behind it, and the
//! [`Env`] its code was translated for. It has a number, and a per-mode table in the arena says which number is
//! current at a linear address. A change of address space clears that small table, nothing else: translations,
//! jump caches and links stay, and the pads of blocks find out by comparing numbers whether they still apply. A number
//! is never given out twice before the whole cache is emptied, so dropping a page needs no unlinking either: its
//! number can no longer become current.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use paravane_abi::units::Mfn;
use paravane_engine::GuestMode;

use crate::block::Need;
use crate::emit::Bits;
use crate::flow::Pad;
use crate::limits::Strict;
use crate::sites::PageId;
use crate::walk::ALIVE_PAGES;

/// What translated code takes for granted about the CPU's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Env {
    pub(crate) mode: GuestMode,
    pub(crate) bits: Bits,
    /// Segments other than FS and GS are based at 0.
    pub(crate) flat: bool,
    /// Segments whose limit or type must be checked.
    pub(crate) strict: Strict,
    /// The last offset that code may lie at.
    pub(crate) code_limit: u64,
    /// CR0.TS.
    pub(crate) task_switched: bool,
    /// EFLAGS.AC.
    pub(crate) aligned: bool,
    /// One instruction at a time.
    pub(crate) single: bool,
}

/// A translated block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Where its body starts: flags in the host's register.
    pub(crate) body: u32,
    /// Where whoever has them in memory enters, if there is such a place.
    pub(crate) kept: Option<u32>,
    /// Its pad, if anybody needed one.
    pub(crate) pad: Option<Pad>,
    /// Whether the body polls for kicks.
    pub(crate) polls: bool,
    /// The code page that its only instruction runs into.
    pub(crate) second: Option<PageId>,
}

/// A page of code.
#[derive(Debug)]
pub(crate) struct CodePage {
    pub(crate) linear: u64,
    pub(crate) frame: Mfn,
    pub(crate) env: Env,
    pub(crate) alive: bool,
    pub(crate) blocks: Blocks,
    /// Variants that check each access by itself.
    pub(crate) plain: Blocks,
}

/// Blocks by their offset in the page.
pub(crate) type Blocks = HashMap<u16, Block, BuildHasherDefault<Mix>>;

impl CodePage {
    /// The blocks among which one for `need` is.
    pub(crate) fn blocks(&self, need: Need) -> &Blocks {
        match need {
            Need::Plain => &self.plain,
            Need::Body | Need::Poll | Need::Pad => &self.blocks,
        }
    }

    /// As [`CodePage::blocks`], to add one.
    pub(crate) fn blocks_mut(&mut self, need: Need) -> &mut Blocks {
        match need {
            Need::Plain => &mut self.plain,
            Need::Body | Need::Poll | Need::Pad => &mut self.blocks,
        }
    }
}

/// All code pages.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pages: Vec<CodePage>,
    current: HashMap<(u64, Mfn, Env), PageId, BuildHasherDefault<Mix>>,
    by_frame: HashMap<Mfn, Vec<PageId>, BuildHasherDefault<Mix>>,
}

impl Pages {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.current.clear();
        self.by_frame.clear();
    }

    /// The number of the code page at a linear page, made if needed.
    pub(crate) fn number(&mut self, linear: u64, frame: Mfn, env: Env) -> PageId {
        if let Some(id) = self.current.get(&(linear, frame, env)) {
            return *id;
        }
        let id = PageId(u32::try_from(self.pages.len() + 1).expect("the cache is emptied long before"));
        let page =
            CodePage { linear, frame, env, alive: true, blocks: Blocks::default(), plain: Blocks::default() };
        self.pages.push(page);
        self.current.insert((linear, frame, env), id);
        self.by_frame.entry(frame).or_default().push(id);
        id
    }

    /// Whether the numbers that the walk of translated code knows are used up.
    pub(crate) fn is_full(&self) -> bool {
        self.pages.len() + 2 >= ALIVE_PAGES
    }

    /// A page by number.
    pub(crate) fn get(&self, id: PageId) -> Option<&CodePage> {
        self.pages.get((id.0 as usize).checked_sub(1)?)
    }

    /// A page by number, to add blocks.
    pub(crate) fn get_mut(&mut self, id: PageId) -> Option<&mut CodePage> {
        self.pages.get_mut((id.0 as usize).checked_sub(1)?)
    }

    /// Whether a page's code still is what was translated.
    pub(crate) fn is_alive(&self, id: PageId) -> bool {
        self.get(id).is_some_and(|page| page.alive)
    }

    /// Drops all code of a frame; returns the pages that died.
    pub(crate) fn drop_frame(&mut self, frame: Mfn) -> Vec<PageId> {
        let dead = self.by_frame.remove(&frame).unwrap_or_default();
        for id in &dead {
            if let Some(page) = self.pages.get_mut(id.0 as usize - 1) {
                page.alive = false;
                page.blocks = Blocks::default();
                page.plain = Blocks::default();
                self.current.remove(&(page.linear, page.frame, page.env));
            }
        }
        dead
    }
}

/// A cheap hash for keys that are numbers a guest cannot use for more than slowing itself down: the tables it fills
/// are its own.
#[derive(Debug, Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value.cast_unsigned() as u64);
    }
}
