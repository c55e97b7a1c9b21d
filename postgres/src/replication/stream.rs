//! The running stream.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};

use super::gulp::Gulps;
use super::link::Transport;
use super::low_water::LowWater;
use super::status::Status;
use super::wire::{self, Frame, Malformed, Said};
use crate::pgoutput::{self, Message};
use crate::{Error, Lsn, Result};

/// How long [`WalStream::stop`] waits for the stream to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// How much is read from the server at a time, unless one event is larger.
const READ_BYTES: usize = 256 * 1024;

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
}

/// A running stream. Dropping it closes the connection; the server then frees the slot.
pub struct WalStream {
    from_server: ReadHalf<Box<dyn Transport>>,
    status: Status,
    /// What was read and not handed out.
    buffer: BytesMut,
    /// The buffer was made larger for a large event.
    is_stretched: bool,
    gulps: Gulps,
    low_water: LowWater,
    /// How the connection ended; told once the buffer is empty.
    broken: Option<std::io::Error>,
    backend_pid: i32,
    doing: String,
}

impl WalStream {
    /// Sends `sql`, a START_REPLICATION, and waits until the server has agreed.
    pub(super) async fn start(
        (mut server, low_water): (Box<dyn Transport>, LowWater),
        sql: &str,
        doing: String,
        backend_pid: i32,
        start_lsn: Lsn,
    ) -> Result<WalStream> {
        server
            .write_all(&wire::query(sql))
            .await
            .map_err(|error| lost(&doing, error.to_string()))?;
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            match take_frame(&mut buffer, &doing)? {
                Ok(Frame { kind: b'W', .. }) => break,
                Ok(frame) => refused(&frame, &doing)?,
                Err(_) => {
                    let read = server.read_buf(&mut buffer).await;
                    heard(read, &doing)?;
                }
            }
        }
        let (from_server, to_server) = tokio::io::split(server);
        Ok(WalStream {
            from_server,
            status: Status::spawn(to_server, start_lsn),
            buffer,
            is_stretched: false,
            gulps: Gulps::new(Instant::now()),
            low_water,
            broken: None,
            backend_pid,
            doing,
        })
    }

    /// Waits for the next event. Safe to drop and call again: no event is lost.
    ///
    /// # Errors
    /// Any error ends the stream; what had arrived before it is handed out first.
    pub async fn next(&mut self) -> Result<WalEvent> {
        loop {
            match self.buffered()? {
                Ok(event) => return Ok(event),
                Err(missing) => self.fill(missing).await?,
            }
        }
    }

    /// The next event if it has arrived already. Costs no more than decoding it.
    ///
    /// # Errors
    /// As of [`WalStream::next`].
    pub fn next_buffered(&mut self) -> Result<Option<WalEvent>> {
        Ok(self.buffered()?.ok())
    }

    /// Until when more is expected, while much is coming; `None` while little does. A stream
    /// that flows lets bytes gather, so that [`WalStream::next`] has nothing to give just now
    /// does not mean that the server has nothing to send.
    pub fn flows_until(&self) -> Option<Instant> {
        self.gulps.flows_until()
    }

    /// The first event in the buffer, or how many bytes are missing at least.
    fn buffered(&mut self) -> Result<Result<WalEvent, usize>> {
        loop {
            let frame = match take_frame(&mut self.buffer, &self.doing)? {
                Ok(frame) => frame,
                Err(missing) => return Ok(Err(missing)),
            };
            if frame.kind != b'd' {
                refused(&frame, &self.doing)?;
                continue;
            }
            let said = wire::read_copy_data(frame.body);
            let event = match said.map_err(|error| malformed(&self.doing, error))? {
                Said::Wal { start, message } => translate(start, message)?,
                Said::Keepalive {
                    wal_end,
                    reply_requested,
                } => {
                    if reply_requested {
                        self.status.answer();
                    }
                    WalEvent::Keepalive {
                        wal_end,
                        reply_requested,
                    }
                }
            };
            return Ok(Ok(event));
        }
    }

    /// Reads what there is, once much is coming after a pause. Safe to drop.
    async fn fill(&mut self, missing: usize) -> Result<()> {
        if let Some(until) = self.gulps.pause_until(Instant::now()) {
            tokio::time::sleep_until(until.into()).await;
        }
        self.low_water.lower();
        if missing > READ_BYTES {
            self.is_stretched = true;
            self.buffer.reserve(missing);
        } else if self.is_stretched && self.buffer.len() + missing <= READ_BYTES {
            // The memory of a large event goes with it.
            let mut usual = BytesMut::with_capacity(READ_BYTES);
            usual.extend_from_slice(&self.buffer);
            self.buffer = usual;
            self.is_stretched = false;
        } else {
            self.buffer.reserve(READ_BYTES);
        }
        let read = match self.broken.take() {
            Some(error) => Err(error),
            None => self.from_server.read_buf(&mut self.buffer).await,
        };
        let first = heard(read, &self.doing)?;
        let (rest, is_drained) = self.read_on();
        self.gulps.read(first + rest, is_drained, Instant::now());
        if self.gulps.flows_until().is_some() {
            self.low_water.raise();
        }
        Ok(())
    }

    /// Reads what else is there, as far as there is room: TLS gives no more than a record at a
    /// time. Says whether nothing is left.
    fn read_on(&mut self) -> (usize, bool) {
        let mut bytes = 0;
        while self.buffer.len() < self.buffer.capacity() {
            match self.from_server.read_buf(&mut self.buffer).now_or_never() {
                // The end is read once more when its turn has come.
                Some(Ok(0)) | None => return (bytes, true),
                Some(Ok(more)) => bytes += more,
                Some(Err(error)) => {
                    self.broken = Some(error);
                    return (bytes, true);
                }
            }
        }
        (bytes, false)
    }

    /// Lets the server forget its log up to `lsn`: told to it within 100 ms.
    /// Call it only with a position that is recorded safely (invariant I1). A position
    /// lower than an earlier one changes nothing.
    pub fn confirm(&self, lsn: Lsn) {
        self.status.confirm(lsn);
    }

    /// The pid of the walsender process.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Tells the server the last confirmed position, then ends the stream in order and
    /// waits for the server to close it. Events that have not been taken are dropped.
    /// Takes at most 4 s.
    pub async fn stop(self) {
        let WalStream {
            mut from_server,
            mut low_water,
            status,
            ..
        } = self;
        // The server may be waiting for room to send, and hears us only then.
        low_water.lower();
        let drained = async {
            let _ = tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await;
        };
        let ended = async { tokio::join!(status.end(), drained) };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
    }
}

fn translate(start: Lsn, message: Bytes) -> Result<WalEvent> {
    if !matches!(message.first(), Some(b'B' | b'C')) {
        return Ok(WalEvent::Change {
            lsn: start,
            message,
        });
    }
    Ok(match pgoutput::decode(&message)? {
        Message::Begin {
            final_lsn,
            commit_ts_us,
            xid,
        } => WalEvent::Begin {
            final_lsn,
            commit_ts_us,
            xid,
        },
        Message::Commit {
            commit_lsn,
            end_lsn,
            commit_ts_us,
        } => WalEvent::Commit {
            commit_lsn,
            end_lsn,
            commit_ts_us,
        },
        _ => WalEvent::Change {
            lsn: start,
            message,
        },
    })
}

fn take_frame(buffer: &mut BytesMut, doing: &str) -> Result<Result<Frame, usize>> {
    wire::take_frame(buffer).map_err(|error| malformed(doing, error))
}

/// A frame that is not of the copy: an error ends the stream, others mean nothing here
/// (notices, changed settings, the end of the copy, after which the server closes).
fn refused(frame: &Frame, doing: &str) -> Result<()> {
    if frame.kind != b'E' {
        return Ok(());
    }
    let (message, sqlstate) = wire::read_error(&frame.body);
    Err(Error::Replication {
        doing: doing.to_owned(),
        message,
        sqlstate,
        connection_lost: false,
    })
}

fn heard(read: std::io::Result<usize>, doing: &str) -> Result<usize> {
    match read {
        Ok(0) => Err(lost(doing, "the stream has ended".to_owned())),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(lost(doing, error.to_string())),
    }
}

/// Connecting again helps: the position to go on from is recorded elsewhere.
fn malformed(doing: &str, Malformed(what): Malformed) -> Error {
    lost(doing, format!("the server sent {what}"))
}

fn lost(doing: &str, message: String) -> Error {
    Error::Replication {
        doing: doing.to_owned(),
        message,
        sqlstate: None,
        connection_lost: true,
    }
}
