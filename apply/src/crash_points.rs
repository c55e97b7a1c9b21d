//! The named places where a test can kill the process.
//!
//! Compiled in with the `failpoints` feature only; which one fires, and after how many
//! passes, is said by the `FAILPOINTS` variable, for example
//! `FAILPOINTS="apply::before_commit=3*off->return"`.

/// The destination remembers what is asked for, nobody has acted on it.
pub const WISH_REMEMBERED: &str = "apply::wish_remembered";
/// Table states are as the catalog wants them; nothing is loaded or caught up for that yet.
pub const TABLES_RECONCILED: &str = "apply::tables_reconciled";
/// Every table that a command waits for has settled; the command does not say so yet.
pub const TABLES_SETTLED: &str = "apply::tables_settled";
/// It is known which copies of the destination are to be adopted, the catalog does not know.
pub const COPIES_FOUND: &str = "apply::copies_found";
/// Before a batch's destination transaction begins.
pub const BEFORE_BEGIN: &str = "apply::before_begin";
/// The destination transaction is open and fenced, nothing is written yet.
pub const AFTER_BEGIN: &str = "apply::after_begin";
/// The next batch is begun and staged in the other session, the one before may not be committed.
pub const PREPARED_AHEAD: &str = "apply::prepared_ahead";
/// The batch before a prepared one is committed; of this one nothing is outside of its staging.
pub const BEFORE_MERGE: &str = "apply::before_merge";
/// The rows of a batch are written, its progress is not.
pub const AFTER_WRITE: &str = "apply::after_write";
/// Rows are written, and all else but what travels with COMMIT: counts and progress.
pub const BEFORE_COMMIT: &str = "apply::before_commit";
/// Committed at the destination; the consumer group does not know yet.
pub const AFTER_COMMIT: &str = "apply::after_commit";
/// The consumer group's offset is committed too.
pub const AFTER_GROUP_COMMIT: &str = "apply::after_group_commit";
/// A part of a transaction larger than a batch is written, its end is not read yet.
pub const MID_LARGE_TRANSACTION: &str = "apply::mid_large_transaction";
/// The owner epoch is raised, former sessions are terminated.
pub const AFTER_TAKE_OVER: &str = "apply::after_take_over";
/// A table sync's chunk is half copied.
pub const CHUNK_MID_COPY: &str = "apply::chunk_mid_copy";
/// A chunk is copied and recorded, not committed.
pub const CHUNK_BEFORE_COMMIT: &str = "apply::chunk_before_commit";
/// A chunk is committed.
pub const CHUNK_AFTER_COMMIT: &str = "apply::chunk_after_commit";
/// A table sync is known at the destination, nothing of it is loaded yet.
pub const SYNC_STARTED: &str = "apply::sync_started";
/// All chunks of a table are committed, its indexes and constraints are not built.
pub const CHUNKS_LOADED: &str = "apply::chunks_loaded";
/// One index, constraint or foreign key is built, others may not be.
pub const OBJECT_BUILT: &str = "apply::object_built";
/// A foreign key is added, or checked; what comes next of it is not done.
pub const FOREIGN_KEY_STEP: &str = "apply::foreign_key_step";
/// One table is stored as loaded, others may not be.
pub const TABLE_LOADED: &str = "apply::table_loaded";
/// All tables are loaded; they are not in main yet.
pub const TABLES_LOADED: &str = "apply::tables_loaded";
/// A pause has fenced every writer off; the catalog does not know yet.
pub const PAUSE_FENCED: &str = "apply::pause_fenced";
/// The catalog knows that apply is paused.
pub const PAUSE_RECORDED: &str = "apply::pause_recorded";
/// Of a mirror being deleted, nothing is left in `_bunny`; the command does not say so yet.
pub const REMOVAL_CLEAN: &str = "apply::removal_clean";
/// Rows and offsets of tables that catch up are written, not committed.
pub const CATCH_UP_BEFORE_COMMIT: &str = "apply::catch_up_before_commit";
/// They are committed.
pub const CATCH_UP_AFTER_COMMIT: &str = "apply::catch_up_after_commit";
/// Main holds, and the tables that catch up are where it stands.
pub const CATCH_UP_HELD: &str = "apply::catch_up_held";
/// Tables are marked as in main, not committed.
pub const CATCH_UP_BEFORE_JOIN: &str = "apply::catch_up_before_join";
/// Tables are in main, which does not know yet.
pub const CATCH_UP_JOINED: &str = "apply::catch_up_joined";
/// A table is out of main, so that its rows can be exchanged.
pub const SWAP_TAKEN_OUT: &str = "apply::swap_taken_out";
/// Rows are exchanged, not committed.
pub const SWAP_BEFORE_COMMIT: &str = "apply::swap_before_commit";
/// Rows are exchanged; the table is not in main yet.
pub const SWAP_DONE: &str = "apply::swap_done";

/// What was let go beside a table is dropped and forgotten, not committed.
pub const BESIDE_DROPPED: &str = "apply::beside_dropped";

/// A locked table is PARKED; main, or the catch-up reader, has not gone on yet.
pub const TABLE_PARKED: &str = "apply::table_parked";

/// Every table is out of main, whose progress is the begin of another generation.
pub const GENERATION_ENTERED: &str = "apply::generation_entered";

/// The catalog permits more to be trimmed than is; that it is to be is not stored yet.
pub const TRIM_GRANTED: &str = "apply::trim_granted";
/// What the change topic is kept for is stored; nothing is trimmed yet.
pub const RETENTION_RAISED: &str = "apply::retention_raised";

/// Tables stand where a replay was to stop; the catalog does not know yet.
pub const REPLAY_STANDS: &str = "apply::replay_stands";

/// A destination table is altered for a new version, its rows are not written yet.
pub const SCHEMA_CHANGED: &str = "apply::schema_changed";
/// A new enum label is committed, the rows that hold it are not written yet.
pub const LABEL_ADDED: &str = "apply::label_added";
/// Main holds for a schema sync; the catalog does not know yet.
pub const SCHEMA_SYNC_HELD: &str = "apply::schema_sync_held";
/// A table is altered for a schema sync, not committed.
pub const SCHEMA_SYNC_ALTERED: &str = "apply::schema_sync_altered";
/// Some statements of a schema sync are committed, others may not be.
pub const SCHEMA_SYNC_STEP: &str = "apply::schema_sync_step";
/// Every table has had its turn; the command does not say so yet.
pub const SCHEMA_SYNC_DONE: &str = "apply::schema_sync_done";
/// The command has ended; what it did is still remembered at the destination.
pub const SCHEMA_SYNC_TOLD: &str = "apply::schema_sync_told";

/// Every crash point of this crate, for tests that walk through them.
pub const ALL: &[&str] = &[
    WISH_REMEMBERED,
    TABLES_RECONCILED,
    TABLES_SETTLED,
    COPIES_FOUND,
    BEFORE_BEGIN,
    AFTER_BEGIN,
    PREPARED_AHEAD,
    BEFORE_MERGE,
    AFTER_WRITE,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    AFTER_GROUP_COMMIT,
    MID_LARGE_TRANSACTION,
    AFTER_TAKE_OVER,
    CHUNK_MID_COPY,
    CHUNK_BEFORE_COMMIT,
    CHUNK_AFTER_COMMIT,
    SYNC_STARTED,
    CHUNKS_LOADED,
    OBJECT_BUILT,
    FOREIGN_KEY_STEP,
    TABLE_LOADED,
    TABLES_LOADED,
    PAUSE_FENCED,
    PAUSE_RECORDED,
    REMOVAL_CLEAN,
    SCHEMA_CHANGED,
    LABEL_ADDED,
    CATCH_UP_BEFORE_COMMIT,
    CATCH_UP_AFTER_COMMIT,
    CATCH_UP_HELD,
    CATCH_UP_BEFORE_JOIN,
    CATCH_UP_JOINED,
    REPLAY_STANDS,
    SWAP_TAKEN_OUT,
    SWAP_BEFORE_COMMIT,
    SWAP_DONE,
    BESIDE_DROPPED,
    GENERATION_ENTERED,
    TABLE_PARKED,
    SCHEMA_SYNC_HELD,
    SCHEMA_SYNC_ALTERED,
    SCHEMA_SYNC_STEP,
    SCHEMA_SYNC_DONE,
    SCHEMA_SYNC_TOLD,
    TRIM_GRANTED,
    RETENTION_RAISED,
];

/// Dies here, as by `kill -9`, when the point is armed.
pub fn reached(point: &'static str) {
    #[cfg(feature = "failpoints")]
    if fail::eval(point, |_| ()).is_some() {
        use std::io::Write;
        let mut stderr = std::io::stderr().lock();
        let _ = writeln!(stderr, "crash point {point}");
        let _ = stderr.flush();
        std::process::abort();
    }
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}
