//! One run of one mirror at its destination: take over, load what is not loaded, follow
//! the stream; or take the bookkeeping down when the mirror is deleted.

use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{
    ADOPT, Desired, Finished, Mirror, MirrorContext, OnTableError, Outcome, TaskFailure,
};
use bunny_postgres::{Session, TableName};
use bunny_schemas::kafka::{KafkaConfig, TopicKind};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bookkeeping::{self, Progress, State, TableState};
use crate::budget::Memory;
use crate::catch_up;
use crate::context::{MirrorRun, application_name, application_name_prefix};
use crate::crash_points::{self, reached};
use crate::crossing::{MainEnd, crossing};
use crate::error::{Error, Result};
use crate::last_wish::Known;
use crate::main_stream::Ended;
use crate::retention::{self, Held};
use crate::schema::upkeep;
use crate::schema_change::labels;
use crate::schema_sync::{self, Pending};
use crate::stats::Stats;
use crate::table_sync::{self, LoadProgress, Loads};
use crate::waits::{Task, Waits};
use crate::{
    adopt, last_wish, main_stream, parked, paused, quarantine, reader, removal, replay, report,
    swap, wanted,
};

/// How often the log is looked at while the end of a transaction is missing.
const UNFINISHED_POLL: Duration = Duration::from_secs(1);

/// How long a wait for the end of a transaction lasts at most before the log is read
/// again: the first one, and the longest.
const UNFINISHED_WAIT_MIN: Duration = Duration::from_secs(10);
const UNFINISHED_WAIT_MAX: Duration = Duration::from_secs(60);

/// Pauses between loads beside main: the first one, and the longest.
const LOAD_PAUSE_MIN: Duration = Duration::from_secs(1);
const LOAD_PAUSE_MAX: Duration = Duration::from_secs(60);

/// What the mirrors of a process share.
pub(crate) struct Shared {
    pub(crate) kafka: KafkaConfig,
    pub(crate) topics: Topics,
    pub(crate) registry: OnceCell<Registry>,
    pub(crate) known: Known,
    pub(crate) memory: Memory,
}

impl Shared {
    /// The schemas of the events. Kafka is asked each time a run begins: what is known of a Kafka
    /// that was lost since would give ids another meaning.
    pub(crate) async fn registry(&self) -> Result<Registry> {
        let open = || Registry::open(self.kafka.clone(), &self.topics);
        let opened = self.registry.get_or_try_init(open).await?;
        // A Kafka that is new has no such topic yet.
        let topic = self.topics.schemas();
        self.kafka.ensure_topic(&topic, TopicKind::Schemas).await?;
        opened.refresh().await?;
        Ok(opened.clone())
    }
}

/// Runs a mirror until it is told to stop or fails.
pub(crate) async fn run(shared: Arc<Shared>, mirror: Mirror, context: MirrorContext) -> Outcome {
    let cancel = context.cancel.clone();
    let generation = mirror.generation;
    let ended = tokio::select! {
        () = cancel.cancelled() => return Ok(Finished::Idle),
        ended = Box::pin(run_as_desired(&shared, mirror, context)) => ended,
    };
    ended.or_else(|error| match error {
        Error::Cancelled => Ok(Finished::Idle),
        Error::Fenced { .. } => Err(TaskFailure::fenced(error)),
        error if error.loses_history() => Err(TaskFailure::history_lost(error, generation)),
        error if error.is_transient() => Err(TaskFailure::transient(error)),
        error => Err(TaskFailure::fatal(error)),
    })
}

async fn run_as_desired(
    shared: &Shared,
    mirror: Mirror,
    context: MirrorContext,
) -> Result<Finished> {
    match mirror.desired {
        Desired::Paused => paused::stand_by(shared, Arc::new(mirror), &context).await,
        Desired::Deleted => removal::run(&mirror, &context).await,
        Desired::Running => {
            // Without the catalog nobody can have asked.
            let open = context.catalog.open_command(mirror.id, ADOPT).await;
            if let Some(command) = open.ok().flatten() {
                return adopt::read_destination(shared, &mirror, &context, command).await;
            }
            let stats = Arc::new(Stats::default());
            let mirror = wait_for_generation(mirror, &context).await;
            let run = begin(shared, mirror, &context).await?;
            let loads = Loads::default();
            let held = Held::default();
            // What the first report says must be so; a later look corrects what was away.
            held.read(&run).await;
            tokio::select! {
                ended = Box::pin(go(&run, &stats, &loads)) => ended,
                () = report::report_forever(&run, &stats, &loads, &held) => Err(Error::Cancelled),
                () = Box::pin(upkeep::run(run.clone())) => Err(Error::Cancelled),
                () = Box::pin(retention::run(run.clone(), held.clone())) => Err(Error::Cancelled),
            }
        }
    }
}

/// Capture begins the mirror's history; before that there is nothing to read.
async fn wait_for_generation(mirror: Mirror, context: &MirrorContext) -> Arc<Mirror> {
    let mut context = context.clone();
    let mut latest = Arc::new(mirror);
    while !latest.generation_ready {
        context.changed().await;
        latest = context.latest();
    }
    latest
}

/// Makes this process the owner at the destination.
async fn begin(shared: &Shared, mirror: Arc<Mirror>, context: &MirrorContext) -> Result<MirrorRun> {
    let registry = shared.registry().await?;
    let destination = context.destination.connect_options()?;
    let session = connect_to_take_over(&mirror, context).await?;
    bookkeeping::install(&session).await?;
    let epoch = bookkeeping::take_over(&session, &mirror).await?;
    reached(crash_points::AFTER_TAKE_OVER);
    tracing::info!(mirror = %mirror.name, epoch = epoch.0, "took the destination over");
    last_wish::check(shared, &mirror, context, &session, epoch).await?;
    replay::admit(shared, &mirror, context, &session).await?;
    let mirror = Arc::new(replay::as_wanted(Mirror::clone(&mirror)));
    let run = MirrorRun {
        application_name: application_name(mirror.id, epoch),
        ledger: mirror.id,
        mirror,
        catalog: context.catalog.clone(),
        reporter: context.reporter.clone(),
        kafka: shared.kafka.clone(),
        topics: shared.topics.clone(),
        registry,
        destination,
        epoch,
        cancel: context.cancel.clone(),
        memory: shared.memory.clone(),
        waits: Waits::default(),
    };
    enter_generation(&run, &session).await?;
    wanted::reconcile(&run, &session).await?;
    Ok(run)
}

/// Where another generation was asked for than the one that was followed here: what is left
/// of that in the log is passed over, for every table is synced anew. It may not even be
/// there any more.
async fn enter_generation(run: &MirrorRun, session: &Session) -> Result<()> {
    let client: &tokio_postgres::Client = session;
    let progress = bookkeeping::progress(client, run.mirror_id()).await?;
    if progress.is_none_or(|progress| progress.generation == run.mirror.generation) {
        return Ok(());
    }
    let (next_offset, _) = reader::generation_start(run).await?;
    main_stream::leave_main(run, run.mirror.generation, next_offset).await?;
    reached(crash_points::GENERATION_ENTERED);
    Ok(())
}

pub(crate) async fn connect_to_take_over(
    mirror: &Mirror,
    context: &MirrorContext,
) -> Result<Session> {
    let name = format!("{}takes over", application_name_prefix(mirror.id));
    Ok(Session::connect(&context.destination.connect_options()?, &name).await?)
}

/// Follows the stream, and beside it loads tables and lets them catch up. The first time,
/// and where another generation begins, main waits until every table is loaded.
async fn go(run: &MirrorRun, stats: &Arc<Stats>, loads: &Loads) -> Result<Finished> {
    loop {
        if run.mirror.config.on_table_error == OnTableError::Stop {
            refuse_errored(run).await?;
        }
        let progress = first_entry(run, stats, &loads.own).await?;
        stats.begins(&progress);
        let (main_end, crossing) = crossing(progress);
        // Dropped with this future, which ends them.
        let mut beside = JoinSet::new();
        beside.spawn(Box::pin(load_beside(run.clone(), loads.own.clone())));
        beside.spawn(Box::pin(parked::run(run.clone())));
        if swap::is_asked_for(run).await? {
            let swapping = run.beside();
            beside.spawn(Box::pin(swap::tidy(swapping.clone())));
            beside.spawn(Box::pin(load_beside(
                swapping.clone(),
                loads.beside.clone(),
            )));
            beside.spawn(Box::pin(catch_up::run(swapping, crossing.clone())));
        }
        beside.spawn(Box::pin(catch_up::run(run.clone(), crossing)));
        tokio::select! {
            ended = Box::pin(follow_on(run, stats, main_end, progress)) => ended?,
            Some(ended) = beside.join_next() => match ended {
                Ok(ended) => ended?,
                Err(error) => return Err(Error::NotYet(format!("a task of the mirror ended by itself: {error}"))),
            },
        }
    }
}

/// Main's progress; before main has any in this generation, all tables are loaded first
/// and enter it together.
async fn first_entry(run: &MirrorRun, stats: &Arc<Stats>, load: &LoadProgress) -> Result<Progress> {
    let session = run.connect().await?;
    if wanted::main_has_not_begun(run, &session).await? {
        stats.phase("loading tables");
        table_sync::load(run, load).await?;
        reached(crash_points::TABLES_LOADED);
    }
    wanted::enter_main(run, &session).await
}

/// Loads the tables that are not loaded yet; which they are is decided before. A lock that
/// someone holds on one of them, or a snapshot topic to be read again, is no reason to
/// interrupt main; it is said, for it may last.
async fn load_beside(run: MirrorRun, load: LoadProgress) -> Result<()> {
    let task = Task::load_of(&run);
    let mut pause = LOAD_PAUSE_MIN;
    loop {
        match table_sync::load(&run, &load).await {
            Ok(()) => {
                run.waits.over(task);
                return std::future::pending().await;
            }
            Err(error) if leaves_main_alone(&error) => {
                tracing::info!(mirror = %run.mirror.name, %error, "loading tables is tried again");
                run.waits.met(task, &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOAD_PAUSE_MAX);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether a load that ended so may be begun again by the same run. Pure.
fn leaves_main_alone(error: &Error) -> bool {
    matches!(error, Error::NotYet(_)) || error.sqlstate() == Some(catch_up::LOCK_NOT_AVAILABLE)
}

/// Follows the change topic until another generation begins: what goes wrong with one
/// table, and what is only not there yet, does not end it.
async fn follow_on(
    run: &MirrorRun,
    stats: &Arc<Stats>,
    mut main_end: MainEnd,
    progress: Progress,
) -> Result<()> {
    let mut waited = None;
    let mut schema_sync = Box::pin(schema_sync::prepare(run, stats, &progress)).await?;
    loop {
        stats.phase("following changes");
        let budget = run.memory.join();
        let stop = schema_sync.as_ref().map(Pending::stop_at);
        match Box::pin(main_stream::follow(run, stats, budget, &mut main_end, stop)).await {
            Ok(Ended::Joined) => {}
            Ok(Ended::Generation) => {
                if let Some(pending) = &schema_sync {
                    schema_sync::abandon(run, pending).await?;
                }
                return Ok(());
            }
            Ok(Ended::Stopped) => {
                if let Some(pending) = schema_sync.take() {
                    Box::pin(schema_sync::carry_out(run, stats, &pending)).await?;
                }
            }
            Err(error @ Error::Table { .. }) => set_aside_or(run, error).await?,
            Err(Error::Locked {
                table,
                restart_offset,
                ..
            }) => parked::park(run, &table, restart_offset).await?,
            Err(Error::Labels { table, statements }) => {
                if let Err(error) = labels::add(run, &table, &statements).await {
                    set_aside_or(run, error).await?;
                }
            }
            Err(Error::Unfinished { end_offset }) => {
                stats.phase("waiting for the end of a transaction in the log");
                tracing::info!(
                    mirror = %run.mirror.name, end_offset,
                    "the end of a large transaction is not in the log yet: rolled back, waiting"
                );
                let at_most = wait_at_most(waited, end_offset);
                waited = Some((end_offset, at_most));
                wait_for_more(run, at_most).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Quarantines the table whose error it is, unless that stops the mirror.
pub(crate) async fn set_aside_or(run: &MirrorRun, error: Error) -> Result<()> {
    match error {
        Error::Table { table, reason, .. } if run.is_beside() => {
            swap::give_up(run, &table, &reason).await
        }
        Error::Table {
            table,
            reason,
            restart_offset,
        } if run.mirror.config.on_table_error == OnTableError::Quarantine => {
            quarantine::set_aside(run, &table, &reason, restart_offset).await
        }
        Error::Table {
            table,
            reason,
            restart_offset,
        } => Err(stop(table, &reason, restart_offset)),
        error => Err(error),
    }
}

/// A table that failed before stops the mirror still: a start changes nothing about it.
async fn refuse_errored(run: &MirrorRun) -> Result<()> {
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    let tables = bookkeeping::tables(client, run.mirror_id()).await?;
    stopped_by(&tables).map_or(Ok(()), Err)
}

/// The error of the first table that is ERRORED. Pure.
fn stopped_by(tables: &[TableState]) -> Option<Error> {
    let table = tables.iter().find(|table| table.state == State::Errored)?;
    let cause = table.error.as_deref().unwrap_or("its reason is not known");
    Some(stop(table.source.clone(), cause, table.restart_offset))
}

/// The error of a table that stops its mirror, and the way out. Pure.
pub(crate) fn stop(table: TableName, cause: &str, restart_offset: Option<i64>) -> Error {
    Error::Table {
        table,
        reason: format!(
            "{cause}. \"on_table_error\" is \"stop\", so the mirror does not go on: remove the cause, then retry \
             the mirror, or sync the table again"
        ),
        restart_offset,
    }
}

/// How long to wait with the log ending at `end_offset`: longer each time it has not
/// grown. Pure.
fn wait_at_most(before: Option<(i64, Duration)>, end_offset: i64) -> Duration {
    match before {
        Some((end_before, waited)) if end_before == end_offset => {
            (waited * 2).min(UNFINISHED_WAIT_MAX)
        }
        _ => UNFINISHED_WAIT_MIN,
    }
}

/// Waits until the change topic has grown, but not for ever: what was missing may have
/// come before this began to look.
async fn wait_for_more(run: &MirrorRun, at_most: Duration) -> Result<()> {
    let until = Instant::now() + at_most;
    let topic = run.topics.changes(run.mirror.topics_slug());
    let (_, end_before) = run.kafka.watermarks(&topic, reader::PARTITION).await?;
    loop {
        tokio::time::sleep(UNFINISHED_POLL).await;
        let (_, end) = run.kafka.watermarks(&topic, reader::PARTITION).await?;
        if end != end_before || Instant::now() >= until {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_while_the_log_does_not() {
        let seconds = Duration::from_secs;
        assert_eq!(wait_at_most(None, 5), seconds(10));
        assert_eq!(wait_at_most(Some((5, seconds(10))), 5), seconds(20));
        assert_eq!(wait_at_most(Some((5, seconds(40))), 5), seconds(60));
        assert_eq!(wait_at_most(Some((5, seconds(60))), 6), seconds(10));
    }

    #[test]
    fn only_what_may_pass_by_itself_leaves_main_alone() {
        assert!(leaves_main_alone(&Error::NotYet("read again".into())));
        assert!(!leaves_main_alone(&Error::Fenced { ours: 1, found: 2 }));
        assert!(!leaves_main_alone(&Error::Inconsistent("gone".into())));
    }

    #[test]
    fn an_errored_table_is_named_with_its_cause() {
        let name = |name: &str| TableName {
            schema: "public".into(),
            name: name.into(),
        };
        let sound = TableState::wanted(name("a"), name("a"), None);
        assert!(stopped_by(std::slice::from_ref(&sound)).is_none());
        let errored = TableState {
            state: State::Errored,
            error: Some("column c is missing".into()),
            ..TableState::wanted(name("b"), name("b"), None)
        };
        let error = stopped_by(&[sound, errored]).expect("an error").to_string();
        assert!(error.contains("public.b: column c is missing. "), "{error}");
        assert!(error.contains("retry the mirror"), "{error}");
    }
}
