//! A paused mirror: nothing is applied, and what waits is still shown.
//!
//! The former run was cancelled, which rolled its open transactions back: batches and chunks
//! commit whole or not at all, so the destination stands at a boundary. Before the pause is
//! said to be there, the epoch at the destination is raised, so that neither a commit under
//! way nor a frozen worker can write after it. Progress stays as it is: a resumed run starts
//! from it as any other does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bunny_catalog::{Desired, Finished, LogLevel, Mirror, MirrorContext, Role};
use bunny_schemas::Position;
use serde_json::json;

use crate::behind;
use crate::bookkeeping::{self, Epoch, Progress};
use crate::context::{MirrorRun, application_name};
use crate::crash_points::{self, reached};
use crate::error::Result;
use crate::mirror::{Shared, connect_to_take_over};
use crate::reader::{self, PARTITION};
use crate::report::{Known, report};
use crate::retention::{self, Held};
use crate::stats::Stats;
use crate::waits::Waits;

const EVERY: Duration = Duration::from_secs(1);
/// In which of its rounds the report asks what the topics hold.
const HELD_EVERY: u32 = 10;

/// Where the destination stands; it cannot move while paused.
struct Standing {
    epoch: Epoch,
    progress: Option<Progress>,
    known: Known,
    /// Below it the change topic may be trimmed.
    floor: i64,
}

/// Fences every writer off, says that apply is paused, and reports until cancelled. While
/// paused the destination is left alone: no session to it stays open.
pub(crate) async fn stand_by(
    shared: &Shared,
    mirror: Arc<Mirror>,
    context: &MirrorContext,
) -> Result<Finished> {
    let standing = fence(&mirror, context).await?;
    reached(crash_points::PAUSE_FENCED);
    tracing::info!(mirror = %mirror.name, "apply is paused");
    tokio::select! {
        () = record(&mirror, context, standing.progress) => Ok(Finished::Idle),
        () = watch(shared, &mirror, context, &standing) => Ok(Finished::Idle),
    }
}

async fn fence(mirror: &Mirror, context: &MirrorContext) -> Result<Standing> {
    let session = connect_to_take_over(mirror, context).await?;
    // Made before the first run too: the epoch must be there to be raised.
    bookkeeping::install(&session).await?;
    let epoch = bookkeeping::take_over(&session, mirror).await?;
    let client: &tokio_postgres::Client = &session;
    Ok(Standing {
        epoch,
        progress: bookkeeping::progress(client, mirror.id).await?,
        known: Known::read(client, mirror.id).await?,
        floor: retention::floor(client, mirror.id, mirror.generation).await?,
    })
}

/// Tells the catalog, as often as it takes, then waits for ever.
async fn record(mirror: &Mirror, context: &MirrorContext, progress: Option<Progress>) {
    let version = mirror.version_of(Role::Apply);
    loop {
        let settled =
            context
                .catalog
                .side_settled(mirror.id, Role::Apply, version, Desired::Paused);
        match settled.await {
            Ok(()) => break,
            Err(error) => {
                tracing::debug!(mirror = %mirror.name, %error, "the pause is not recorded yet")
            }
        }
        tokio::time::sleep(EVERY).await;
    }
    reached(crash_points::PAUSE_RECORDED);
    context.reporter.recovered();
    let details = json!({
        "position": progress.map(|progress| progress.position.to_string()),
        "offset": progress.map(|progress| progress.next_offset),
    });
    context
        .reporter
        .log(LogLevel::Info, "apply is paused", details);
    std::future::pending().await
}

/// Reports what waits in the log, about once a second. Kafka being away is no failure of a
/// mirror that does nothing: then the last that was known stays.
async fn watch(
    shared: &Shared,
    mirror: &Arc<Mirror>,
    context: &MirrorContext,
    standing: &Standing,
) {
    let stats = Stats::default();
    stats.phase("paused");
    if let Some(progress) = &standing.progress {
        stats.begins(progress);
    }
    let topic = shared.topics.changes(mirror.topics_slug());
    // What waits first stays first; until there is something, each growth is looked at.
    let mut is_waiting = false;
    let mut looked_up_to = None;
    let (held, mut round) = (Held::default(), 0_u32);
    let mut behind = behind::Answers::default();
    loop {
        if let Some(progress) = &standing.progress
            && let Ok((_, end)) = shared.kafka.watermarks(&topic, PARTITION).await
        {
            stats.end_offset(end);
            if !is_waiting && looked_up_to != Some(end) {
                match first_waiting(shared, mirror, context, standing, progress).await {
                    Ok(Some((position, commit_ts_us))) => {
                        is_waiting = true;
                        stats.received(position, commit_ts_us);
                    }
                    Ok(None) => {
                        looked_up_to = Some(end);
                        stats.at_end();
                    }
                    Err(error) => {
                        tracing::debug!(mirror = %mirror.name, %error, "what waits in the log is not known");
                    }
                }
            }
        }
        if round % HELD_EVERY == 0 {
            let (kafka, topics) = (&shared.kafka, &shared.topics);
            held.read_topics(kafka, topics, mirror.topics_slug(), standing.floor)
                .await;
        }
        round += 1;
        let mut said = report(
            &mirror.name,
            &stats.moment(),
            &standing.known,
            &[],
            topic.clone(),
            SystemTime::now(),
        );
        held.keeps(context.latest().config.topic_retention_hours);
        held.show(mirror, &mut said);
        let mut tables = standing.known.tables().iter();
        if tables.any(|table| !table.in_main)
            && let Ok(run) = reading(shared, mirror, context, standing).await
        {
            behind.show(&run, standing.known.tables(), &mut said).await;
        }
        context.reporter.report(&said);
        tokio::time::sleep(EVERY).await;
    }
}

async fn first_waiting(
    shared: &Shared,
    mirror: &Arc<Mirror>,
    context: &MirrorContext,
    standing: &Standing,
    progress: &Progress,
) -> Result<Option<(Position, i64)>> {
    let run = reading(shared, mirror, context, standing).await?;
    reader::first_waiting(&run, progress.next_offset).await
}

/// What it takes to look into the log.
async fn reading(
    shared: &Shared,
    mirror: &Arc<Mirror>,
    context: &MirrorContext,
    standing: &Standing,
) -> Result<MirrorRun> {
    Ok(MirrorRun {
        application_name: application_name(mirror.id, standing.epoch),
        mirror: mirror.clone(),
        catalog: context.catalog.clone(),
        reporter: context.reporter.clone(),
        kafka: shared.kafka.clone(),
        topics: shared.topics.clone(),
        registry: shared.registry().await?,
        destination: context.destination.connect_options()?,
        epoch: standing.epoch,
        ledger: mirror.id,
        cancel: context.cancel.clone(),
        memory: shared.memory.clone(),
        waits: Waits::default(),
    })
}
