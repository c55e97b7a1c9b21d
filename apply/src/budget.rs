//! The memory that batches may take in this process, shared by its mirrors (I5).
//!
//! A mirror holds at most three batches: one gathered, one waiting, one written. So each
//! mirror's batch is a third of its share. librdkafka's queues are bounded by their own
//! settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::batch::Limits;

/// For all batches of the process, in bytes.
pub const PROCESS_BYTES: usize = 72 * 1024 * 1024;
const BATCHES_PER_MIRROR: usize = 3;
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Below this, batches would be too small to be worth their round trips.
const BATCH_BYTES_MIN: usize = 256 * 1024;

/// A mirror's share; the others grow when it is dropped.
#[derive(Debug)]
pub struct Budget {
    process_bytes: usize,
    sharers: Arc<AtomicUsize>,
}

impl Budget {
    /// Joins those who share `process_bytes`; `sharers` counts them.
    pub fn join(process_bytes: usize, sharers: &Arc<AtomicUsize>) -> Budget {
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
        let sharers = Arc::new(AtomicUsize::new(0));
        let one = Budget::join(PROCESS_BYTES, &sharers);
        assert_eq!(one.limits(1000).bytes_max, BATCH_BYTES_MAX);
        let others: Vec<Budget> = (0..11)
            .map(|_| Budget::join(PROCESS_BYTES, &sharers))
            .collect();
        assert_eq!(one.limits(1000).bytes_max, PROCESS_BYTES / 12 / 3);
        drop(others);
        assert_eq!(one.limits(0).changes_max, 1);
        assert_eq!(one.limits(1000).bytes_max, BATCH_BYTES_MAX);
    }
}
