//! Retention: trims the topics of what nobody needs any more (DeleteRecords).
//!
//! A *floor* is kept in the destination (`_bunny.retention`): the change topic is not needed
//! below it. Within a generation it only rises, in a transaction that is fenced like every
//! other, and nothing is trimmed above the floor that is stored. So a worker that was frozen
//! and thaws may only repeat what had been decided before another took over. A replay that
//! would need more is refused before its table is touched; one that has begun holds the floor
//! by its table's offset.
//!
//! The floor is the lowest of: the last event applied, which always stays; what tables that
//! are set aside, being loaded or catching up need; and the first event younger than
//! `topic_retention_hours`. It stays where it is while nothing of the generation is applied,
//! while a table waits for a sync of which nothing is known here yet, and while the catalog
//! wants anything that the destination does not know. Chunks go with the changes they need: a
//! sync counts as long as its changes begin at the floor or above.
//!
//! A mirror that is fed by another's capture decides by the same rules below what it needs
//! nothing, stores it at its destination, and then says so in the catalog. It trims nothing. Who
//! captures asks the catalog before it stores its floor, and is granted no more than all that are
//! attached have said: docs/adr/0036-fan-out.md.
//!
//! What can happen between any two of these steps is gone through in
//! docs/adr/0027-retention.md.
//!
//! On failure: nothing is trimmed, and it is tried again; what lasts shows in the status.

mod floor;
mod held;
mod said;

use std::time::{Duration, SystemTime};

use bunny_catalog::{Granted, Mirror};
use bunny_schemas::retained::Retained;
use chrono::{DateTime, TimeDelta, Utc};
use tokio_postgres::Client;

use crate::bookkeeping::{self, Progress, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::reader::PARTITION;
use crate::replay;
use crate::swap;

pub(crate) use floor::floor;
pub(crate) use held::Held;
use said::Room;

/// How often it is looked at what can go.
const EVERY: Duration = Duration::from_secs(10);
/// Between saying what will not be replayable any more and trimming it: the report is written
/// every second.
const SAID_BEFORE: Duration = Duration::from_secs(3);

/// Trims until it is dropped.
pub(crate) async fn run(run: MirrorRun, held: Held) {
    loop {
        let looked = look(&run, &held).await;
        if let Err(error) = &looked {
            tracing::debug!(mirror = %run.mirror.name, %error, "the topics are trimmed later");
        }
        held.trimmed(looked.err());
        tokio::time::sleep(EVERY).await;
    }
}

/// What may go.
struct Decision {
    generation: uuid::Uuid,
    floor: i64,
    /// By partition of the snapshot topic, the first offset that is needed.
    firsts: Vec<i64>,
}

async fn look(run: &MirrorRun, held: &Held) -> Result<()> {
    let slug = run.mirror.topics_slug();
    let snapshot = run.topics.snapshot(slug);
    // Before the syncs are read: one that is recorded later writes behind these ends.
    let mut ends = Vec::new();
    for partition in 0..run.kafka.partitions(&snapshot).await?.unwrap_or_default() {
        ends.push(run.kafka.watermarks(&snapshot, partition).await?.1);
    }
    let before = Retained::read(&run.kafka, &run.topics, slug).await?;
    let session = run.connect().await?;
    let client: &Client = &session;
    // Before the catalog is asked: what is wanted later needs nothing from before it.
    let Some(progress) = bookkeeping::progress(client, run.mirror_id()).await? else {
        held.set(before);
        return Ok(());
    };
    let wish = run.catalog.get_mirror(&run.mirror.name).await?;
    held.keeps(wish.config.topic_retention_hours);
    let room = room(run, &wish, before.changes.0).await?;
    let full = room.as_ref().and_then(Room::full);
    let in_window = in_window(run, client, &wish, before.changes.0).await?;
    let in_window = full
        .as_ref()
        .map_or(in_window, |full| full.from.max(in_window));
    let (lowest, tables) = lowest(run, client, &progress, &wish, in_window).await?;
    let mut after = before.clone();
    let published = |request| replay::published_as(&wish, request);
    let chunks_known = floor::chunks_are_known(&after, &progress, &tables, published);
    let (mirror_id, generation) = (run.mirror_id(), progress.generation);
    let granted = match &run.mirror.owner {
        None => {
            let asked = run.catalog.grant_trim(mirror_id, generation, lowest);
            let granted = asked.await?;
            if granted.floor > before.changes.0 {
                reached(crash_points::TRIM_GRANTED);
            }
            granted
        }
        Some(owner) => {
            let trimmed = run.catalog.needs_log_from(owner.id, generation).await?;
            Granted {
                floor: lowest.max(trimmed),
                chunks_known,
                held_by: None,
            }
        }
    };
    let narrowed = full.map(|full| {
        let table = floor::holding(&tables, granted.floor);
        full.said(granted.floor, granted.held_by.as_deref(), table)
    });
    // What is stored may be more than is granted now: nothing is replayed from below it, but
    // nothing is deleted up to it either.
    let floor = granted.floor;
    let former = raise(run, client, generation, floor).await?;
    after.changes.0 = after.changes.0.max(floor).max(former);
    let mapped = (&*run.mirror.tables, run.mirror.generation);
    let soon = room.map(|room| said::what_has_no_room(mapped, &after, &room));
    held.narrowed(
        narrowed
            .into_iter()
            .chain(soon.into_iter().flatten())
            .collect(),
    );
    for (level, message, details) in said::what_goes(mapped, (&before, former), &after) {
        run.reporter.log(level, message, details);
    }
    if run.mirror.owner.is_some() {
        held.set(after);
        run.catalog
            .need_log_from(mirror_id, generation, floor, chunks_known)
            .await?;
        return Ok(());
    }
    let firsts = if chunks_known && granted.chunks_known {
        floor::first_needed(&after, floor, &ends)
    } else {
        Vec::new()
    };
    held.set(after);
    let decision = Decision {
        generation: progress.generation,
        floor,
        firsts,
    };
    trim(run, client, &before, &decision).await
}

/// The first event that is younger than `topic_retention_hours`, by the slower of two clocks:
/// one that has jumped ahead must not cost the window. `low`: where the log begins, and the
/// answer as long as the records themselves do not say that what is before it is older.
async fn in_window(run: &MirrorRun, client: &Client, wish: &Mirror, low: i64) -> Result<i64> {
    let row = client
        .query_one("SELECT clock_timestamp()", &[])
        .await
        .map_err(Error::sql("asking the destination for the time"))?;
    let now = Utc::now().min(DateTime::from(row.get::<_, SystemTime>(0)));
    let oldest = now - TimeDelta::hours(wish.config.topic_retention_hours.into());
    let oldest = oldest.timestamp_millis();
    let changes = run.topics.changes(run.mirror.topics_slug());
    let found = run.kafka.offset_at(&changes, PARTITION, oldest).await?;
    if found <= low {
        return Ok(low);
    }
    let last = run.kafka.time_before(&changes, PARTITION, found).await?;
    let Some(last) = last else {
        return Ok(low);
    };
    if last >= oldest {
        tracing::warn!(
            mirror = %run.mirror.name, found, last, oldest,
            "Kafka says that the log is old up to an offset, and the record before it does not: nothing is trimmed for its age"
        );
        return Ok(low);
    }
    Ok(found)
}

/// How much `topic_max_bytes` leaves; none if there is no limit.
async fn room(run: &MirrorRun, wish: &Mirror, low: i64) -> Result<Option<Room>> {
    let Some(topic_of) = topic_of(run, wish).await? else {
        return Ok(None);
    };
    let Some(max) = topic_of.config.topic_max_bytes else {
        return Ok(None);
    };
    let counted = run
        .catalog
        .topic_bytes(topic_of.id, wish.generation)
        .await?;
    Ok(Some(Room { counted, low, max }))
}

/// The mirror that has the topics, none if it is gone.
async fn topic_of(run: &MirrorRun, wish: &Mirror) -> Result<Option<Mirror>> {
    match &wish.owner {
        None => Ok(Some(wish.clone())),
        Some(owner) => Ok(run.catalog.get_mirror_by_id(owner.id).await?),
    }
}

/// The first offset that is needed here, which is that of the stored floor if it cannot be told
/// now, and the tables of the mirror. While this worker is the owner, what it needs only moves on.
async fn lowest(
    run: &MirrorRun,
    client: &Client,
    progress: &Progress,
    wish: &Mirror,
    in_window: i64,
) -> Result<(i64, Vec<TableState>)> {
    let mirror_id = run.mirror_id();
    begin(client).await?;
    bookkeeping::fence(client, mirror_id, run.epoch).await?;
    let tables = bookkeeping::tables(client, mirror_id).await?;
    let beside = bookkeeping::tables(client, swap::ledger_of(mirror_id)).await?;
    let former = floor::floor(client, mirror_id, progress.generation).await?;
    commit(client).await?;
    // What is asked for after the catalog was read begins at the end of the log that is then:
    // not before `progress`, which was read first.
    let is_same = wish.id == mirror_id && wish.generation == progress.generation;
    let lowest = if is_same && floor::knows_all(&wish.tables, &tables, &beside) {
        floor::lowest_needed(&tables, &beside, progress, in_window)
    } else {
        None
    };
    let next = lowest.map_or(former, |lowest| lowest.max(former));
    Ok((next, tables.into_iter().chain(beside).collect()))
}

/// Stores a floor that everybody agrees to, and gives the one that was stored before. On disk when
/// it returns, and so is all that was committed before it: what is applied, without which the
/// records that go now would be missed after a crash of the destination.
pub async fn raise(
    run: &MirrorRun,
    client: &Client,
    generation: uuid::Uuid,
    granted: i64,
) -> Result<i64> {
    let mirror_id = run.mirror_id();
    begin(client).await?;
    // Whoever has taken over since may have begun what needs more.
    bookkeeping::fence(client, mirror_id, run.epoch).await?;
    let former = floor::floor(client, mirror_id, generation).await?;
    floor::store(client, mirror_id, generation, granted).await?;
    commit(client).await?;
    if granted > former {
        reached(crash_points::RETENTION_RAISED);
    }
    Ok(former)
}

async fn begin(client: &Client) -> Result<()> {
    client
        .batch_execute("BEGIN; SET LOCAL synchronous_commit = on")
        .await
        .map_err(Error::sql("beginning to raise the retention floor"))
}

async fn commit(client: &Client) -> Result<()> {
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing the retention floor"))
}

async fn trim(
    run: &MirrorRun,
    client: &Client,
    before: &Retained,
    decision: &Decision,
) -> Result<()> {
    let snapshot = run.topics.snapshot(run.mirror.topics_slug());
    let firsts = (0..).zip(decision.firsts.iter().zip(&before.snapshot));
    let chunks: Vec<(i32, i64)> = firsts
        .filter(|(_, (first, (low, _)))| low < first)
        .map(|(partition, (first, _))| (partition, *first))
        .collect();
    let trims_changes = before.changes.0 < decision.floor;
    if !trims_changes && chunks.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(SAID_BEFORE).await;
    if trims_changes {
        let changes = run.topics.changes(run.mirror.topics_slug());
        still_decided(run, client, decision).await?;
        run.kafka
            .delete_records(&changes, PARTITION, decision.floor)
            .await?;
        tracing::info!(mirror = %run.mirror.name, offset = decision.floor, "the change topic is trimmed");
    }
    for (partition, first) in chunks {
        still_decided(run, client, decision).await?;
        run.kafka
            .delete_records(&snapshot, partition, first)
            .await?;
        tracing::info!(mirror = %run.mirror.name, partition, offset = first, "the snapshot topic is trimmed");
    }
    Ok(())
}

/// Right before something is deleted: this is still the owner, of the same destination and in
/// the same generation, whose offsets these are.
async fn still_decided(run: &MirrorRun, client: &Client, decision: &Decision) -> Result<()> {
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
    let progress = bookkeeping::progress(client, run.mirror_id()).await?;
    let generation = progress.map(|progress| progress.generation);
    let stored = floor::floor(client, run.mirror_id(), decision.generation).await?;
    if generation == Some(decision.generation) && stored >= decision.floor {
        return Ok(());
    }
    Err(Error::NotYet(
        "what the topics are kept for has changed meanwhile".to_owned(),
    ))
}
