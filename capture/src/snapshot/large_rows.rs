//! Large rows take turns, all workers of the process together (invariant I5): each is held
//! several times over on its way, in its part, its record and librdkafka's queue.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::parts::{PART_BYTES, ROW_BYTES_MAX};

/// Rows up to this many bytes need no turn: they are in the account of a worker's parts.
const SMALL_BYTES: usize = 2 * PART_BYTES;

/// One permit a kibibyte; as many as the largest row needs, so that each row gets its turn.
static ROOM: Semaphore = Semaphore::const_new(permits(ROW_BYTES_MAX) as usize);

const fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(1024) as u32
}

/// Waits until there is room for a row of `bytes`, and keeps it until dropped. None for a
/// row that needs none. Who holds a turn must not wait for another.
pub(super) async fn turn(bytes: usize) -> Option<SemaphorePermit<'static>> {
    if bytes <= SMALL_BYTES {
        return None;
    }
    // Never closed.
    ROOM.acquire_many(permits(bytes)).await.ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn large_rows_take_turns_and_small_ones_do_not() {
        let first = turn(ROW_BYTES_MAX).await;
        assert!(first.is_some());
        assert!(turn(SMALL_BYTES).await.is_none());
        assert!(turn(SMALL_BYTES + 1).now_or_never().is_none());
        drop(first);
        let half = turn(ROW_BYTES_MAX / 2).await;
        let other_half = turn(ROW_BYTES_MAX / 2).now_or_never();
        assert!(half.is_some() && other_half.is_some());
    }
}
