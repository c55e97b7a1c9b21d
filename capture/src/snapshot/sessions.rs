//! Worker sessions of a round, and the transactions they read in.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bunny_postgres::{ResultExt, Session, TableName, quote_literal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::keeper::Source;
use super::plan::Relation;
use super::trouble::{Cause, Trouble};
use crate::error::Error;

/// How long one attempt waits for a lock. Short, because everyone who comes after us in the
/// lock's queue waits as well.
const LOCK_TIMEOUT_MS: u32 = 2_000;
/// Pause between attempts, for those who were behind us.
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// When to stop waiting: the snapshot holds back VACUUM at the source all the while.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);
/// How long to try for a connection, so that a full server delays a round and doesn't end it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// The worker sessions of a round, opened when first needed, used again, limited in number.
pub(super) struct Sessions {
    source: Source,
    snapshot_name: String,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
}

/// A session in use. Dropping it closes it; [`Sessions::give_back`] keeps it.
pub(super) struct Worker {
    session: Session,
    _turn: OwnedSemaphorePermit,
}

impl Deref for Worker {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Sessions {
    /// At most `sessions_max` at a time, each in the snapshot of that name.
    pub(super) fn new(source: Source, snapshot_name: String, sessions_max: usize) -> Self {
        Self {
            source,
            snapshot_name,
            turns: Arc::new(Semaphore::new(sessions_max.max(1))),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Waits for a session without a transaction.
    pub(super) async fn take(&self) -> Result<Worker, Trouble> {
        let turn = self
            .turns
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| Error::transient(error.to_string()))?;
        let idle = self.idle().pop();
        let session = match idle.filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.connect().await?,
        };
        Ok(Worker {
            session,
            _turn: turn,
        })
    }

    async fn connect(&self) -> Result<Session, Trouble> {
        let give_up_at = Instant::now() + CONNECT_PATIENCE;
        loop {
            match self.source.connect().await {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() >= give_up_at || error.is_fatal() => {
                    return Err(Cause::Transient(error.to_string()).into());
                }
                Err(error) => {
                    tracing::debug!(%error, "a worker of the table sync can't connect yet");
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
            }
        }
    }

    /// Ends the transaction and keeps the session for the next.
    pub(super) async fn give_back(&self, worker: Worker) -> Result<(), Trouble> {
        worker.batch("COMMIT").await?;
        self.keep(worker);
        Ok(())
    }

    /// Keeps a session whose transaction has ended.
    pub(super) fn keep(&self, worker: Worker) {
        self.idle().push(worker.session);
    }

    /// Begins a transaction that sees the round's snapshot, and runs `lock`, which takes
    /// locks. A lock that others hold is waited for in short attempts; `waiting` hears of it.
    pub(super) async fn begin(
        &self,
        session: &Session,
        lock: &str,
        waiting: impl Fn(Option<&str>),
    ) -> Result<(), Trouble> {
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
             SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}",
            quote_literal(&self.snapshot_name)
        );
        let give_up_at = Instant::now() + LOCK_PATIENCE;
        let mut waited = false;
        loop {
            // Whatever the server says here: without the snapshot no table can go on.
            session.batch(&begin).await.map_err(|error| {
                Error::transient(format!(
                    "a worker can't import the snapshot, its keeper may be gone: {error}"
                ))
            })?;
            match session.batch(lock).await {
                Ok(()) => {
                    if waited {
                        waiting(None);
                    }
                    return Ok(());
                }
                // Lock not available, deadlock detected.
                Err(error)
                    if matches!(error.sqlstate(), Some("55P03" | "40P01"))
                        && Instant::now() < give_up_at =>
                {
                    waited = true;
                    waiting(Some("a lock that another session holds on the table"));
                    session.batch("ROLLBACK").await?;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares each relation as the snapshot saw it with what stands there now. Must run under
/// the relations' locks, or the answer may be stale at once.
///
/// A rewrite or TRUNCATE gives a relation a new file, in which an older snapshot sees no row
/// or the wrong ones: such changes are not MVCC-safe.
pub(super) async fn check_unchanged(
    session: &Session,
    relations: impl Iterator<Item = &Relation>,
) -> Result<(), Trouble> {
    let relations: Vec<&Relation> = relations.collect();
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let rows = session
        .query(
            "SELECT c.oid \
             FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid = ANY ($1) \
               AND c.relfilenode IS NOT DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid) \
               AND c.oid = pg_catalog.to_regclass( \
                   pg_catalog.format('%I.%I', n.nspname, c.relname))::pg_catalog.oid",
            &[&oids],
        )
        .await
        .doing("comparing relation files with the snapshot")?;

    let unchanged: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    if let Some(relation) = relations
        .iter()
        .find(|relation| !unchanged.contains(&relation.oid))
    {
        return Err(Cause::Rewritten(format!(
            "{} was rewritten, truncated, renamed or dropped",
            relation.name
        ))
        .into());
    }
    check_columns(session, &oids).await
}

/// Compares the names of all columns as the snapshot saw them with those they have now. Must run
/// under the relations' locks as well.
///
/// A statement takes names from the server's present catalog, whatever its snapshot sees: a name
/// that went to another column since would bring that column's values, be it one that must not
/// leave the source. The left side of the comparison is a row of the snapshot; the right side
/// asks the server's cache, which knows nothing of snapshots, for the name of a number. A dropped
/// column has a name of its own there. Types need no look: one that changes without a rewrite
/// leaves the bytes, and what it prints of them the former type reads as the same value or
/// refuses (`integer` made `oid`).
pub(super) async fn check_columns(session: &Session, relations: &[u32]) -> Result<(), Trouble> {
    let changed = session
        .query_opt(
            "SELECT a.attname::text, n.nspname::text, c.relname::text \
             FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             CROSS JOIN LATERAL pg_catalog.pg_identify_object_as_address( \
                 'pg_catalog.pg_class'::pg_catalog.regclass, a.attrelid, a.attnum) AS present \
             WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped \
               AND present.object_names[3] IS DISTINCT FROM a.attname::text \
             ORDER BY a.attrelid, a.attnum LIMIT 1",
            &[&relations],
        )
        .await
        .doing("comparing the names of columns with the snapshot")?;
    let Some(changed) = changed else {
        return Ok(());
    };
    let relation = TableName {
        schema: changed.get(1),
        name: changed.get(2),
    };
    Err(Cause::Rewritten(format!(
        "column {} of {relation} was renamed or dropped",
        changed.get::<_, String>(0)
    ))
    .into())
}
