//! Waits until the source's catalog shows what the stream has told already.
//!
//! Postgres writes a commit to its log, where a walsender finds it, a moment before other
//! sessions see it; with synchronous replication that moment lasts until the standby
//! answers. A catalog asked in between answers for the time before, and a column that was
//! dropped and added again would be taken for the old one.

use std::time::{Duration, Instant};

use bunny_postgres::Session;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// After that the report says what is waited for.
const SAID_AFTER: Duration = Duration::from_secs(5);
/// Normally there is nothing to wait for, or less than this.
const PAUSE: Duration = Duration::from_millis(5);

/// How far behind the stream is, by the source's clock, when a look at the catalog counts as
/// late.
const LATE_AFTER_US: i64 = 3_000_000;

/// A source transaction that the stream has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) xid: u32,
    /// µs since the Unix epoch, by the source's clock.
    pub(crate) commit_ts_us: i64,
}

/// How much a look at the catalog says about the place of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Right after the commit: nobody is likely to have altered the table since.
    InTime,
    /// The stream is catching up: the table may have been altered any number of times.
    Late,
}

/// Waits for transactions, and says for which.
pub(crate) struct Visibility {
    cancel: CancellationToken,
    said: watch::Sender<Option<String>>,
}

impl Visibility {
    /// Waits until `cancel`; the receiver has what the operator should know meanwhile.
    pub(crate) fn new(cancel: CancellationToken) -> (Visibility, watch::Receiver<Option<String>>) {
        let (said, waits) = watch::channel(None);
        (Visibility { cancel, said }, waits)
    }

    /// Returns once sessions of the source see what `given` has done. If they had to be waited
    /// for, the look is in time for sure: until then the transaction held its locks.
    ///
    /// # Errors
    /// Transient when the source cannot be asked, or nothing is to be waited for any more.
    pub(super) async fn wait_for(&self, given: Given, source: &Session) -> Result<Look> {
        let began = Instant::now();
        let mut has_waited = false;
        loop {
            let row = source
                .query_one(
                    "SELECT pg_current_snapshot()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8",
                    &[],
                )
                .await
                .map_err(|error| Error::Query {
                    doing: "asking which transactions are visible",
                    error,
                })?;
            let snapshot: String = row.get(0);
            if sees(&snapshot, given.xid) {
                self.say(None);
                let age: i64 = row.get::<_, i64>(1) - given.commit_ts_us;
                let is_late = age > LATE_AFTER_US && !has_waited;
                return Ok(if is_late { Look::Late } else { Look::InTime });
            }
            has_waited = true;
            if began.elapsed() > SAID_AFTER {
                self.say(Some(format!(
                    "transaction {} is in the source's log, but the source does not show yet what it did, and the definition of \
                     a table depends on it: most likely its commit waits for a synchronous standby (wait_event SyncRep in the \
                     source's pg_stat_activity); changes are captured again when it ends",
                    given.xid
                )));
            }
            tokio::select! {
                () = self.cancel.cancelled() => {
                    return Err(Error::transient("stopped while a transaction was waited for"));
                }
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    fn say(&self, what: Option<String>) {
        self.said.send_if_modified(|said| {
            let differs = *said != what;
            *said = what;
            differs
        });
    }
}

/// Whether a snapshot, `xmin:xmax:xip,xip,…` of 64-bit numbers, sees an ended transaction,
/// of which the stream says the lower 32 bits. Pure.
fn sees(snapshot: &str, xid: u32) -> bool {
    /// Numbers wrap around; the half that is nearer counts (PostgreSQL manual, "Preventing
    /// Transaction ID Wraparound Failures").
    fn is_before(xid: u32, limit: u32) -> bool {
        xid != limit && limit.wrapping_sub(xid) < 1 << 31
    }
    let mut parts = snapshot.splitn(3, ':').skip(1);
    let (Some(xmax), Some(running)) = (parts.next().and_then(low), parts.next()) else {
        return false;
    };
    is_before(xid, xmax) && running.split(',').filter_map(low).all(|one| one != xid)
}

/// The lower 32 bits.
fn low(number: &str) -> Option<u32> {
    let number: u64 = number.parse().ok()?;
    u32::try_from(number & u64::from(u32::MAX)).ok()
}

#[cfg(test)]
mod tests {
    use super::sees;

    #[test]
    fn a_snapshot_sees_what_ended_before_it() {
        assert!(sees("10:12:", 11));
        assert!(!sees("10:12:", 12), "began later");
        assert!(!sees("10:14:10,12", 12), "still running");
        assert!(sees("10:14:10,12", 11));
        assert!(sees("10:14:10,12", 9));
    }

    #[test]
    fn numbers_wrap_around() {
        let (last, epoch) = (u64::from(u32::MAX), 1_u64 << 32);
        let around = format!("{last}:{}:{last},{}", epoch + 5, epoch + 3);
        assert!(!sees(&around, u32::MAX), "still running");
        assert!(!sees(&around, 3), "still running");
        assert!(!sees(&around, 5), "began later");
        assert!(sees(&around, 4));
        assert!(sees(&around, u32::MAX - 1));
    }
}
