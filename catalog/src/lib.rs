//! Control-plane state: what users want (peers, mirrors, commands), who acts on
//! it (leases, the supervising loop), and what the workers last said.
//!
//! The catalog owns desired state, users and peers. Whatever else it holds is
//! a cache of what the source, Kafka or the destination know better. It knows
//! no Kafka. When its database is away, running work goes on: nothing on the
//! data path waits for it.

mod adopt;
mod audit;
mod catalog;
mod checkpoints;
mod commands;
pub mod crash_points;
mod encryption;
mod error;
mod lag;
mod last_wish;
mod leases;
mod logs;
mod mirrors;
mod pausing;
mod peers;
mod replay;
mod reports;
mod retry;
mod rotation;
mod schema_sync;
mod settings;
mod status;
mod supervise;
mod sweep;
mod tables;
mod topic_bytes;
mod untracked;
mod users;

pub use adopt::{ADOPT, AdoptedTable, FoundLog};
pub use audit::AuditEntry;
pub use catalog::{Catalog, Location};
pub use checkpoints::CHECKPOINT;
pub use commands::{Command, CommandState};
pub use encryption::EncryptionKey;
pub use error::{Error, Result};
pub use lag::{ApplyLag, CaptureLag, LagView, SourceView, TableLag, lag, table_lag};
pub use leases::{Lease, Renewed, Role};
pub use logs::{LogEntry, LogLevel, LogQuery};
pub use mirrors::{
    ApplyMode, Attach, AttachedTable, Desired, Granted, InitialCopy, Mirror, MirrorChange,
    MirrorConfig, MirrorTable, NAME_LENGTH_MAX, NAMES_CLAIMED, NewMirror, NewMirrorTable,
    OnExistingRows, OnTableError, Owner, PauseScope, ResyncStrategy, SchemaChanges, TableInUse,
    TableTopics, UntrackedChanges, check_name, slugs,
};
pub use peers::{NewPeer, Peer};
pub use replay::{NewReplay, REPLAY, Replay, RetainedSync, Until};
pub use reports::{
    ApplyReport, Behind, CaptureReport, Failure, Point, ReplayProgress, ReplayableFrom, Report,
    Reports, RoleState, SyncProgress, SyncRefusal, TABLE_STATES, TableReport,
};
pub use rotation::Rotated;
pub use schema_sync::{HELD, READ, SYNC_SCHEMA, SourceDefinitions, sync_mode};
pub use status::{Health, Phase, Status, StatusView, derive};
pub use supervise::{
    FailureKind, Finished, MirrorContext, Outcome, Reporter, SuperviseOptions, TaskFailure,
    supervise,
};
pub use sweep::{AUDIT_DAYS, Swept};
pub use tables::{AwaitedTable, RESYNC, TABLES, TableChanges};
pub use topic_bytes::TopicBytes;
pub use untracked::{Cure, UntrackedChange};
pub use users::{User, UserRole};
