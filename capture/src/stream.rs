//! The stream of one mirror: WAL events in, Kafka transactions out, the slot confirmed.
//!
//! One event is held back until it is known whether the source transaction ends with it;
//! the recorded position never includes it.

use std::time::{Duration, Instant};

use bunny_postgres::pgoutput::{self, Message};
use bunny_postgres::replication::{WalEvent, WalStream};
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use bunny_schemas::control::{PositionRecord, TableRecord};
use bunny_schemas::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::change::{Encoded, EventEncoder, RowChange};
use crate::crash_points::{AFTER_CONFIRM, MID_TRANSACTION, crash_point};
use crate::error::{Error, Result};
use crate::publisher::{Captured, Publisher, Tables};
use crate::slot::{OpenTransaction, Place, Reached, Sequencer};
use crate::snapshot::{Passed, SyncNote, SyncRequest};
use crate::watch::{Finding, Streamed};

/// How often a position that only keepalives moved is recorded, so that a quiet source
/// does not keep WAL for us (invariant I1).
const IDLE_RECORD_INTERVAL: Duration = Duration::from_secs(10);

/// How many events are taken from what has arrived before anything else has its turn.
const TAKEN_AT_ONCE: usize = 1000;

/// How long a Kafka transaction may grow while much is coming. Its pauses are not the
/// source's: the stream lets bytes gather.
const FLOWING_AGE_MAX: Duration = Duration::from_millis(100);

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

/// A commit that Kafka has not answered: what is true once it has.
struct Commit {
    record: PositionRecord,
    syncs: Vec<SyncRequest>,
    /// Events in it.
    sent: u64,
    /// It ends in the middle of a source transaction.
    is_part: bool,
}

pub(crate) struct Stream {
    wal: WalStream,
    publisher: Publisher,
    tables: Tables,
    sequencer: Sequencer,
    encoder: EventEncoder,
    held: Option<Held>,
    /// Whose the latest row message of the open transaction is, of those the log does not have.
    latest: Option<u32>,
    /// What was described last, if nothing but descriptions has come since.
    described: Option<u32>,
    /// What a commit would record now.
    reached: Reached,
    /// What the last commit recorded.
    recorded: PositionRecord,
    recorded_at: Instant,
    committing: Option<Commit>,
    /// Commit time of the oldest source transaction that no commit holds whole, not even the one
    /// under way.
    oldest_open_commit_us: Option<i64>,
    sync_requests: mpsc::Receiver<SyncRequest>,
    syncs_waiting: Vec<SyncRequest>,
    findings: mpsc::Receiver<Finding>,
    /// What the log has to hold once the stream has come so far.
    finding: Option<Finding>,
    /// Events sent since the last commit began.
    sent: u64,
    passed: watch::Sender<Passed>,
    status: watch::Sender<Status>,
    streamed: Streamed,
}

/// Until a moment that may have passed; other tasks have a turn in any case.
async fn quiet_until(moment: Option<Instant>) {
    tokio::task::yield_now().await;
    // A timer that is due already would still wait for its next tick.
    if let Some(moment) = moment.filter(|moment| *moment > Instant::now()) {
        tokio::time::sleep_until(moment.into()).await;
    }
}

/// What [`Stream::new`] is made of; `record` is the position the run starts from.
pub(crate) struct Parts {
    pub(crate) wal: WalStream,
    pub(crate) publisher: Publisher,
    pub(crate) tables: Tables,
    pub(crate) encoder: EventEncoder,
    pub(crate) record: PositionRecord,
    pub(crate) sync_requests: mpsc::Receiver<SyncRequest>,
    pub(crate) findings: mpsc::Receiver<Finding>,
    pub(crate) passed: watch::Sender<Passed>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) streamed: Streamed,
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
            reached: Reached::new(parts.record.clone()),
            latest: None,
            described: None,
            recorded: parts.record,
            recorded_at: Instant::now(),
            committing: None,
            oldest_open_commit_us: None,
            sync_requests: parts.sync_requests,
            syncs_waiting: Vec::new(),
            findings: parts.findings,
            finding: None,
            sent: 0,
            passed: parts.passed,
            status: parts.status,
            streamed: parts.streamed,
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
            let quiet_commit_at = self.quiet_commit_at();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(request) = self.sync_requests.recv() => {
                    self.syncs_waiting.push(request);
                    self.begin_commit(&[]).await?;
                }
                Some(finding) = self.findings.recv(), if self.finding.is_none() => {
                    self.finding = Some(finding);
                }
                answer = self.publisher.answered(), if self.committing.is_some() => {
                    answer?;
                    self.committed();
                }
                event = self.wal.next() => {
                    self.take_all(event?, source, registry).await?;
                }
                // The source has nothing more to give. The other tasks had their turn first,
                // so an event that was only waiting to be handed over is not overlooked.
                () = quiet_until(quiet_commit_at), if quiet_commit_at.is_some() => {
                    self.begin_commit(&[]).await?;
                }
                () = tokio::time::sleep_until(idle_record_at.into()), if self.moved() => {
                    self.begin_commit(&[]).await?;
                }
            }
            self.settle(source, registry).await?;
        }
        self.commit_open().await?;
        self.wal.stop().await;
        Ok(())
    }

    /// When to commit what is open if nothing comes until then; `None` also while a commit is
    /// under way.
    fn quiet_commit_at(&self) -> Option<Instant> {
        if self.committing.is_some() {
            return None;
        }
        let quiet = self.publisher.quiet_commit_at()?;
        let Some(flows_until) = self.wal.flows_until() else {
            return Some(quiet);
        };
        let latest = self.publisher.open_since()? + FLOWING_AGE_MAX;
        Some(quiet.max(flows_until.min(latest)))
    }

    /// Takes an event and what else has arrived.
    async fn take_all(
        &mut self,
        first: WalEvent,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        let mut event = first;
        let now = Instant::now();
        for _ in 0..TAKEN_AT_ONCE {
            self.take(event, source, registry).await?;
            if !self.publisher.is_committing() {
                self.committed();
                if self.publisher.is_due(now) {
                    self.begin_commit(&[]).await?;
                }
            }
            self.settle(source, registry).await?;
            event = match self.wal.next_buffered()? {
                Some(event) => event,
                None => return Ok(()),
            };
        }
        // The last one that was looked for was found.
        self.take(event, source, registry).await?;
        self.settle(source, registry).await
    }

    /// Whether a commit would record more than the last one does.
    fn moved(&self) -> bool {
        let commit = self.committing.as_ref();
        let last = commit.map_or(&self.recorded, |commit| &commit.record);
        self.reached.record().confirm_lsn > last.confirm_lsn
    }

    async fn take(&mut self, event: WalEvent, source: &Session, registry: &Registry) -> Result<()> {
        match event {
            WalEvent::Begin {
                final_lsn,
                commit_ts_us,
                xid,
            } => {
                self.sequencer.begin(final_lsn, commit_ts_us, xid)?;
                self.oldest_open_commit_us.get_or_insert(commit_ts_us);
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
                let last = match self.held.take() {
                    Some(last) => Some(last),
                    None => self.end_of_rest()?,
                };
                if let Some(mut last) = last {
                    last.event.set_last();
                    self.send(last).await?;
                }
                self.latest = None;
                self.sequencer.commit(commit_lsn)?;
                self.reached.transaction_sent(end_lsn);
                self.quiet_up_to(end_lsn);
            }
            WalEvent::Keepalive {
                wal_end,
                reply_requested,
            } => {
                self.quiet_up_to(wal_end);
                // A source that shuts down waits until everything it sent is confirmed.
                if reply_requested && self.moved() && self.sequencer.open().is_none() {
                    self.begin_commit(&[]).await?;
                }
            }
        }
        Ok(())
    }

    /// The end of a transaction that an earlier run has published in part, and of whose rest
    /// nothing is captured any more, because its tables have left the mirror meanwhile. Who reads
    /// the log waits for the last event (invariant I4). What it says is true: the table that the
    /// rest is about misses changes.
    fn end_of_rest(&mut self) -> Result<Option<Held>> {
        if !self.sequencer.is_resumed() {
            return Ok(None);
        }
        let left = self.latest.and_then(|relation| self.tables.name(relation));
        let (Some(table), open) = (left, self.open()?) else {
            return Ok(None);
        };
        let Some(position) = self.sequencer.row()? else {
            return Ok(None);
        };
        let reason = format!(
            "the table {table} left the mirror in the middle of a transaction; sync it again if it comes back"
        );
        let place = open.at(open.commit_lsn, position.seq);
        let event = self.encoder.gap(&table, &place, &reason);
        Ok(Some(Held { event, position }))
    }

    /// Everything committed before `lsn` has been received.
    fn quiet_up_to(&mut self, lsn: Lsn) {
        let is_published = !self.publisher.has_open() && self.committing.is_none();
        let Some(published) = self.reached.quiet_up_to(lsn, &self.sequencer, is_published) else {
            return;
        };
        self.passed
            .send_modify(|passed| passed.lsn = passed.lsn.max(published));
        self.oldest_open_commit_us = None;
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
        let before = match &message {
            // Comes in front of the relation that has columns of it.
            Message::Type { .. } => self.described,
            _ => self.described.take(),
        };
        let relation = match &message {
            Message::Relation(_) => {
                let given = self.open()?.given();
                if let Message::Relation(relation) = message {
                    self.streamed.described(&relation, before);
                    self.described = Some(relation.oid);
                    self.commit_open().await?;
                    self.tables
                        .described(relation, given, source, registry)
                        .await?;
                }
                return Ok(());
            }
            Message::Insert { relation, .. }
            | Message::Update { relation, .. }
            | Message::Delete { relation, .. } => *relation,
            Message::Truncate { relations, .. } => {
                let open = self.open()?;
                for relation in relations {
                    let xid = open.given().xid;
                    self.streamed.truncated(*relation, open.commit_lsn, xid);
                }
                return self.truncate(&message, relations, lsn).await;
            }
            _ => return Ok(()),
        };
        let Some(position) = self.sequencer.row()? else {
            return Ok(());
        };
        self.latest = Some(relation);
        let new = match &message {
            Message::Insert { new, .. } | Message::Update { new, .. } => Some(new),
            _ => None,
        };
        let knows_all = self
            .tables
            .get(relation)?
            .is_none_or(|table| new.is_none_or(|new| !table.has_new_label(new)));
        let open = self.open()?;
        if !knows_all {
            self.commit_open().await?;
            self.tables
                .describe_again(relation, open.given(), source, registry)
                .await?;
        }
        let table = match self.tables.captured(relation)? {
            Captured::Of(table) => table,
            Captured::Missed(missed) => {
                let place = open.at(lsn, position.seq);
                let event = self.encoder.gap(&missed.table, &place, &missed.reason);
                return self.hold(Held { event, position }).await;
            }
            Captured::Not => return Ok(()),
        };
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

    fn open(&self) -> Result<OpenTransaction> {
        let open = self.sequencer.open().copied();
        open.ok_or_else(|| Error::transient("the source sent a change outside a transaction"))
    }

    /// One event for all tables of a TRUNCATE that are captured, in the place of the first of
    /// them; each of those that miss it says so in its own place.
    async fn truncate(&mut self, message: &Message<'_>, relations: &[u32], lsn: Lsn) -> Result<()> {
        let Message::Truncate {
            cascade,
            restart_identity,
            ..
        } = message
        else {
            return Ok(());
        };
        let open = self.open()?;
        let is_captured = |oid: &&u32| matches!(self.tables.get(**oid), Ok(Some(_)));
        let first = relations.iter().find(is_captured).copied();
        for relation in relations {
            let Some(position) = self.sequencer.row()? else {
                continue;
            };
            self.latest = Some(*relation);
            let place = open.at(lsn, position.seq);
            let event = match self.tables.captured(*relation)? {
                Captured::Of(_) if first == Some(*relation) => {
                    let tables = self.tables.all_of(relations)?;
                    let restarts = *restart_identity;
                    self.encoder.truncate(&tables, *cascade, restarts, &place)?
                }
                Captured::Missed(missed) => self.encoder.gap(&missed.table, &place, &missed.reason),
                Captured::Of(_) | Captured::Not => continue,
            };
            self.hold(Held { event, position }).await?;
        }
        Ok(())
    }

    /// Puts what the watch found into the log, as soon as everything before it is there.
    ///
    /// Gaps stand between two source transactions, where no commit record can: all that was
    /// received was committed before `confirm_lsn`, what comes begins at or after it, and
    /// records are aligned, so the byte before it is nobody's commit LSN. It is larger than
    /// the LSN of any sync that could hide the gap, because what was found happened later.
    async fn settle(&mut self, source: &Session, registry: &Registry) -> Result<()> {
        let reached = self.reached.record().confirm_lsn;
        let between = Lsn(reached.0.saturating_sub(1));
        let is_ready = |finding: &mut Finding| {
            reached >= finding.at
                && (finding.gaps.is_empty() || between > self.reached.record().commit_lsn)
        };
        if self.sequencer.open().is_some() {
            return Ok(());
        }
        let Some(finding) = self.finding.take_if(is_ready) else {
            return Ok(());
        };
        self.commit_open().await?;
        self.tables
            .expect(finding.expected, source, registry)
            .await?;
        let count = finding.gaps.len() as u64;
        for (seq, (table, reason)) in (1..).zip(&finding.gaps) {
            let place = Place {
                lsn: between,
                commit_lsn: between,
                commit_ts_us: chrono::Utc::now().timestamp_micros(),
                xid: 0,
                seq,
            };
            let mut event = self.encoder.gap(table, &place, reason);
            if seq == count {
                event.set_last();
            }
            let position = Position {
                commit_lsn: between,
                seq,
            };
            self.send(Held { event, position }).await?;
        }
        self.begin_commit(&finding.records).await?;
        self.end_commit().await?;
        // A watch that no longer waits has ended with its run.
        let _ = finding.done.send(());
        Ok(())
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
        self.publisher.send_records(held.event.records()).await?;
        self.encoder.recycle(held.event);
        self.reached.sent(held.position);
        self.sent += 1;
        Ok(())
    }

    /// Commits what is sent, before the source's catalog or a schema registry is asked: either may
    /// take a minute to answer, and an open transaction would hold back what came before from all
    /// who read what is committed, until the broker ends it as if another capture had come.
    async fn commit_open(&mut self) -> Result<()> {
        if self.publisher.has_open() {
            self.begin_commit(&[]).await?;
        }
        self.end_commit().await
    }

    /// Has Kafka commit what is sent, with what is known of tables from then on. The slot is
    /// confirmed after the answer, never before; events are taken meanwhile.
    async fn begin_commit(&mut self, tables: &[(TableName, Option<TableRecord>)]) -> Result<()> {
        self.end_commit().await?;
        let syncs = std::mem::take(&mut self.syncs_waiting);
        let notes: Vec<SyncNote> = syncs
            .iter()
            .flat_map(|(notes, _)| notes.iter().cloned())
            .collect();
        let tables = self.tables.records(tables);
        let record = self.reached.record().clone();
        self.publisher
            .begin_commit(&record, &notes, &tables)
            .await?;
        let open = self.sequencer.open();
        // What is sent now is the beginning of the open one, and all before it.
        self.oldest_open_commit_us = open.map(|open| open.commit_ts_us);
        self.committing = Some(Commit {
            is_part: open.is_some_and(|open| open.commit_lsn == record.commit_lsn),
            record,
            syncs,
            sent: std::mem::take(&mut self.sent),
        });
        Ok(())
    }

    /// Waits for Kafka's answer to a commit under way.
    async fn end_commit(&mut self) -> Result<()> {
        self.publisher.answered().await?;
        self.committed();
        Ok(())
    }

    /// Kafka has committed what was under way, if anything was: confirms it to the slot and tells
    /// who waits.
    fn committed(&mut self) {
        let Some(commit) = self.committing.take() else {
            return;
        };
        let confirmed = commit.record.confirm_lsn;
        self.recorded = commit.record;
        self.wal.confirm(confirmed);
        crash_point(AFTER_CONFIRM);
        self.recorded_at = Instant::now();
        for (_, done) in commit.syncs {
            // A sync that no longer waits has been given up by its round.
            let _ = done.send(());
        }
        let published = Position {
            commit_lsn: self.recorded.commit_lsn,
            seq: self.recorded.seq,
        };
        self.passed.send_modify(|passed| {
            passed.published = published;
            // Holds also inside a source transaction: those before it are published whole.
            passed.lsn = passed.lsn.max(confirmed);
        });
        self.status.send_modify(|status| {
            status.events_published += commit.sent;
            status.oldest_open_commit_us = self.oldest_open_commit_us;
        });
        if commit.is_part {
            crash_point(MID_TRANSACTION);
        }
        self.quiet_up_to(confirmed);
    }
}
