//! What the emitter writes down about a block, so that it can be verified and shown.

use std::collections::HashSet;

use iced_x86::Instruction;

use crate::classify::Class;
use crate::emit::Decoded;
use crate::flow::Pad;

/// What the emitter writes down about a block for its verification.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// The code of guest instructions, in order. What comes before the first belongs to none.
    pub(crate) pieces: Vec<Piece>,
    /// The number of the block's first site.
    pub(super) first_site: usize,
    /// Where jumps from elsewhere come in.
    pub(super) bodies: Vec<u32>,
    /// Entries of all blocks that were placed.
    entries: HashSet<u32>,
}

/// Where a guest instruction's code starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) hot: u32,
    pub(crate) cold: u32,
    pub(crate) instruction: Instruction,
    /// Whether it is MOVS or STOS in place.
    pub(super) is_move: bool,
}

impl Record {
    /// Forgets all blocks.
    pub(crate) fn reset(&mut self) {
        self.entries.clear();
    }

    /// A block starts, whose first site will have this number.
    pub(crate) fn start(&mut self, first_site: usize) {
        self.pieces.clear();
        self.first_site = first_site;
        self.bodies.clear();
    }

    /// Jumps from elsewhere may come in here.
    pub(crate) fn body(&mut self, at: u32) {
        self.bodies.push(at);
    }

    /// A guest instruction starts.
    pub(crate) fn instruction(&mut self, decoded: &Decoded, hot: u32, cold: u32) {
        if cfg!(debug_assertions) {
            let is_move = decoded.class == Class::Move;
            self.pieces.push(Piece { hot, cold, instruction: decoded.instruction, is_move });
        }
    }

    /// Code was placed that can be jumped to here.
    pub(crate) fn entry(&mut self, at: u32) {
        if cfg!(debug_assertions) {
            self.entries.insert(at);
        }
    }

    /// The same for a pad.
    pub(crate) fn pad(&mut self, pad: Option<Pad>) {
        for at in pad.into_iter().flat_map(|pad| [pad.indirect, pad.far]) {
            self.entry(at);
        }
    }

    /// Whether a block can be jumped to here.
    pub(crate) fn is_entry(&self, at: u32) -> bool {
        self.entries.contains(&at)
    }
}
