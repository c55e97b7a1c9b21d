//! A mirror whose capture is paused: nothing is read, and what the source keeps for it is
//! still shown.
//!
//! The former run's sessions are ended first, so that a frozen worker cannot go on once the
//! pause is said to be there. Slot, publications and topics stay; a resumed run begins at
//! the top, as any other does.

use std::time::Duration;

use bunny_catalog::{CaptureReport, Desired, Finished, LogLevel, Role, SyncProgress};
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::control::PositionRecord;
use bunny_schemas::reader::{self, Positions};
use serde_json::json;

use crate::crash_points::{PAUSE_RECORDED, PAUSE_STOPPED, crash_point};
use crate::error::{Error, Result};
use crate::report::{SlotView, age_seconds, slot_view};
use crate::rounds::Rounds;
use crate::run::Run;

const EVERY: Duration = Duration::from_secs(1);

/// Says that capture is paused and reports until cancelled. `source` is a session made after
/// every former one was ended.
pub(crate) async fn stand_by(run: &Run, source: Session) -> Result<Finished> {
    crash_point(PAUSE_STOPPED);
    tracing::info!(mirror = %run.mirror.name, "capture is paused");
    tokio::select! {
        () = run.context.cancel.cancelled() => {}
        () = record(run) => {}
        () = watch(run, source) => {}
    }
    Ok(Finished::Idle)
}

/// Tells the catalog, as often as it takes, then waits for ever.
async fn record(run: &Run) {
    let mirror = &run.mirror;
    let version = mirror.version_of(Role::Capture);
    loop {
        let settled =
            run.options
                .catalog
                .side_settled(mirror.id, Role::Capture, version, Desired::Paused);
        match settled.await {
            Ok(()) => break,
            Err(error) => {
                tracing::debug!(mirror = %mirror.name, %error, "the pause is not recorded yet");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
    crash_point(PAUSE_RECORDED);
    run.context.reporter.recovered();
    run.context.reporter.log(
        LogLevel::Info,
        "capture is paused: the source keeps WAL for the replication slot until it is resumed",
        json!({ "slot": mirror.slot_name }),
    );
    std::future::pending().await
}

/// Reports about once a second. Source or Kafka being away is no failure of a mirror that
/// does nothing: then the last that was known stays.
async fn watch(run: &Run, source: Session) {
    let mut source = Some(source);
    let mut known: Option<Known> = None;
    let mut behind_since_us = None;
    loop {
        match look(run, source.take(), known.take()).await {
            Ok((session, slot, read)) => {
                let published = read.position.as_ref().map(|record| record.confirm_lsn);
                if slot.current_lsn > published.unwrap_or_default() && behind_since_us.is_none() {
                    behind_since_us = Some(chrono::Utc::now().timestamp_micros());
                }
                let lag_seconds = behind_since_us.map_or(0.0, age_seconds);
                run.context
                    .reporter
                    .report(&report(run, slot, &read, lag_seconds));
                source = Some(session);
                known = Some(read);
            }
            Err(error) => {
                tracing::debug!(mirror = %run.mirror.name, %error, "no report while paused");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What does not change while nothing is captured.
struct Known {
    position: Option<PositionRecord>,
    syncs: Vec<SyncProgress>,
    insert_only: Vec<TableName>,
}

async fn look(
    run: &Run,
    session: Option<Session>,
    known: Option<Known>,
) -> Result<(Session, SlotView, Known)> {
    let session = match session.filter(|session| !session.is_closed()) {
        Some(session) => session,
        None => Session::connect(&run.peer()?, &run.application_name).await?,
    };
    let known = match known {
        Some(known) => known,
        None => read(run, &session).await?,
    };
    let slot = slot_view(&session, &run.mirror.slot_name).await?;
    Ok((session, slot, known))
}

async fn read(run: &Run, source: &Session) -> Result<Known> {
    let mirror = &run.mirror;
    let Positions {
        position, syncs, ..
    } = if mirror.generation_ready {
        let options = &run.options;
        reader::read_positions(&options.kafka, &options.topics, &mirror.slug).await?
    } else {
        Positions::default()
    };
    let members = source
        .query(
            "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1",
            &[&mirror.publication_ins_name],
        )
        .await
        .map_err(|error| Error::Query {
            doing: "looking at the insert-only publication",
            error,
        })?;
    let (_, nothing_excluded) = tokio::sync::watch::channel(Default::default());
    let (_, nothing_unpublished) = tokio::sync::watch::channel(Default::default());
    Ok(Known {
        position: position.filter(|record| record.generation == mirror.generation),
        syncs: Rounds::new(
            mirror,
            &syncs,
            &Default::default(),
            nothing_unpublished,
            nothing_excluded,
        )
        .view()
        .tables(),
        insert_only: members
            .iter()
            .map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)))
            .collect(),
    })
}

/// `lag_seconds` counts from the pause: what the source wrote meanwhile is not known, so all
/// of it counts.
fn report(run: &Run, slot: SlotView, known: &Known, lag_seconds: f64) -> CaptureReport {
    let position = known.position.as_ref();
    let published_lsn = position
        .map(|record| record.confirm_lsn)
        .unwrap_or_default();
    CaptureReport {
        phase: "paused".to_owned(),
        generation: run.mirror.generation_ready.then_some(run.mirror.generation),
        current_lsn: Some(slot.current_lsn),
        confirmed_flush_lsn: slot.confirmed_flush_lsn,
        restart_lsn: slot.restart_lsn,
        retained_wal_bytes: slot.retained_wal_bytes,
        slot_active: slot.active,
        wal_status: slot.wal_status,
        published_lsn,
        published: position.map_or((Lsn::default(), 0).into(), |record| {
            (record.commit_lsn, record.seq).into()
        }),
        lag_seconds,
        caught_up: slot.current_lsn <= published_lsn,
        syncs: known.syncs.clone(),
        insert_only: known.insert_only.clone(),
        messages: vec![format!(
            "capture is paused: the source keeps WAL for slot {} until the mirror is resumed",
            run.mirror.slot_name
        )],
        ..CaptureReport::default()
    }
}
