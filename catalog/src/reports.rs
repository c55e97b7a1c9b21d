//! What workers say about a mirror. A cache for people to look at: no worker
//! decides by it.

use bunny_postgres::{Lsn, TableName};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgExecutor, Row as _};
use uuid::Uuid;

use crate::leases::Role;
use crate::{Catalog, Error, Result};

/// A place in a generation's stream of events: the commit LSN of the source
/// transaction and the number of the row message in it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Point {
    /// Begin's `final_lsn`.
    pub commit_lsn: Lsn,
    /// Counts the row messages of the transaction.
    pub seq: u64,
}

impl From<(Lsn, u64)> for Point {
    fn from((commit_lsn, seq): (Lsn, u64)) -> Self {
        Point { commit_lsn, seq }
    }
}

/// How far one table sync has come, as capture sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// The request this sync answers.
    pub request_id: Uuid,
    /// The table.
    pub source: TableName,
    /// Counts the starts of this sync from 1.
    pub attempt: u32,
    /// Chunks published whole.
    pub chunks_done: u64,
    /// Chunks planned, once known.
    pub chunks_total: Option<u64>,
    /// Rows published.
    pub rows_done: u64,
    /// Rows expected, from the source's statistics.
    pub rows_estimate: u64,
    /// COPY bytes published.
    pub bytes_done: u64,
    /// Whether all of it is published.
    pub finished: bool,
    /// Why it is not tried any more, if so.
    #[serde(default)]
    pub refused: Option<SyncRefusal>,
}

/// A table that the source does not let be copied, until someone asks to try again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncRefusal {
    /// What is wrong and what to do.
    pub reason: String,
    /// The last request to bring the table back that was known when it was refused; another
    /// one makes this void.
    pub retry_id: Option<Uuid>,
}

impl SyncProgress {
    /// A sync of which nothing is published yet.
    pub fn new(request_id: Uuid, source: TableName) -> SyncProgress {
        SyncProgress {
            request_id,
            source,
            attempt: 0,
            chunks_done: 0,
            chunks_total: None,
            rows_done: 0,
            rows_estimate: 0,
            bytes_done: 0,
            finished: false,
            refused: None,
        }
    }
}

/// What capture says, about once a second.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureReport {
    /// What it is doing, in a word or a sentence.
    pub phase: String,
    /// The generation it captures.
    pub generation: Option<Uuid>,
    /// The source's end of WAL.
    pub current_lsn: Option<Lsn>,
    /// The slot's confirmed position.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// The oldest WAL the slot needs.
    pub restart_lsn: Option<Lsn>,
    /// WAL bytes the source keeps for the slot.
    pub retained_wal_bytes: i64,
    /// Whether a walsender uses the slot.
    pub slot_active: bool,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: Option<String>,
    /// Everything that concerns the mirror up to here is in the log.
    pub published_lsn: Lsn,
    /// The last event published.
    pub published: Point,
    /// Age of the oldest source change that is not in the log, in seconds.
    pub lag_seconds: f64,
    /// Whether nothing at the source waits to be published.
    pub caught_up: bool,
    /// Events published since this worker took the mirror.
    pub events_published: u64,
    /// Table syncs, running and finished.
    pub syncs: Vec<SyncProgress>,
    /// Tables of which only inserts and truncates are captured.
    pub insert_only: Vec<TableName>,
    /// Bytes of the events that the change topic holds, before compression, once counted.
    pub changes_bytes: Option<u64>,
    /// What the user should know now, a sentence each.
    pub messages: Vec<String>,
}

/// The states that apply tells of a table.
pub const TABLE_STATES: [&str; 7] = [
    "PENDING",
    "SYNCING",
    "CATCHING_UP",
    "LIVE",
    "PARKED",
    "ERRORED",
    "REMOVING",
];

/// One table, as apply sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    /// The source name of the table.
    pub source: TableName,
    /// One of [`TABLE_STATES`].
    pub state: String,
    /// Whether main applies its changes.
    pub in_main: bool,
    /// Rows loaded and rows changed since.
    pub rows_synced: i64,
    /// Rows inserted from the stream.
    pub rows_inserted: i64,
    /// Rows updated from the stream.
    pub rows_updated: i64,
    /// Rows deleted from the stream.
    pub rows_deleted: i64,
    /// Chunks loaded.
    pub chunks_done: i64,
    /// Chunks to load, once known.
    pub chunks_total: Option<i64>,
    /// Rows loaded by chunks.
    pub rows_loaded: i64,
    /// Why it is ERRORED or PARKED.
    pub error: Option<String>,
    /// When a row of it was last written.
    pub last_synced_at: Option<DateTime<Utc>>,
    /// While it does not follow the log with the others: what it lacks of it, if anything.
    #[serde(default)]
    pub behind: Option<Behind>,
    /// While it is rebuilt from the topics: how far.
    #[serde(default)]
    pub replay: Option<ReplayProgress>,
    /// The earliest point that the topics can rebuild it from.
    #[serde(default)]
    pub replayable_from: Option<ReplayableFrom>,
    /// When the newest copy was taken that the topics can rebuild it from, by the source's clock.
    #[serde(default)]
    pub newest_copy_at: Option<DateTime<Utc>>,
}

/// Changes in the log that a table lacks: it is loaded, catches up, or is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Commit LSN of the first of them.
    pub lsn: Lsn,
    /// When that was committed, by the source's clock.
    pub since: DateTime<Utc>,
    /// Offsets of the change topic from there to its end, other tables' included.
    pub events: i64,
}

/// A retained copy of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayableFrom {
    /// Its consistent point.
    pub lsn: Lsn,
    /// When it was taken, by the source's clock.
    pub time: DateTime<Utc>,
}

/// How far the replay of a table is. First its rows are loaded, then its changes followed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReplayProgress {
    /// COPY bytes of the sync that are loaded, by its rows.
    pub bytes_done: i64,
    /// COPY bytes of the sync.
    pub bytes_total: i64,
    /// Offsets of the change topic that are passed.
    pub events_done: i64,
    /// Offsets of the change topic up to where it goes on with the others, or to the moment asked for.
    pub events_total: i64,
    /// Of what is done now, rows or events: so many a second since this worker began.
    pub per_second: f64,
    /// How long the rest takes at that rate; none while the rate is not known.
    pub seconds_left: Option<f64>,
}

impl TableReport {
    /// A table in `state` of which nothing is known yet.
    pub fn new(source: TableName, state: impl Into<String>) -> TableReport {
        TableReport {
            source,
            state: state.into(),
            in_main: false,
            rows_synced: 0,
            rows_inserted: 0,
            rows_updated: 0,
            rows_deleted: 0,
            chunks_done: 0,
            chunks_total: None,
            rows_loaded: 0,
            error: None,
            last_synced_at: None,
            behind: None,
            replay: None,
            replayable_from: None,
            newest_copy_at: None,
        }
    }
}

/// What apply says, about once a second.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyReport {
    /// What it is doing, in a word or a sentence.
    pub phase: String,
    /// The generation it applies.
    pub generation: Option<Uuid>,
    /// The last event applied and committed.
    pub applied: Point,
    /// The offset after the last one applied.
    pub offset: i64,
    /// The end of the change topic.
    pub high_watermark: i64,
    /// The name of the change topic.
    pub topic: String,
    /// Age of the oldest event in the log that is not applied, in seconds.
    pub lag_seconds: f64,
    /// Whether the log holds nothing that is not applied.
    pub caught_up: bool,
    /// When a row was last written.
    pub last_sync_time: Option<DateTime<Utc>>,
    /// Rows of all tables, loaded and changed.
    pub total_rows_synced: i64,
    /// Every table.
    pub tables: Vec<TableReport>,
    /// Bytes of COPY text of the finished copies that the snapshot topic holds, once known.
    pub copies_bytes: Option<u64>,
    /// What the user should know now, a sentence each.
    pub messages: Vec<String>,
}

/// The last failure of a role's task, until it has recovered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done, to what, and what to do.
    pub message: String,
    /// Whether it waits for a person.
    pub fatal: bool,
    /// The generation whose slot, log and source do not belong together any more: a resync
    /// of the mirror starts another one.
    #[serde(default)]
    pub lost_generation: Option<Uuid>,
    /// Failures in a row.
    pub count: u32,
    /// The first of them.
    pub since: DateTime<Utc>,
    /// When it is tried again; none if fatal.
    pub next_try: Option<DateTime<Utc>>,
}

impl Failure {
    /// Whether it stands in the way of a mirror that follows this generation: what could not go
    /// on with a former one is cured by it, before the role has said so.
    fn is_of(&self, generation: Uuid) -> bool {
        self.lost_generation.is_none_or(|lost| lost == generation)
    }
}

/// All that is known of one role of one mirror.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleState<R> {
    /// The last report.
    pub report: Option<R>,
    /// When it came, by the catalog's clock.
    pub reported_at: Option<DateTime<Utc>>,
    /// What is wrong, if anything.
    pub failure: Option<Failure>,
    /// The process that holds the lease now.
    pub holder: Option<String>,
    /// When a holder last renewed the lease.
    pub heartbeat_at: Option<DateTime<Utc>>,
}

impl<R> Default for RoleState<R> {
    fn default() -> Self {
        RoleState {
            report: None,
            reported_at: None,
            failure: None,
            holder: None,
            heartbeat_at: None,
        }
    }
}

/// What both roles said about a mirror, read at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reports {
    /// The moment, by the catalog's clock: pass it on as `now`.
    pub read_at: DateTime<Utc>,
    /// Capture.
    pub capture: RoleState<CaptureReport>,
    /// Apply.
    pub apply: RoleState<ApplyReport>,
}

/// A report of one role; implemented by the two kinds there are.
pub trait Report: Serialize + DeserializeOwned + Send + Sync {
    /// The role that makes it.
    const ROLE: Role;

    /// What the role was doing and how far it was, for whoever reads of a failure later.
    fn place(&self) -> Value;
}

impl Report for CaptureReport {
    const ROLE: Role = Role::Capture;

    fn place(&self) -> Value {
        json!({
            "phase": self.phase,
            "lsn": self.published.commit_lsn,
            "seq": self.published.seq,
            "confirmed_flush_lsn": self.confirmed_flush_lsn,
        })
    }
}

impl Report for ApplyReport {
    const ROLE: Role = Role::Apply;

    fn place(&self) -> Value {
        json!({
            "phase": self.phase,
            "lsn": self.applied.commit_lsn,
            "seq": self.applied.seq,
            "topic": self.topic,
            "offset": self.offset,
        })
    }
}

/// See [`Catalog::reports`].
pub(crate) async fn read(executor: impl PgExecutor<'_>, mirror_id: Uuid) -> Result<Reports> {
    let failed = |error| Error::database("reading reports", error);
    let rows = sqlx::query(
        "SELECT clock_timestamp() AS read_at, k.role, r.report, r.reported_at, r.failure,
                CASE WHEN l.expires_at > clock_timestamp() THEN nullif(l.holder, '') END AS holder,
                l.heartbeat_at, coalesce(o.generation, m.generation) AS generation
         FROM bunny.mirrors m
         LEFT JOIN bunny.mirrors o ON o.id = m.source_mirror
         CROSS JOIN (VALUES ('capture'), ('apply')) AS k (role)
         CROSS JOIN LATERAL (
             SELECT CASE k.role WHEN 'capture' THEN coalesce(m.source_mirror, m.id) ELSE m.id END
         ) AS w (id)
         LEFT JOIN bunny.reports r ON r.mirror_id = w.id AND r.role = k.role
         LEFT JOIN bunny.leases l ON l.mirror_id = w.id AND l.role = k.role
         WHERE m.id = $1 ORDER BY k.role",
    )
    .bind(mirror_id)
    .fetch_all(executor)
    .await
    .map_err(failed)?;
    // Ordered by role: apply, then capture.
    let [apply, capture] = rows.as_slice() else {
        return Err(Error::not_found("mirror", mirror_id));
    };
    Ok(Reports {
        read_at: capture.try_get("read_at").map_err(failed)?,
        capture: role_state_from(capture)?,
        apply: role_state_from(apply)?,
    })
}

impl Catalog {
    /// What both roles last said about a mirror; of one that another captures for, capture is that
    /// one's. [`Error::NotFound`] if there is no such mirror.
    pub async fn reports(&self, mirror_id: Uuid) -> Result<Reports> {
        read(self.pool(), mirror_id).await
    }

    /// Stores a report, if the lease has still that epoch: a worker that was
    /// frozen does not overwrite what its successor said.
    pub(crate) async fn put_report(
        &self,
        mirror_id: Uuid,
        role: Role,
        epoch: i64,
        report: &Value,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO bunny.reports (mirror_id, role, report, reported_at)
             SELECT l.mirror_id, l.role, $4, clock_timestamp() FROM bunny.leases l
             WHERE l.mirror_id = $1 AND l.role = $2 AND l.epoch = $3
             ON CONFLICT (mirror_id, role) DO UPDATE
             SET report = excluded.report, reported_at = excluded.reported_at",
        )
        .bind(mirror_id)
        .bind(role.as_str())
        .bind(epoch)
        .bind(report)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("storing a report", error))
    }

    /// Stores how a role's task last failed, or that it has recovered, under
    /// the same condition.
    pub(crate) async fn put_failure(
        &self,
        mirror_id: Uuid,
        role: Role,
        epoch: i64,
        failure: Option<&Failure>,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO bunny.reports (mirror_id, role, failure)
             SELECT l.mirror_id, l.role, $4 FROM bunny.leases l
             WHERE l.mirror_id = $1 AND l.role = $2 AND l.epoch = $3
             ON CONFLICT (mirror_id, role) DO UPDATE SET failure = excluded.failure",
        )
        .bind(mirror_id)
        .bind(role.as_str())
        .bind(epoch)
        .bind(failure.map(Json))
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("storing a failure", error))
    }
}

/// A report that cannot be read back is one of another release: none at all.
fn role_state_from<R: Report>(row: &PgRow) -> Result<RoleState<R>> {
    let read = |error| Error::database("reading a report", error);
    let report: Option<Value> = row.try_get("report").map_err(read)?;
    let failure: Option<Json<Failure>> = row.try_get("failure").map_err(read)?;
    let generation: Uuid = row.try_get("generation").map_err(read)?;
    Ok(RoleState {
        report: report.and_then(|report| serde_json::from_value(report).ok()),
        reported_at: row.try_get("reported_at").map_err(read)?,
        failure: failure
            .map(|failure| failure.0)
            .filter(|failure| failure.is_of(generation)),
        holder: row.try_get("holder").map_err(read)?,
        heartbeat_at: row.try_get("heartbeat_at").map_err(read)?,
    })
}
