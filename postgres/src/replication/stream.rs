//! The running stream.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pgwire_replication::{Lsn as WireLsn, ReplicationEvent};

use super::{Replication, commands};
use crate::pgoutput::unix_from_postgres_us;
use crate::{Error, Lsn, Result};

/// How long [`WalStream::stop`] waits for the last confirmation to be sent, and again
/// for the stream to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Any other message.
    Change {
        /// Where the log holds the change itself, before the transaction's commit.
        lsn: Lsn,
        /// For [`crate::pgoutput::decode`].
        message: Bytes,
    },
    /// The server has sent every transaction that commits before `wal_end`. It may
    /// come in the middle of a transaction, whose commit then lies beyond.
    Keepalive {
        /// How far the server has read its log for this slot.
        wal_end: Lsn,
        /// The server waits for a confirmation, as one that is shutting down does.
        reply_requested: bool,
    },
    /// A message from `pg_logical_emit_message`, which nobody here reads.
    LogicalMessage,
}

/// A running stream. Dropping it closes the connection; the server then frees the slot.
pub struct WalStream {
    session: Replication,
    doing: String,
    /// The highest position given to [`WalStream::confirm`].
    confirmed: AtomicU64,
}

impl WalStream {
    pub(super) fn new(session: Replication, doing: String, start_lsn: Lsn) -> Self {
        session.link.flow().gate();
        WalStream {
            session,
            doing,
            confirmed: AtomicU64::new(start_lsn.0),
        }
    }

    /// Waits for the next event. Safe to drop and call again: no event is lost.
    ///
    /// # Errors
    /// Any error ends the stream; what had arrived before it is handed out first.
    pub async fn next(&mut self) -> Result<WalEvent> {
        let Replication { wire, link, .. } = &mut self.session;
        let flow = link.flow();
        let received = {
            let mut starving = None;
            let mut receiving = pin!(wire.0.recv());
            poll_fn(|context| {
                let polled = receiving.as_mut().poll(context);
                if polled.is_pending() && starving.is_none() {
                    starving = Some(flow.starve());
                }
                polled
            })
            .await
        };
        match received {
            Ok(Some(event)) => {
                flow.took(wire_bytes(&event));
                self.translate(event)
            }
            Ok(None) => Err(self.ended()),
            Err(error) => Err(commands::error(&self.doing, error)),
        }
    }

    fn translate(&self, event: ReplicationEvent) -> Result<WalEvent> {
        Ok(match event {
            ReplicationEvent::XLogData {
                wal_start, data, ..
            } => WalEvent::Change {
                lsn: Lsn(wal_start.as_u64()),
                message: data,
            },
            ReplicationEvent::Begin {
                final_lsn,
                xid,
                commit_time_micros,
            } => WalEvent::Begin {
                final_lsn: Lsn(final_lsn.as_u64()),
                commit_ts_us: unix_from_postgres_us(commit_time_micros),
                xid,
            },
            ReplicationEvent::Commit {
                lsn,
                end_lsn,
                commit_time_micros,
            } => WalEvent::Commit {
                commit_lsn: Lsn(lsn.as_u64()),
                end_lsn: Lsn(end_lsn.as_u64()),
                commit_ts_us: unix_from_postgres_us(commit_time_micros),
            },
            ReplicationEvent::KeepAlive {
                wal_end,
                reply_requested,
                ..
            } => WalEvent::Keepalive {
                wal_end: Lsn(wal_end.as_u64()),
                reply_requested,
            },
            ReplicationEvent::Message { .. } => WalEvent::LogicalMessage,
            // Only with a stop position, which is never set.
            ReplicationEvent::StoppedAt { .. } => return Err(self.ended()),
        })
    }

    fn ended(&self) -> Error {
        Error::Replication {
            doing: self.doing.clone(),
            message: "the stream has ended".to_owned(),
            sqlstate: None,
            connection_lost: true,
        }
    }

    /// Lets the server forget its log up to `lsn`: told to it within half a second.
    /// Call it only with a position that is recorded safely (invariant I1). A position
    /// lower than an earlier one changes nothing.
    pub fn confirm(&self, lsn: Lsn) {
        self.confirmed.fetch_max(lsn.0, Ordering::AcqRel);
        self.session
            .wire
            .0
            .update_applied_lsn(WireLsn::from_u64(lsn.0));
    }

    /// The pid of the walsender process.
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid()
    }

    /// Tells the server the last confirmed position, then ends the stream in order and
    /// waits for the server to close it. Events that have not been taken are dropped.
    /// Takes at most 4 s.
    pub async fn stop(self) {
        let Replication { mut wire, link, .. } = self.session;
        link.flow().lift();
        let client = &mut wire.0;
        let metrics = client.metrics();
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let told = async {
            // Ending by itself would not send the last status.
            while client.is_running() && metrics.last_applied_lsn().as_u64() < confirmed {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(STOP_TIMEOUT, told).await;
        let ended = async {
            let _ = client.shutdown().await;
            link.closed().await;
        };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
    }
}

/// How many bytes of the server's an event was: the CopyData frame (5), the header of
/// the WAL data in it (25), and the message.
fn wire_bytes(event: &ReplicationEvent) -> u64 {
    const FRAME: u64 = 30;
    match event {
        ReplicationEvent::XLogData { data, .. } => FRAME + data.len() as u64,
        ReplicationEvent::Begin { .. } => FRAME + 21,
        ReplicationEvent::Commit { .. } => FRAME + 26,
        ReplicationEvent::Message {
            prefix, content, ..
        } => FRAME + 15 + (prefix.len() + content.len()) as u64,
        ReplicationEvent::KeepAlive { .. } => 23,
        ReplicationEvent::StoppedAt { .. } => 0,
    }
}
