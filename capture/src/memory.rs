//! The memory that rows on their way may take in this process, shared by its mirrors (I5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bunny_schemas::kafka::BATCH_BYTES_MAX;

use crate::snapshot::UnderWay;

/// What an open Kafka transaction holds at most, however few share: no more than is sent as one batch
/// (docs/adr/0064).
const TRANSACTION_BYTES_MAX: usize = BATCH_BYTES_MAX / 2;
/// Below this, a transaction would not be worth its requests.
const TRANSACTION_BYTES_MIN: usize = 512 << 10;
/// One is filled while one is being committed, and librdkafka has both once more in the batches it
/// makes of them.
const COPIES: usize = 4;

/// What a process has, in two parts: one for chunks of copies, one for its streams.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) chunks: UnderWay,
    pub(crate) streams: Streams,
}

impl Memory {
    /// Of a process that may use `bytes`. Half is for its streams, a quarter for chunks; the rest
    /// is for what the source has sent and is not read yet.
    pub(crate) fn of(bytes: usize) -> Memory {
        Memory {
            chunks: UnderWay::at_most(bytes / 4),
            streams: Streams {
                bytes: bytes / 2,
                sharers: Arc::default(),
            },
        }
    }
}

/// All streams of a process.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    bytes: usize,
    sharers: Arc<AtomicUsize>,
}

impl Streams {
    /// One more.
    pub(crate) fn join(&self) -> Share {
        self.sharers.fetch_add(1, Ordering::Relaxed);
        Share(self.clone())
    }
}

/// What one stream may take; the others get more when it is dropped.
#[derive(Debug)]
pub(crate) struct Share(Streams);

impl Share {
    /// At so many bytes a Kafka transaction is committed.
    pub(crate) fn transaction_bytes_max(&self) -> usize {
        let Streams { bytes, sharers } = &self.0;
        let share = bytes / COPIES / sharers.load(Ordering::Relaxed).max(1);
        share.clamp(TRANSACTION_BYTES_MIN, TRANSACTION_BYTES_MAX)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.sharers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_and_give_back() {
        let streams = Memory::of(128 << 20).streams;
        let one = streams.join();
        assert_eq!(one.transaction_bytes_max(), 4 << 20);
        let others: Vec<Share> = (0..15).map(|_| streams.join()).collect();
        assert_eq!(one.transaction_bytes_max(), 1 << 20);
        let more: Vec<Share> = (0..100).map(|_| streams.join()).collect();
        assert_eq!(one.transaction_bytes_max(), TRANSACTION_BYTES_MIN);
        drop((others, more));
        assert_eq!(one.transaction_bytes_max(), 4 << 20);
    }
}
