//! The stream of one mirror: WAL events in, Kafka transactions out, the slot confirmed.
//!
//! One event is held back until it is known whether the source transaction ends with it;
//! the recorded position never includes it.

use std::time::{Duration, Instant};

use bunny_postgres::pgoutput::{self, Message};
use bunny_postgres::replication::{WalEvent, WalStream};
use bunny_postgres::{Lsn, Session};
use bunny_schemas::Position;
use bunny_schemas::control::{PositionRecord, SyncRecord};
use bunny_schemas::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::change::{Encoded, EventEncoder, RowChange};
use crate::crash_points::{AFTER_CONFIRM, MID_TRANSACTION, crash_point};
use crate::error::{Error, Result};
use crate::publisher::{Publisher, Tables};
use crate::slot::Sequencer;
use crate::snapshot::{Passed, SyncRequest};

/// How often a position that only keepalives moved is recorded, so that a quiet source
/// does not keep WAL for us (invariant I1).
const IDLE_RECORD_INTERVAL: Duration = Duration::from_secs(10);

/// What the stream tells the report.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Status {
    /// Commit time, µs since the epoch, of the oldest source transaction received and not
    /// yet published whole; `None` when nothing is outstanding.
    pub(crate) oldest_open_commit_us: Option<i64>,
    pub(crate) events_published: u64,
}

/// One event, encoded, waiting to learn whether it is the last of its transaction.
struct Held {
    event: Encoded,
    position: Position,
}

pub(crate) struct Stream {
    wal: WalStream,
    publisher: Publisher,
    tables: Tables,
    sequencer: Sequencer,
    encoder: EventEncoder,
    held: Option<Held>,
    /// What a commit would record now.
    reached: PositionRecord,
    /// What the last commit recorded.
    recorded: PositionRecord,
    recorded_at: Instant,
    sync_requests: mpsc::Receiver<SyncRequest>,
    syncs_waiting: Vec<SyncRequest>,
    /// Events sent since the last commit.
    sent: u64,
    passed: watch::Sender<Passed>,
    status: watch::Sender<Status>,
}

/// What [`Stream::new`] is made of; `record` is the position the run starts from.
pub(crate) struct Parts {
    pub(crate) wal: WalStream,
    pub(crate) publisher: Publisher,
    pub(crate) tables: Tables,
    pub(crate) encoder: EventEncoder,
    pub(crate) record: PositionRecord,
    pub(crate) sync_requests: mpsc::Receiver<SyncRequest>,
    pub(crate) passed: watch::Sender<Passed>,
    pub(crate) status: watch::Sender<Status>,
}

impl Stream {
    pub(crate) fn new(parts: Parts) -> Self {
        let resume_after = Position {
            commit_lsn: parts.record.commit_lsn,
            seq: parts.record.seq,
        };
        parts.passed.send_replace(Passed {
            lsn: parts.record.confirm_lsn,
            published: resume_after,
        });
        Self {
            wal: parts.wal,
            publisher: parts.publisher,
            tables: parts.tables,
            sequencer: Sequencer::new(resume_after),
            encoder: parts.encoder,
            held: None,
            reached: parts.record.clone(),
            recorded: parts.record,
            recorded_at: Instant::now(),
            sync_requests: parts.sync_requests,
            syncs_waiting: Vec::new(),
            sent: 0,
            passed: parts.passed,
            status: parts.status,
        }
    }

    /// Runs until `cancel`, or the first error. A cancelled stream commits what it has and
    /// tells the slot.
    pub(crate) async fn run(
        mut self,
        source: &Session,
        registry: &Registry,
        cancel: CancellationToken,
    ) -> Result<()> {
        loop {
            let idle_record_at = self.recorded_at + IDLE_RECORD_INTERVAL;
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(request) = self.sync_requests.recv() => {
                    self.syncs_waiting.push(request);
                    self.commit().await?;
                }
                event = self.wal.next() => {
                    self.take(event?, source, registry).await?;
                    if self.publisher.is_due() {
                        self.commit().await?;
                    }
                }
                // The source has nothing more to give. The other tasks had their turn first,
                // so an event that was only waiting to be handed over is not overlooked.
                () = tokio::task::yield_now(), if self.publisher.has_open() => {
                    self.commit().await?;
                }
                () = tokio::time::sleep_until(idle_record_at.into()), if self.moved() => {
                    self.commit().await?;
                }
            }
        }
        if self.publisher.has_open() {
            self.commit().await?;
        }
        self.wal.stop().await;
        Ok(())
    }

    fn moved(&self) -> bool {
        self.reached.confirm_lsn > self.recorded.confirm_lsn
    }

    async fn take(&mut self, event: WalEvent, source: &Session, registry: &Registry) -> Result<()> {
        match event {
            WalEvent::Begin {
                final_lsn,
                commit_ts_us,
                xid,
            } => {
                self.sequencer.begin(final_lsn, commit_ts_us, xid)?;
                self.status.send_if_modified(|status| {
                    let first = status.oldest_open_commit_us.is_none();
                    status.oldest_open_commit_us.get_or_insert(commit_ts_us);
                    first
                });
            }
            WalEvent::Change { lsn, message } => {
                self.change(lsn, &message, source, registry).await?;
            }
            WalEvent::Commit {
                commit_lsn,
                end_lsn,
                ..
            } => {
                if let Some(mut last) = self.held.take() {
                    last.event.set_last();
                    self.send(last).await?;
                }
                self.sequencer.commit(commit_lsn)?;
                self.reached.confirm_lsn = end_lsn;
                self.quiet_up_to(end_lsn);
            }
            WalEvent::Keepalive {
                wal_end,
                reply_requested,
            } => {
                self.quiet_up_to(wal_end);
                // A source that shuts down waits until everything it sent is confirmed.
                if reply_requested && self.moved() && self.sequencer.open().is_none() {
                    self.commit().await?;
                }
            }
            WalEvent::LogicalMessage => {}
        }
        Ok(())
    }

    /// Everything committed before `lsn` has been received. It is published too, if no
    /// source transaction is open and no Kafka transaction either.
    fn quiet_up_to(&mut self, lsn: Lsn) {
        if self.sequencer.open().is_some() || self.publisher.has_open() {
            return;
        }
        self.reached.confirm_lsn = self.reached.confirm_lsn.max(lsn);
        self.passed
            .send_modify(|passed| passed.lsn = passed.lsn.max(lsn));
        self.status
            .send_modify(|status| status.oldest_open_commit_us = None);
    }

    async fn change(
        &mut self,
        lsn: Lsn,
        message: &[u8],
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        let message = pgoutput::decode(message).map_err(bunny_postgres::Error::from)?;
        let relation = match &message {
            Message::Relation(_) => {
                if let Message::Relation(relation) = message {
                    self.tables.describe(relation, source, registry).await?;
                }
                return Ok(());
            }
            Message::Insert { relation, .. }
            | Message::Update { relation, .. }
            | Message::Delete { relation, .. } => *relation,
            Message::Truncate { relations, .. } => {
                let Some(position) = self.sequencer.row()? else {
                    return Ok(());
                };
                return self.truncate(&message, relations, lsn, position).await;
            }
            _ => return Ok(()),
        };
        let Some(position) = self.sequencer.row()? else {
            return Ok(());
        };
        let Some(table) = self.tables.get(relation)? else {
            return Ok(());
        };
        let new = match &message {
            Message::Insert { new, .. } | Message::Update { new, .. } => Some(new),
            _ => None,
        };
        if new.is_some_and(|new| table.has_new_label(new)) {
            self.tables
                .describe_again(relation, source, registry)
                .await?;
        }
        let Some(table) = self.tables.get(relation)? else {
            return Ok(());
        };
        let open = *self
            .sequencer
            .open()
            .ok_or_else(|| Error::transient("a row change outside a transaction"))?;
        let change = match &message {
            Message::Insert { new, .. } => RowChange::Insert(new),
            Message::Update { old, new, .. } => RowChange::Update(old.as_ref(), new),
            Message::Delete { old, .. } => RowChange::Delete(old),
            _ => return Ok(()),
        };
        let event = self
            .encoder
            .row(table, &open.at(lsn, position.seq), &change)?;
        self.hold(Held { event, position }).await
    }

    async fn truncate(
        &mut self,
        message: &Message<'_>,
        relations: &[u32],
        lsn: Lsn,
        position: Position,
    ) -> Result<()> {
        let Message::Truncate {
            cascade,
            restart_identity,
            ..
        } = message
        else {
            return Ok(());
        };
        let mut tables = Vec::with_capacity(relations.len());
        for relation in relations {
            if let Some(table) = self.tables.get(*relation)? {
                tables.push(table);
            }
        }
        let Some(open) = self.sequencer.open().copied() else {
            return Err(Error::transient("a truncate outside a transaction"));
        };
        if tables.is_empty() {
            return Ok(());
        }
        let event = self.encoder.truncate(
            &tables,
            *cascade,
            *restart_identity,
            &open.at(lsn, position.seq),
        )?;
        self.hold(Held { event, position }).await
    }

    async fn hold(&mut self, next: Held) -> Result<()> {
        if let Some(former) = self.held.replace(next) {
            self.send(former).await?;
        }
        Ok(())
    }

    async fn send(&mut self, held: Held) -> Result<()> {
        self.publisher
            .send_event(held.event.key(), held.event.value())
            .await?;
        self.reached.commit_lsn = held.position.commit_lsn;
        self.reached.seq = held.position.seq;
        self.sent += 1;
        Ok(())
    }

    /// Commits to Kafka, then confirms to the slot, in this order only.
    async fn commit(&mut self) -> Result<()> {
        let syncs: Vec<SyncRecord> = self
            .syncs_waiting
            .iter()
            .map(|(record, _)| record.clone())
            .collect();
        self.publisher.commit(&self.reached, &syncs).await?;
        self.wal.confirm(self.reached.confirm_lsn);
        crash_point(AFTER_CONFIRM);
        self.recorded = self.reached.clone();
        self.recorded_at = Instant::now();
        for (_, done) in self.syncs_waiting.drain(..) {
            // A sync that no longer waits has been given up by its round.
            let _ = done.send(());
        }
        let published = Position {
            commit_lsn: self.recorded.commit_lsn,
            seq: self.recorded.seq,
        };
        let confirmed = self.recorded.confirm_lsn;
        self.passed.send_modify(|passed| {
            passed.published = published;
            // Holds also inside a source transaction: those before it are published whole.
            passed.lsn = passed.lsn.max(confirmed);
        });
        let sent = std::mem::take(&mut self.sent);
        self.status
            .send_modify(|status| status.events_published += sent);
        if self.sequencer.open().is_some() {
            crash_point(MID_TRANSACTION);
        }
        self.quiet_up_to(self.recorded.confirm_lsn);
        Ok(())
    }
}
