//! What the server is told while it streams: how far its log is safe with us.
//!
//! A task of its own does it, so that a consumer that is busy, or waits for Kafka, is not
//! taken for dead (`wal_sender_timeout`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::wire;
use crate::Lsn;

/// A confirmed position is told to the server at once, but no oftener than this.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// How often an idle stream tells the server that it lives.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Shared {
    /// The highest position confirmed.
    confirmed: AtomicU64,
    /// The server waits for an answer.
    asked: AtomicBool,
    /// Tell the last position, then end the copy and the session.
    ending: AtomicBool,
    changed: Notify,
}

/// The task that tells the server. Dropping it ends the task.
pub(super) struct Status {
    shared: Arc<Shared>,
    task: AbortOnDropHandle<()>,
}

impl Status {
    pub(super) fn spawn(
        to_server: impl AsyncWrite + Unpin + Send + 'static,
        start_lsn: Lsn,
    ) -> Status {
        let shared = Arc::new(Shared {
            confirmed: AtomicU64::new(start_lsn.0),
            ..Shared::default()
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                // Whoever reads from the server learns that it is gone, and why.
                let _ = tell(to_server, &shared).await;
            }
        });
        Status {
            shared,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// A position lower than an earlier one changes nothing.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.shared.confirmed.fetch_max(lsn.0, Ordering::AcqRel);
        self.shared.changed.notify_one();
    }

    /// The server asked for an answer.
    pub(super) fn answer(&self) {
        self.shared.asked.store(true, Ordering::Release);
        self.shared.changed.notify_one();
    }

    /// Tells the last position and says good-bye.
    pub(super) async fn end(self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.changed.notify_one();
        let _ = self.task.await;
    }
}

async fn tell(mut to_server: impl AsyncWrite + Unpin, shared: &Shared) -> std::io::Result<()> {
    let mut told = None;
    let mut told_at = Instant::now();
    loop {
        let ending = shared.ending.load(Ordering::Acquire);
        let asked = shared.asked.swap(false, Ordering::AcqRel);
        let confirmed = shared.confirmed.load(Ordering::Acquire);
        let due = match told {
            None => told_at,
            Some(last) if last < confirmed => told_at + STATUS_INTERVAL,
            Some(_) => told_at + IDLE_INTERVAL,
        };
        if ending || asked || Instant::now() >= due {
            to_server
                .write_all(&wire::status(Lsn(confirmed), now_us()))
                .await?;
            to_server.flush().await?;
            told = Some(confirmed);
            told_at = Instant::now();
            if ending {
                to_server.write_all(&wire::COPY_DONE).await?;
                to_server.write_all(&wire::TERMINATE).await?;
                to_server.flush().await?;
                return to_server.shutdown().await;
            }
            continue;
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            () = tokio::time::sleep_until(due) => {}
        }
    }
}

/// Microseconds since the Unix epoch; the server only shows them.
fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}
