//! Frames that no domain owns, in blocks of powers of two.
//!
//! A guest may ask for aligned runs of frames, and for frames below a boundary. Blocks merge with their buddy
//! when both are free, so every operation costs a logarithm whatever order the guest frees in.

use std::collections::BTreeSet;

/// log2 of the largest block, in frames, plus one. Guests may ask for 2^9; larger blocks only keep the sets small.
const ORDERS: u32 = 19;

/// The free frames, by number.
#[derive(Debug, Default)]
pub(crate) struct FreeFrames {
    /// The first frames of the free blocks of each order.
    blocks: [BTreeSet<u64>; ORDERS as usize],
}

impl FreeFrames {
    /// Adds `count` frames from `first`. They must not be free yet.
    pub(crate) fn insert(&mut self, first: u64, count: u64) {
        let (mut at, end) = (first, first.saturating_add(count));
        while at < end {
            let aligned = at.trailing_zeros().min(ORDERS - 1);
            let fitting = (end - at).ilog2();
            let order = aligned.min(fitting);
            self.insert_block(at, order);
            at += 1 << order;
        }
    }

    /// Takes an aligned run of `1 << order` frames, all of them below `limit`. Lower frames are preferred.
    pub(crate) fn take(&mut self, order: u32, limit: u64) -> Option<u64> {
        let fits = |first: u64| first.checked_add(1 << order).is_some_and(|end| end <= limit);
        let found = (order..ORDERS).find_map(|larger| {
            self.blocks[larger as usize].first().filter(|first| fits(**first)).map(|first| (larger, *first))
        });
        let (larger, first) = found?;
        self.blocks[larger as usize].remove(&first);
        for half in order..larger {
            self.blocks[half as usize].insert(first + (1 << half));
        }
        Some(first)
    }

    fn insert_block(&mut self, mut first: u64, mut order: u32) {
        while order + 1 < ORDERS {
            let buddy = first ^ 1 << order;
            if !self.blocks[order as usize].remove(&buddy) {
                break;
            }
            first = first.min(buddy);
            order += 1;
        }
        self.blocks[order as usize].insert(first);
    }

    /// How many frames are free.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.blocks.iter().zip(0..).map(|(blocks, order): (_, u32)| (blocks.len() as u64) << order).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_is_aligned_and_below_the_limit() {
        let mut free = FreeFrames::default();
        free.insert(0x103, 0x300);
        assert_eq!(free.take(4, u64::MAX), Some(0x110));
        assert_eq!(free.take(0, 0x103), None);
        assert_eq!(free.take(0, 0x104), Some(0x103));
        assert_eq!(free.take(10, u64::MAX), None);
        assert_eq!(free.count(), 0x300 - 16 - 1);
    }

    #[test]
    fn single_frames_merge_into_the_block_they_came_from() {
        let mut free = FreeFrames::default();
        free.insert(0x200, 0x200);
        let taken: Vec<_> = std::iter::from_fn(|| free.take(0, u64::MAX)).collect();
        assert_eq!(taken.len(), 0x200);
        for frame in taken.into_iter().rev() {
            free.insert(frame, 1);
        }
        assert_eq!(free.take(9, u64::MAX), Some(0x200));
    }

    proptest! {
        #[test]
        fn no_frame_is_handed_out_twice(orders in prop::collection::vec((0_u32..6, any::<bool>()), 1..200)) {
            let mut free = FreeFrames::default();
            free.insert(77, 500);
            let mut taken = BTreeMap::new();
            for (order, give_back) in orders {
                if give_back && let Some((first, order)) = taken.pop_first() {
                    free.insert(first, 1_u64 << order);
                } else if let Some(first) = free.take(order, 577) {
                    prop_assert!(first >= 77 && first + (1 << order) <= 577 && first % (1_u64 << order) == 0);
                    taken.insert(first, order);
                }
                let mut end = 0;
                for (first, order) in &taken {
                    prop_assert!(*first >= end);
                    end = first + (1_u64 << order);
                }
                let held: u64 = taken.values().map(|order| 1_u64 << order).sum();
                prop_assert_eq!(free.count() + held, 500);
            }
        }
    }
}
