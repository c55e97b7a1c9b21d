//! The replication session.

use bytes::Bytes;

use crate::{ConnectOptions, Error, Lsn, Result};

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemId {
    /// The cluster's identity.
    pub system_id: String,
    /// The timeline written now.
    pub timeline: u32,
    /// How far the log is flushed.
    pub flush_lsn: Lsn,
}

/// An open replication session that does not stream yet.
pub struct Replication {
    _options: ConnectOptions,
}

impl Replication {
    /// Opens the session.
    pub async fn connect(
        _options: &ConnectOptions,
        _application_name: &str,
        _slot: &str,
        _publications: &[String],
    ) -> Result<Replication> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Pid of the server process.
    pub fn backend_pid(&self) -> i32 {
        0
    }
    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<SystemId> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// TIMELINE_HISTORY.
    pub async fn timeline_history(&mut self, _timeline: u32) -> Result<Option<Vec<(u32, Lsn)>>> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Creates a permanent slot.
    pub async fn create_slot(&mut self, _name: &str) -> Result<Lsn> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Drops a slot; false when there was none.
    pub async fn drop_slot(&mut self, _name: &str) -> Result<bool> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Creates a temporary slot and keeps the session for its snapshot.
    pub async fn create_temporary_slot_exporting(self, _name: &str) -> Result<ExportedSnapshot> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Streams.
    pub async fn start(self, _start_lsn: Lsn) -> Result<WalStream> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
}

/// An exported snapshot; dropping it closes the session and the temporary slot.
pub struct ExportedSnapshot {
    /// The consistent point.
    pub lsn: Lsn,
    /// For SET TRANSACTION SNAPSHOT.
    pub snapshot_name: String,
    _session: Replication,
}

impl ExportedSnapshot {
    /// Closes the session and waits for it to end.
    pub async fn close(self) {}
}

/// A running stream.
pub struct WalStream {
    _options: ConnectOptions,
}

impl WalStream {
    /// The next event.
    pub async fn next(&mut self) -> Result<WalEvent> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Confirms.
    pub fn confirm(&self, _lsn: Lsn) {}
    /// Stops.
    pub async fn stop(self) {}
}

/// One event of the stream. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// A transaction begins.
    Begin {
        /// Position of its commit record.
        final_lsn: Lsn,
        /// Commit time.
        commit_ts_us: i64,
        /// Transaction id.
        xid: u32,
    },
    /// A transaction is complete.
    Commit {
        /// Position of its commit record.
        commit_lsn: Lsn,
        /// Position right after it.
        end_lsn: Lsn,
        /// Commit time.
        commit_ts_us: i64,
    },
    /// A pgoutput message for [`crate::pgoutput::decode`].
    Change(Bytes),
    /// The server is at `wal_end` and has nothing before it to send.
    Keepalive {
        /// Where the server is.
        wal_end: Lsn,
    },
    /// A message from `pg_logical_emit_message`.
    LogicalMessage,
}
