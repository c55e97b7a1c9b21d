//! The named points at which a test may end the process, as `kill -9` would.
//!
//! Compiled in with the `failpoints` feature and armed by the `FAILPOINTS` variable, as in
//! `FAILPOINTS="capture::after_kafka_commit=3*off->return"` (the fourth pass ends the process).
//! docs/invariants.md lists what is on disk at each of them and what the next run does.

/// The two publications exist, the slot does not.
pub const PUBLICATIONS_CREATED: &str = "capture::publications_created";
/// The slot exists, no position record names its generation.
pub const SLOT_CREATED: &str = "capture::slot_created";
/// Kafka knows the generation, the catalog does not.
pub const GENERATION_RECORDED: &str = "capture::generation_recorded";
/// All events of a Kafka transaction are produced, its outcome is open.
pub const BEFORE_KAFKA_COMMIT: &str = "capture::before_kafka_commit";
/// While a Kafka transaction commits, an event of the next one is taken.
pub const READ_ON: &str = "capture::read_on";
/// The Kafka transaction is committed, the slot is not confirmed.
pub const AFTER_KAFKA_COMMIT: &str = "capture::after_kafka_commit";
/// The slot has been confirmed up to what Kafka committed.
pub const AFTER_CONFIRM: &str = "capture::after_confirm";
/// A Kafka transaction was committed in the middle of a source transaction.
pub const MID_TRANSACTION: &str = "capture::mid_transaction";
/// The snapshot topic is gone and the position topic says so; there is no other yet.
pub const COPIES_LOST: &str = "capture::copies_lost";
/// The temporary slot of a table sync round exists.
pub const SYNC_SLOT_CREATED: &str = "capture::sync_slot_created";
/// `TableSyncStarted` of a table is in the snapshot topic.
pub const SYNC_STARTED: &str = "capture::sync_started";
/// A chunk is being copied, some of its parts are in the snapshot topic.
pub const CHUNK_MID_COPY: &str = "capture::chunk_mid_copy";
/// Every part of a chunk is acknowledged.
pub const CHUNK_DELIVERED: &str = "capture::chunk_delivered";
/// All chunks of a table are delivered, `TableSyncFinished` is not.
pub const BEFORE_SYNC_FINISHED: &str = "capture::before_sync_finished";
/// `TableSyncFinished` is delivered, the position topic does not say so.
pub const AFTER_SYNC_FINISHED: &str = "capture::after_sync_finished";
/// A pause has ended every session that could still capture; the catalog does not know yet.
pub const PAUSE_STOPPED: &str = "capture::pause_stopped";
/// The catalog knows that capture is paused.
pub const PAUSE_RECORDED: &str = "capture::pause_recorded";
/// Of a mirror being deleted, slot and publications are gone (or known to be out of reach).
pub const REMOVAL_SOURCE_CLEAN: &str = "capture::removal_source_clean";
/// The topics are gone too, the mirror's row is not.
pub const REMOVAL_TOPICS_CLEAN: &str = "capture::removal_topics_clean";
/// A table that lost its identity stands in the other publication, the log does not say so.
pub const TABLE_MOVED: &str = "capture::table_moved";
/// A table changed outside the stream, nobody has been told.
pub const UNTRACKED_FOUND: &str = "capture::untracked_found";
/// Its sync is asked for in the catalog, the position topic holds what was known before.
pub const UNTRACKED_REQUESTED: &str = "capture::untracked_requested";
/// The source's definitions are read for a schema sync, apply does not have them.
pub const DEFINITIONS_READ: &str = "capture::definitions_read";
/// Apply has them.
pub const DEFINITIONS_HANDED_OVER: &str = "capture::definitions_handed_over";

/// The log remembers what is asked for, nobody has acted on it.
pub const WISH_REMEMBERED: &str = "capture::wish_remembered";
/// Every copy of a checkpoint is in the topics, its command does not say so.
pub const CHECKPOINT_COPIED: &str = "capture::checkpoint_copied";
/// The catalog knows which log is to be adopted; apply has not told of the destination.
pub const LOG_TOLD: &str = "capture::log_told";

/// Ends the process here when a test has armed `name`; nothing otherwise.
pub(crate) fn crash_point(name: &'static str) {
    fail::fail_point!(name, |_| crash(name));
    let _ = name;
}

/// Whether a test has armed `name`.
pub(crate) fn is_armed(name: &str) -> bool {
    #[cfg(feature = "failpoints")]
    return fail::list().iter().any(|(armed, _)| armed == name);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        false
    }
}

#[cfg(feature = "failpoints")]
fn crash(name: &str) {
    eprintln!("crash point {name}");
    std::process::abort();
}
