//! One at a time, at the destination.

/// Statements that wait, in the open transaction, for whoever holds the advisory lock `key`, and then
/// know what that one has committed.
///
/// A session keeps names that it looked for in vain, and takes note of what others have created when it
/// locks a table, not when an advisory lock is given to it: `CREATE … IF NOT EXISTS` would still
/// find nothing, and fail. So a table is locked that no transaction of ours has locked before.
pub(crate) fn wait(key: i64) -> String {
    format!("SELECT pg_advisory_xact_lock({key}); SELECT FROM pg_catalog.pg_ts_template LIMIT 0")
}
