//! Who writes to which partition of the snapshot topic.
//!
//! A chunk owns one partition from its first part to its last, so that the parts of a chunk
//! stand next to each other and a reader can stream them into one open COPY. The records
//! that frame a sync go to partition 0 and own it for as long as they take.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

/// The partitions of one round.
#[derive(Debug)]
pub(super) struct Partitions {
    locks: Vec<Arc<Mutex<()>>>,
    returned: Arc<Notify>,
}

/// A partition, owned until this is dropped.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) partition: i32,
    guard: Option<OwnedMutexGuard<()>>,
    returned: Arc<Notify>,
}

impl Partitions {
    /// `count` partitions, all free; at least one.
    pub(super) fn new(count: usize) -> Self {
        Self {
            locks: (0..count.max(1)).map(|_| Arc::default()).collect(),
            returned: Arc::new(Notify::new()),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.locks.len()
    }

    /// Waits for any partition. `prefer` spreads the load: the search begins there.
    pub(super) async fn any(&self, prefer: usize) -> Owned {
        loop {
            // Registered before looking, so that a return in between is not missed.
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();

            for step in 0..self.locks.len() {
                let index = (prefer + step) % self.locks.len();
                if let Ok(guard) = self.locks[index].clone().try_lock_owned() {
                    return self.owned(index, guard);
                }
            }
            returned.await;
        }
    }

    /// Waits for partition 0. The lock is fair, so chunks cannot starve this.
    pub(super) async fn first(&self) -> Owned {
        let guard = self.locks[0].clone().lock_owned().await;
        self.owned(0, guard)
    }

    fn owned(&self, index: usize, guard: OwnedMutexGuard<()>) -> Owned {
        Owned {
            partition: index as i32,
            guard: Some(guard),
            returned: self.returned.clone(),
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.guard = None;
        self.returned.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn never_two_owners_and_everyone_is_served() {
        let partitions = Arc::new(Partitions::new(3));
        let owners: Arc<Vec<AtomicUsize>> = Arc::new((0..3).map(|_| AtomicUsize::new(0)).collect());
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (partitions, owners) = (partitions.clone(), owners.clone());
            tasks.spawn(async move {
                let owned = if number % 5 == 0 {
                    partitions.first().await
                } else {
                    partitions.any(number).await
                };
                let index = owned.partition as usize;
                assert_eq!(owners[index].fetch_add(1, Ordering::SeqCst), 0);
                tokio::time::sleep(Duration::from_millis(2)).await;
                owners[index].fetch_sub(1, Ordering::SeqCst);
            });
        }
        let all = async {
            while let Some(done) = tasks.join_next().await {
                done.expect("no second owner");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all)
            .await
            .expect("everyone gets a partition");
    }

    #[tokio::test]
    async fn a_framing_record_gets_its_turn() {
        let partitions = Arc::new(Partitions::new(1));
        let held = partitions.any(0).await;
        let waiting = {
            let partitions = partitions.clone();
            tokio::spawn(async move { partitions.first().await.partition })
        };
        tokio::task::yield_now().await;
        drop(held);
        // The chunk that comes later waits behind the framing record.
        assert_eq!(partitions.any(0).await.partition, 0);
        assert_eq!(waiting.await.expect("task"), 0);
    }
}
