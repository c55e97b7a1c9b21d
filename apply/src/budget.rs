//! The memory that batches may take in this process, shared by its mirrors (I5).
//!
//! A mirror holds at most four batches: one gathered, one waiting, one prepared, one written; and
//! of the prepared one also the text of its new rows. So each mirror's batch is a fifth of its share. What librdkafka holds ready is bounded besides,
//! for each that follows its stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::batch::Limits;

const BATCHES_PER_MIRROR: usize = 5;
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Below this, batches would be too small to be worth their round trips.
const BATCH_BYTES_MIN: usize = 256 * 1024;

/// librdkafka's queue needs no more to have the next fetch at hand.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Below this, it would hold less than one fetch brings.
const QUEUE_BYTES_MIN: usize = 1024 * 1024;

/// The memory that a process has for rows on their way, and how many mirrors share it.
#[derive(Clone, Debug)]
pub struct Memory {
    batches_bytes: usize,
    queue_bytes: usize,
    sharers: Arc<AtomicUsize>,
}

impl Memory {
    /// Of a process that may use `bytes`. Somewhat more than half is for batches; the rest is
    /// for what is fetched, and for the parts of chunks that are being loaded.
    pub fn of(bytes: usize) -> Memory {
        Memory {
            batches_bytes: bytes / 16 * 9,
            queue_bytes: bytes / 8,
            sharers: Arc::default(),
        }
    }

    /// One more mirror follows its stream.
    pub fn join(&self) -> Budget {
        Budget::join(self.batches_bytes, &self.sharers)
    }

    /// What a consumer of a change topic that is opened now may hold ready, in KiB. It keeps that:
    /// of many that begin one after the other, each is given less than the one before.
    pub(crate) fn queue_kib(&self) -> usize {
        let sharers = self.sharers.load(Ordering::Relaxed).max(1);
        (self.queue_bytes / sharers).clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX) / 1024
    }
}

/// A mirror's share; the others grow when it is dropped.
#[derive(Debug)]
pub struct Budget {
    process_bytes: usize,
    sharers: Arc<AtomicUsize>,
}

impl Budget {
    /// Joins those who share `process_bytes`; `sharers` counts them.
    fn join(process_bytes: usize, sharers: &Arc<AtomicUsize>) -> Budget {
        sharers.fetch_add(1, Ordering::Relaxed);
        Budget {
            process_bytes,
            sharers: sharers.clone(),
        }
    }

    /// The limits for a batch that begins now.
    pub fn limits(&self, changes_max: usize) -> Limits {
        let sharers = self.sharers.load(Ordering::Relaxed).max(1);
        let share = self.process_bytes / sharers / BATCHES_PER_MIRROR;
        Limits {
            changes_max: changes_max.max(1),
            bytes_max: share.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX),
        }
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.sharers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_share_and_give_back() {
        let memory = Memory::of(128 << 20);
        let one = memory.join();
        assert_eq!(one.limits(1000).bytes_max, (72 << 20) / 5);
        let others: Vec<Budget> = (0..11).map(|_| memory.join()).collect();
        assert_eq!(one.limits(1000).bytes_max, (72 << 20) / 12 / 5);
        drop(others);
        assert_eq!(one.limits(0).changes_max, 1);
        assert_eq!(one.limits(1000).bytes_max, (72 << 20) / 5);
        let large = Memory::of(1 << 30).join();
        assert_eq!(large.limits(1000).bytes_max, BATCH_BYTES_MAX);
    }

    #[test]
    fn a_small_process_and_one_of_many_fetch_less() {
        assert_eq!(Memory::of(128 << 20).queue_kib(), 16 << 10);
        assert_eq!(Memory::of(32 << 20).queue_kib(), 4 << 10);
        let large = Memory::of(1 << 30);
        assert_eq!(large.queue_kib(), 16 << 10);
        let sharers: Vec<Budget> = (0..64).map(|_| large.join()).collect();
        assert_eq!(large.queue_kib(), 2 << 10);
        drop(sharers);
        let small = Memory::of(32 << 20);
        let _sharers: Vec<Budget> = (0..64).map(|_| small.join()).collect();
        assert_eq!(small.queue_kib(), 1 << 10);
    }
}
