//! The forms in which mirrors are shown; `view.rs` fills them in.

use bunny_catalog::{
    ApplyLag, CaptureLag, Health, LogEntry, MirrorConfig, Phase, ReplayProgress, ReplayableFrom,
    SourceView, Status, TABLE_STATES, TableLag,
};
use bunny_postgres::Lsn;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// One line of the list of mirrors.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MirrorSummary")]
pub(crate) struct Brief {
    #[schemars(example = &"prod_to_staging")]
    pub(super) name: String,
    #[schemars(example = &"source_db")]
    pub(super) source_peer: String,
    /// The mirror whose topics feed this one; null where it captures itself.
    pub(super) source_mirror: Option<String>,
    #[schemars(example = &"dest_db")]
    pub(super) destination_peer: String,
    pub(super) status: Status,
    pub(super) current_phase: Phase,
    pub(super) health: Health,
    /// The worst that is wrong now.
    pub(super) error_message: Option<String>,
    /// Failures in a row of both roles, and tables in error.
    pub(super) error_count: i64,
    pub(super) table_count: usize,
    /// Rows loaded and changed.
    pub(super) total_rows_synced: i64,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
}

/// A mirror.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Mirror")]
pub(crate) struct Full {
    #[schemars(example = &"prod_to_staging")]
    pub(super) name: String,
    #[schemars(example = &"source_db")]
    pub(super) source_peer: String,
    /// The mirror whose topics feed this one; null where it captures itself.
    pub(super) source_mirror: Option<String>,
    #[schemars(example = &"dest_db")]
    pub(super) destination_peer: String,
    #[schemars(example = &"RUNNING")]
    pub(super) status: Status,
    #[schemars(example = &"CDC")]
    pub(super) current_phase: Phase,
    pub(super) health: Health,
    /// The worst that is wrong now.
    pub(super) error_message: Option<String>,
    /// Failures in a row of both roles, and tables in error.
    pub(super) error_count: i64,
    /// What should be known now, a sentence each.
    pub(super) messages: Vec<String>,
    /// The mirrors that this one's topics feed.
    pub(super) attached_mirrors: Vec<String>,
    pub(super) slot_name: String,
    pub(super) publication_name: String,
    /// Of the last source transaction at the destination.
    pub(super) last_lsn: Option<Lsn>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) topic_bytes: TopicBytes,
    pub(super) tables: Vec<Table>,
    pub(super) config: Config,
    pub(super) failures: Failures,
}

/// What the mirror's topics hold, before compression; null while it is not known.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TopicBytes {
    pub(super) changes: Option<u64>,
    pub(super) snapshot: Option<u64>,
}

/// The options of a mirror. A name of slot or publication is there if it was given.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MirrorConfig")]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(super) options: MirrorConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replication_slot_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publication_name: Option<String>,
}

/// What each role is stuck at, if it is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Failures {
    /// From source to log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capture: Option<RoleFailure>,
    /// From log to destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) apply: Option<RoleFailure>,
}

/// The last failure of a role.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RoleFailure {
    /// What was being done, to what, and what to do.
    pub(super) message: String,
    /// Whether it waits for a person.
    pub(super) fatal: bool,
    /// Failures in a row.
    pub(super) count: u32,
    /// The first of them.
    pub(super) since: DateTime<Utc>,
    /// When it is tried again; null if fatal.
    pub(super) next_try: Option<DateTime<Utc>>,
}

/// A mapping with how far its table has come.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MirrorTable")]
pub(crate) struct Table {
    #[schemars(example = &"public.users")]
    pub(super) source_table: String,
    #[schemars(example = &"public.users")]
    pub(super) destination_table: String,
    #[schemars(example = &"id")]
    pub(super) partition_key: Option<String>,
    pub(super) exclude_columns: Vec<String>,
    pub(super) mode: TableMode,
    #[schemars(extend("enum" = TABLE_STATES))]
    pub(super) status: String,
    /// Rows loaded and rows changed since.
    pub(super) rows_synced: i64,
    pub(super) rows_inserted: i64,
    pub(super) rows_updated: i64,
    pub(super) rows_deleted: i64,
    /// Null where no snapshot was asked for.
    pub(super) snapshot: Option<Snapshot>,
    /// When a row of it was last written.
    pub(super) last_synced_at: Option<DateTime<Utc>>,
    /// Why it is ERRORED or PARKED.
    pub(super) error_message: Option<String>,
    /// While it is rebuilt from the topics: how far.
    pub(super) replay: Option<ReplayProgress>,
    /// The earliest point that the topics can rebuild it from.
    pub(super) replayable_from: Option<ReplayableFrom>,
    /// While it does not follow the log with the others: what it lacks of it, if anything.
    pub(super) behind: Option<TableLag>,
}

/// Which changes of a table are followed.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TableMode {
    /// Every one.
    All,
    /// Inserts and truncates: it has nothing to tell its rows apart by.
    InsertOnly,
}

/// Progress of a table's copy: done is what has reached the destination.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SnapshotProgress")]
pub(crate) struct Snapshot {
    pub(super) chunks_done: i64,
    /// Once known.
    pub(super) chunks_total: Option<i64>,
    pub(super) rows_done: i64,
    /// By a sample of the table's pages, once it has been looked at.
    pub(super) rows_estimate: Option<u64>,
    pub(super) bytes_done: u64,
    /// Chunks in the log, as far as this capture has published them.
    pub(super) chunks_captured: Option<u64>,
    /// Rows in the log.
    pub(super) rows_captured: Option<u64>,
}

/// Lag and positions of a mirror.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MirrorMetrics")]
pub(crate) struct Metrics {
    #[schemars(example = &"prod_to_staging")]
    pub(super) mirror_name: String,
    #[schemars(example = &"RUNNING")]
    pub(super) status: Status,
    #[schemars(example = &"CDC")]
    pub(super) current_phase: Phase,
    /// Bytes of WAL that concern the mirror and are not at the destination; at least 1 while
    /// anything is missing, tables that are loaded for the first time too.
    #[schemars(example = 2048)]
    pub(super) lag_bytes: i64,
    /// Age of the oldest change that is not at the destination; 0 when nothing is outstanding.
    #[schemars(example = 1.2)]
    pub(super) lag_seconds: f64,
    /// Rows loaded and changed.
    #[schemars(example = 1_500_000)]
    pub(super) total_rows_synced: i64,
    /// When a row was last written.
    #[schemars(example = &"2026-01-24T10:30:00Z")]
    pub(super) last_sync_time: Option<DateTime<Utc>>,
    pub(super) health: Health,
    pub(super) source: SourceView,
    pub(super) capture: CaptureLag,
    pub(super) apply: ApplyLag,
}

/// Part of the log of a mirror, newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LogPage")]
pub(crate) struct Logs {
    pub(super) logs: Vec<LogEntry>,
    /// Entries that fit the query.
    pub(super) total: i64,
    pub(super) offset: i64,
    pub(super) limit: i64,
}

/// What was asked for is written down, and being done.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Accepted")]
pub(crate) struct Command {
    pub(super) message: String,
    /// See GET /v1/mirrors/{name}/commands/{id}.
    pub(super) command_id: Uuid,
}
