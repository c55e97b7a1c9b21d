//! What capture says of itself, about once a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bunny_catalog::{CaptureReport, LogLevel, SyncProgress};
use bunny_postgres::{Lsn, Session, introspect};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::rounds::SyncView;
use crate::run::Run;
use crate::snapshot::Passed;
use crate::stream::Status;
use crate::watch::View;

const INTERVAL: Duration = Duration::from_secs(1);

/// What a report is made of, besides what the source says.
pub(crate) struct Reporting {
    pub(crate) passed: watch::Receiver<Passed>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) syncs: SyncView,
    pub(crate) watched: watch::Receiver<View>,
    /// What the stream stands still for.
    pub(crate) waits: watch::Receiver<Option<String>>,
    pub(crate) changes_bytes: watch::Receiver<Option<u64>>,
}

/// Reports until the run ends. A source that cannot be asked ends it, and one whose commits have come
/// to wait for us.
pub(crate) async fn run(run: &Run, source: &Session, reporting: Reporting) -> Result<()> {
    // Caught up means: past where the source's WAL ended one report ago. Comparing with the
    // end as it is now would never settle on a busy server whose writes do not concern us.
    let mut former_end = None;
    loop {
        // Before the source's end is looked at, which so is never below what has passed.
        let passed = *reporting.passed.borrow();
        let status = *reporting.status.borrow();
        let slot = slot_view(source, &run.mirror.slot_name).await?;
        refuse_as_a_standby(&slot.synchronous_standby_names)?;
        let caught_up = status.oldest_open_commit_us.is_none()
            && former_end.is_some_and(|end| passed.lsn >= end);
        former_end = Some(slot.current_lsn);
        let syncs: Vec<SyncProgress> = reporting.syncs.tables();
        let watched = reporting.watched.borrow().clone();
        let mut messages = reporting.syncs.messages();
        messages.extend(watched.messages);
        messages.extend(reporting.waits.borrow().clone());
        let report = CaptureReport {
            phase: if syncs.iter().all(|sync| sync.finished) {
                "streaming".to_owned()
            } else {
                "copying tables".to_owned()
            },
            generation: Some(run.mirror.generation),
            current_lsn: Some(slot.current_lsn),
            confirmed_flush_lsn: slot.confirmed_flush_lsn,
            restart_lsn: slot.restart_lsn,
            retained_wal_bytes: slot.retained_wal_bytes,
            slot_active: slot.active,
            wal_status: slot.wal_status,
            published_lsn: passed.lsn,
            published: (passed.published.commit_lsn, passed.published.seq).into(),
            lag_seconds: status.oldest_open_commit_us.map_or(0.0, age_seconds),
            caught_up,
            events_published: status.events_published,
            syncs,
            insert_only: watched.insert_only,
            changes_bytes: *reporting.changes_bytes.borrow(),
            messages,
        };
        run.context.reporter.report(&report);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Says what the creation of the slot waits for: in the status while it does, in the
/// mirror's log once.
#[derive(Default)]
pub(crate) struct SettingUp {
    said: Mutex<Option<String>>,
}

impl SettingUp {
    /// `blockers` in words; None: it waits for nothing any more.
    pub(crate) fn waits_for(&self, run: &Run, blockers: Option<String>) {
        let message = blockers.map(|blockers| {
            format!("the replication slot can only be made when older transactions have ended: {blockers}")
        });
        run.context.reporter.report(&CaptureReport {
            phase: "creating the replication slot".to_owned(),
            generation: Some(run.mirror.generation),
            messages: message.iter().cloned().collect(),
            ..CaptureReport::default()
        });
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(message) = message
            && said.as_ref() != Some(&message)
        {
            let details = serde_json::json!({});
            run.context
                .reporter
                .log(LogLevel::Info, message.clone(), details);
            *said = Some(message);
        }
    }
}

pub(crate) fn age_seconds(commit_us: i64) -> f64 {
    let now_us = chrono::Utc::now().timestamp_micros();
    (now_us - commit_us).max(0) as f64 / 1e6
}

/// The mirror's slot as the source shows it.
pub(crate) struct SlotView {
    pub(crate) current_lsn: Lsn,
    pub(crate) confirmed_flush_lsn: Option<Lsn>,
    pub(crate) restart_lsn: Option<Lsn>,
    pub(crate) retained_wal_bytes: i64,
    pub(crate) active: bool,
    pub(crate) wal_status: Option<String>,
    pub(crate) synchronous_standby_names: String,
}

pub(crate) async fn slot_view(source: &Session, slot: &str) -> Result<SlotView> {
    let row = source
        .query_one(
            "SELECT pg_current_wal_flush_lsn()::text, s.confirmed_flush_lsn::text,
                    s.restart_lsn::text,
                    coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), s.restart_lsn), 0)::int8,
                    coalesce(s.active, false), s.wal_status,
                    current_setting('synchronous_standby_names')
             FROM (SELECT 1) one
             LEFT JOIN pg_replication_slots s ON s.slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(|error| Error::Query {
            doing: "looking at the replication slot",
            error,
        })?;
    let lsn = |text: Option<String>| text.and_then(|text| text.parse().ok());
    Ok(SlotView {
        current_lsn: lsn(row.get(0)).unwrap_or_default(),
        confirmed_flush_lsn: lsn(row.get(1)),
        restart_lsn: lsn(row.get(2)),
        retained_wal_bytes: row.get(3),
        active: row.get(4),
        wal_status: row.get(5),
        synchronous_standby_names: row.get(6),
    })
}

/// Not a matter for an operator alone: as soon as the setting is mended, capture goes on.
pub(crate) fn refuse_as_a_standby(synchronous_standby_names: &str) -> Result<()> {
    let refused = introspect::refuse_as_a_standby(synchronous_standby_names);
    refused.map_or(Ok(()), |reason| Err(Error::transient(reason)))
}
