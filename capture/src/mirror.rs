//! One mirror's run: the start order, then the stream, table syncs and reports side by
//! side until the first error.

use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{ADOPT, Desired, Finished, Mirror, MirrorContext, NAMES_CLAIMED, Role};
use bunny_postgres::replication::Replication;
use bunny_postgres::{Session, introspect, terminate_sessions};
use bunny_schemas::control::SchemaKind;
use bunny_schemas::kafka::TopicKind;
use bunny_schemas::reader;
use bunny_schemas::registry::Registry;
use tokio::sync::mpsc;

use crate::change::EventEncoder;
use crate::crash_points::{PUBLICATIONS_CREATED, crash_point};
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::publisher::{Publisher, Tables, Visibility};
use crate::report::{self, Reporting, SettingUp};
use crate::rounds::{self, Rounds};
use crate::run::{Options, Run};
use crate::slot::{self, Places};
use crate::snapshot::SyncRecorder;
use crate::stream::{Parts, Stream};
use crate::table_topics::{self, TopicPerTable};
use crate::watch::Watch;
use crate::{
    adopt, definitions, last_wish, paused, publication, removal, size, snapshot, superseded,
};

/// Sync records and log lines under way between the tasks of one run.
const SYNC_REQUESTS_MAX: usize = 16;

/// How long a run that is told to stop may wait for others, so that the stream can commit what it
/// has. Whatever is under way then is left as by a death.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(3);

/// Captures `mirror` until cancelled, deleted, or the first error.
pub(crate) async fn run(
    mirror: Mirror,
    context: MirrorContext,
    options: Arc<Options>,
    memory: Memory,
) -> Result<Finished> {
    let run = Run::new(mirror, context, options, memory);
    let cancel = run.context.cancel.clone();
    let overdue = async {
        cancel.cancelled().await;
        tokio::time::sleep(LAST_COMMIT_MAX).await;
    };
    tokio::select! {
        ended = Box::pin(as_desired(&run)) => ended,
        () = overdue => {
            tracing::info!("told to stop, and waits for Kafka or the source no longer");
            Ok(Finished::Idle)
        }
    }
}

async fn as_desired(run: &Run) -> Result<Finished> {
    let desired = run.mirror.desired_of(Role::Capture);
    if desired == Desired::Deleted {
        return removal::run(run).await;
    }
    let source = Session::connect(&run.peer()?, &run.application_name).await?;
    end_former_sessions(run, &source).await?;
    if desired == Desired::Paused {
        return paused::stand_by(run, source).await;
    }
    let catalog = &run.options.catalog;
    if let Some(command) = catalog.open_command(run.mirror.id, ADOPT).await? {
        return adopt::read_log(run, &command).await;
    }
    if !run.mirror.generation_ready {
        claim_names(run, &source).await?;
    }
    check_server(&source).await?;
    Box::pin(capture(run, source)).await
}

async fn capture(run: &Run, source: Session) -> Result<Finished> {
    let mirror = &run.mirror;
    ensure_topics(run).await?;
    let Options {
        kafka,
        topics,
        schema_ids,
        ..
    } = &*run.options;
    let registry = Registry::open_with(kafka.clone(), topics, schema_ids.clone()).await?;
    let mut publisher = Publisher::open(
        kafka,
        topics,
        &registry,
        &mirror.slug,
        run.memory.streams.join(),
    )
    .await?;
    let positions = reader::read_positions(kafka, topics, &mirror.slug).await?;
    // Before anything is done for this catalog at the source.
    last_wish::check(run, positions.wish).await?;
    last_wish::remember(run, positions.wish, &mut publisher).await?;
    snapshot::ensure_topic(run, &mut publisher, &positions.syncs).await?;
    if !mirror.generation_ready {
        publication::create(&source, mirror).await?;
    }
    crash_point(PUBLICATIONS_CREATED);
    let pending = rounds::pending(mirror, &positions.syncs);
    let taken_out = run.options.catalog.tables_taken_out(mirror.id).await?;
    let watch = Watch::begin(&source, mirror, &positions.tables, &pending, taken_out).await?;
    let mut replication = Replication::connect(
        &run.peer()?,
        &run.application_name,
        &mirror.slot_name,
        &publication::names(mirror),
    )
    .await?;
    let setting_up = SettingUp::default();
    let waits_for = |blockers: Option<String>| setting_up.waits_for(run, blockers);
    let places = Places {
        mirror,
        catalog: &run.options.catalog,
        kafka,
        topics,
        registry: &registry,
        source: &source,
        tables: watch.first_records(mirror),
        waits_for: &waits_for,
    };
    let record = slot::prepare(
        &places,
        &mut publisher,
        &mut replication,
        positions.position,
    )
    .await?;
    size::refuse_if_full(run).await?;
    let sent = publisher.sent();
    tracing::info!(mirror = %mirror.name, from = %record.confirm_lsn, "streaming");
    let wal = replication.start(record.confirm_lsn).await?;

    let (sync_sender, sync_requests) = mpsc::channel(SYNC_REQUESTS_MAX);
    let (passed, passed_seen) = tokio::sync::watch::channel(Default::default());
    let (status, status_seen) = tokio::sync::watch::channel(Default::default());
    let (finding_sender, findings) = mpsc::channel(1);
    let (held, held_seen) = tokio::sync::watch::channel(None);
    let (view, view_seen) = tokio::sync::watch::channel(Default::default());
    let gap_schema_id = registry.register_control(SchemaKind::TableGap).await?;
    let (visibility, waits) = Visibility::new(run.context.cancel.clone());
    let stream = Stream::new(Parts {
        wal,
        publisher,
        tables: Tables::new(
            mirror,
            watch.expected(mirror, &pending),
            watch.exclusions(),
            visibility,
            TopicPerTable::of(run),
        ),
        encoder: EventEncoder::new(mirror.name.clone(), mirror.generation, gap_schema_id),
        record,
        sync_requests,
        findings,
        passed,
        status,
        streamed: watch.streamed(),
    });
    let exclusions = watch.exclusions().subscribe();
    let passed_by = passed_seen.clone();
    let passed_looks = passed_seen.clone();
    let rounds = Rounds::new(
        mirror,
        &positions.syncs,
        &watch.absent(mirror),
        watch.unpublished(),
        watch.exclusions().subscribe(),
    );
    let syncs = rounds.view();
    let reporting = Reporting {
        passed: passed_seen.clone(),
        status: status_seen,
        syncs: rounds.view(),
        watched: view_seen,
        waits,
        changes_bytes: held_seen,
    };
    // A session of its own: what the report asks must not queue behind the stream's look-ups.
    let report_session = Session::connect(&run.peer()?, &run.application_name).await?;
    let watch_session = Session::connect(&run.peer()?, &run.application_name).await?;

    let recorder = SyncRecorder::new(sync_sender);
    tokio::select! {
        ended = stream.run(&source, &registry, run.context.cancel.clone()) => ended?,
        ended = superseded::run(run, &recorder) => ended?,
        ended = rounds::run(run, rounds, &registry, recorder.clone(), passed_seen) => ended?,
        ended = Box::pin(definitions::run(run, exclusions, passed_by)) => ended?,
        ended = report::run(run, &report_session, reporting) => ended?,
        ended = watch.run(run, &watch_session, syncs, passed_looks, finding_sender, view) => ended?,
        ended = size::run(run, sent, held) => ended?,
    }
    Ok(Finished::Idle)
}

/// A frozen former capture keeps its sessions and the slot alive: end them first. One with
/// a higher epoch is not former: it has taken over, and this run must not fight it.
pub(crate) async fn end_former_sessions(run: &Run, source: &Session) -> Result<()> {
    let prefix = run.session_prefix();
    let rows = source
        .query(
            "SELECT DISTINCT application_name FROM pg_stat_activity
             WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid()",
            &[&format!("{prefix} ")],
        )
        .await?;
    for row in rows {
        let name: String = row.get(0);
        let epoch: Option<i64> = name.rsplit(' ').next().and_then(|text| text.parse().ok());
        if let Some(seen) = epoch.filter(|epoch| *epoch > run.context.lease_epoch) {
            let (catalog, ours) = (&run.options.catalog, run.context.lease_epoch);
            let (id, role) = (run.mirror.id, Role::Capture);
            // The next run has a higher one, if it is not the session's holder that should act.
            if catalog.raise_lease_above(id, role, ours, seen).await? {
                tracing::warn!(mirror = %run.mirror.name, session = name, "a session is of a later epoch than the catalog remembers");
            }
            return Err(Error::Superseded);
        }
        let pids = terminate_sessions(source, &name).await?;
        tracing::info!(mirror = %run.mirror.name, session = name, ?pids, "ended a former capture's sessions");
    }
    Ok(())
}

/// Before the mirror first makes its slot and publications: what already stands under their
/// names belongs to someone else. The claim is recorded first, so that a crash in between
/// leaves what a later run may drop.
async fn claim_names(run: &Run, source: &Session) -> Result<()> {
    let catalog = &run.options.catalog;
    let mirror = &run.mirror;
    let Some(command) = catalog.open_command(mirror.id, "create").await? else {
        return Ok(());
    };
    if command.steps.iter().any(|step| step == NAMES_CLAIMED) {
        return Ok(());
    }
    if slot::exists_foreign(source, mirror).await?
        || publication::any_exists(source, mirror).await?
    {
        return Err(Error::fatal(format!(
            "the source already has a replication slot {} or publications {}, which this mirror did not make (another BunnyDB installation, or what is left of an older one). To go on with what is left, delete this mirror, which touches none of it, and create it with \"adopt\": true; else drop them, or create it under another name or topic prefix",
            mirror.slot_name,
            publication::names(mirror).join(", ")
        )));
    }
    // Topics that were kept when an earlier mirror of the name was deleted are filled further.
    if let Some(wish) = last_wish::positions_if_any(run).await?.wish {
        catalog.pass_over_wish(mirror.id, wish, command.id).await?;
    }
    catalog.mark_step(command.id, NAMES_CLAIMED).await?;
    Ok(())
}

async fn check_server(source: &Session) -> Result<()> {
    let server = introspect::server_info(source).await?;
    if server.wal_level != "logical" {
        return Err(Error::fatal(format!(
            "the source runs with wal_level={}; set wal_level=logical and restart it",
            server.wal_level
        )));
    }
    report::refuse_as_a_standby(&server.synchronous_standby_names)?;
    if server.server_encoding == "SQL_ASCII" {
        return Err(Error::fatal(
            "the source database has encoding SQL_ASCII, whose text has no defined meaning; dump it into a UTF8 database first",
        ));
    }
    Ok(())
}

async fn ensure_topics(run: &Run) -> Result<()> {
    let Options { kafka, topics, .. } = &*run.options;
    let slug = &run.mirror.slug;
    let (all, position, changes) = (
        topics.schemas(),
        topics.position(slug),
        topics.changes(slug),
    );
    tokio::try_join!(
        kafka.ensure_topic(&all, TopicKind::Schemas),
        kafka.ensure_topic(&position, TopicKind::Position),
        kafka.ensure_topic(&changes, TopicKind::Changes),
    )?;
    table_topics::ensure(run).await
}
