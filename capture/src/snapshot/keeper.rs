//! The session that keeps a round's snapshot alive, and how the snapshot comes to be.
//!
//! Only a slot's own exported snapshot is an exact cut: a transaction may be decoded before
//! an ordinary new snapshot sees it (a commit that waits for a synchronous standby). The
//! slot is temporary and goes as soon as the keeper has imported its snapshot, so it holds
//! back no WAL. The keeper reads no user table, so it blocks nobody's DDL; it does hold
//! back VACUUM until the round ends.

use std::time::{Duration, Instant};

use bunny_postgres::replication::{ExportedSnapshot, Replication};
use bunny_postgres::{ConnectOptions, Lsn, ResultExt, Session, quote_literal};
use uuid::Uuid;

use super::port::LogSink;
use super::progress::Progress;
use crate::crash_points::{SYNC_SLOT_CREATED, crash_point};
use crate::error::{Error, Result};
use crate::slot::waiting;

/// How often the keeper is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// A ping without an answer for this long means that the keeper is lost.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What Postgres allows for the name of a slot, in bytes.
const SLOT_NAME_BYTES_MAX: usize = 63;

/// A snapshot at a consistent point, for as long as this lives.
pub(super) struct Keeper {
    session: Session,
    /// L: the snapshot holds exactly the transactions with a smaller commit LSN.
    pub(super) lsn: Lsn,
    /// For SET TRANSACTION SNAPSHOT.
    pub(super) snapshot_name: String,
    /// The source's clock once the snapshot had been taken, microseconds since the Unix epoch.
    pub(super) taken_at_us: i64,
}

/// Who opens sessions, and to which server.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) options: ConnectOptions,
    pub(super) application_name: String,
}

impl Source {
    pub(super) async fn connect(&self) -> Result<Session> {
        Ok(Session::connect(&self.options, &self.application_name).await?)
    }
}

impl Keeper {
    /// Takes a snapshot. Waits for as long as older transactions run, and says so.
    pub(super) async fn open(
        source: &Source,
        mirror_slot: &str,
        progress: &Progress,
        log: &LogSink,
    ) -> Result<Self> {
        // Opened first, so that the slot lives no longer than it must.
        let session = source.connect().await?;
        let exported = create_slot(source, mirror_slot, progress, log).await?;
        crash_point(SYNC_SLOT_CREATED);

        let import = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            quote_literal(&exported.snapshot_name)
        );
        session.batch(&import).await?;
        // The slot's own snapshot name dies with the slot's session; this one is ours.
        let row = session
            .query_one(
                "SELECT pg_catalog.pg_export_snapshot(),
                        (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint",
                &[],
            )
            .await
            .doing("exporting the keeper's snapshot")?;
        let keeper = Self {
            session,
            lsn: exported.lsn,
            snapshot_name: row.get(0),
            taken_at_us: row.get(1),
        };
        // Closes the session, and with it the slot goes.
        drop(exported);
        Ok(keeper)
    }

    /// Returns once the keeper is lost, with the reason.
    pub(super) async fn lost(&self) -> Error {
        loop {
            tokio::time::sleep(PING_INTERVAL).await;
            let ping = tokio::time::timeout(PING_TIMEOUT, self.session.batch("SELECT 1"));
            let reason = match ping.await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", PING_TIMEOUT.as_secs()),
            };
            return Error::transient(format!(
                "the session that keeps the snapshot was lost, unfinished tables start over: \
                 {reason}"
            ));
        }
    }
}

async fn create_slot(
    source: &Source,
    mirror_slot: &str,
    progress: &Progress,
    log: &LogSink,
) -> Result<ExportedSnapshot> {
    let name = sync_slot_name(mirror_slot, Uuid::new_v4());
    let replication =
        Replication::connect(&source.options, &source.application_name, &name, &[]).await?;
    let walsender_pid = replication.backend_pid();
    let creation = replication.create_temporary_slot_exporting(&name);
    tokio::pin!(creation);

    let began = Instant::now();
    let mut observer = Observer::default();
    let exported = loop {
        match tokio::time::timeout(waiting::LOOK_INTERVAL, &mut creation).await {
            Ok(created) => break created,
            Err(_) => {
                observer
                    .look(source, walsender_pid, began.elapsed(), progress, log)
                    .await
            }
        }
    };
    progress.round_waits_for(None);
    Ok(exported?)
}

/// `<slot>_sync_<hash>`, cut to what Postgres allows.
fn sync_slot_name(mirror_slot: &str, unique: Uuid) -> String {
    let suffix = format!("_sync_{}", &unique.simple().to_string()[..12]);
    let mut keep = mirror_slot.len().min(SLOT_NAME_BYTES_MAX - suffix.len());
    while !mirror_slot.is_char_boundary(keep) {
        keep -= 1;
    }
    format!("{}{suffix}", &mirror_slot[..keep])
}

/// Finds out which transactions a slot's creation waits for.
#[derive(Default)]
struct Observer {
    session: Option<Session>,
    said: Option<String>,
}

impl Observer {
    /// Best effort: what can't be found out is not shown, and the waiting goes on.
    async fn look(
        &mut self,
        source: &Source,
        walsender_pid: i32,
        waited: Duration,
        progress: &Progress,
        log: &LogSink,
    ) {
        if self.session.is_none() {
            self.session = source.connect().await.ok();
        }
        let Some(session) = &self.session else { return };
        match waiting::blockers(session, walsender_pid).await {
            Ok(Some(blockers)) => {
                let reason = format!("transactions older than the snapshot must end: {blockers}");
                progress.round_waits_for(Some(reason));
                if self.said.as_ref() != Some(&blockers) {
                    log.info(
                        "table sync waits for transactions that are older than its snapshot",
                        serde_json::json!({
                            "transactions": blockers, "waited_s": waited.as_secs(),
                        }),
                    );
                    self.said = Some(blockers);
                }
            }
            Ok(None) => progress.round_waits_for(Some("the replication slot".to_owned())),
            Err(error) => {
                tracing::debug!(%error, "cannot see what the slot's creation waits for");
                self.session = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_fit_and_differ() {
        let (one, two) = (Uuid::from_u128(1 << 100), Uuid::from_u128(2 << 100));
        for slot in ["bunny_shop", &"s".repeat(63), &"é".repeat(31)] {
            let name = sync_slot_name(slot, one);
            assert!(name.len() <= SLOT_NAME_BYTES_MAX, "{name}");
            assert_ne!(name, sync_slot_name(slot, two));
        }
        assert_eq!(
            sync_slot_name("bunny_shop", Uuid::from_u128(u128::MAX)),
            "bunny_shop_sync_ffffffffffff"
        );
    }
}
