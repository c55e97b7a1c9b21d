//! Main: follows the change topic and applies it to the tables in main.
//!
//! One task reads and decodes, this one writes; what is full while a batch is written is
//! prepared in another session ([`Ahead`]). Rows and progress commit together (I3);
//! whatever goes wrong ends the run, open transactions go with their sessions, and the
//! next run begins at the progress row.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::ApplyMode;
use bunny_postgres::TableName;
use bunny_schemas::Position;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::ahead::Ahead;
use crate::batch::Part;
use crate::batch_log::BatchLog;
use crate::bookkeeping::{self, Progress, State};
use crate::budget::Budget;
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::crossing::{Hold, MainEnd, Outcome};
use crate::error::{Error, Result};
use crate::reader::{self, Flush, PARTITION, Reader, StopAt, Work};
use crate::routes::Routes;
use crate::stats::Stats;
use crate::swap;
use crate::writer::{Policy, Writer};
use bunny_schemas::kafka::Closing;

/// The consumer group's offset only shows the lag in Kafka tools: often enough is enough.
const GROUP_COMMIT_EVERY: Duration = Duration::from_millis(200);

/// Why main stopped following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Tables have joined main: it goes on with other routes.
    Joined,
    /// Another generation begins in the log, and every table has left main.
    Generation,
    /// It stands where it was to stop.
    Stopped,
}

/// Follows the change topic until something in the destination's table states changes
/// main's routes, or `stop`, or an error.
pub async fn follow(
    run: &MirrorRun,
    stats: &Arc<Stats>,
    budget: Budget,
    main_end: &mut MainEnd,
    stop: Option<StopAt>,
) -> Result<Ended> {
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    let progress = bookkeeping::progress(client, run.mirror_id())
        .await?
        .ok_or_else(|| {
            Error::Inconsistent("the destination has no progress row to start from".to_owned())
        })?;
    let tables = bookkeeping::tables(client, run.mirror_id()).await?;
    let catching_up = tables
        .iter()
        .filter(|table| table.in_main && table.state == State::CatchingUp)
        .map(|table| (table.source.clone(), table.live))
        .collect();
    let routes = Arc::new(Routes::of(&tables));
    let config = &run.mirror.config;
    let writer = Writer::new(
        session,
        run.mirror_id(),
        run.epoch,
        routes.clone(),
        policy(run),
    )
    .await?;
    let consumer = reader::open(run, progress.next_offset).await?;
    stats.begins(&progress);
    main_end.committed(progress);
    tracing::info!(
        mirror = %run.mirror.name, offset = progress.next_offset, position = %progress.position, "following the change topic"
    );

    let (work_sender, work) = mpsc::channel(1);
    let (demand, demanded) = watch::channel(false);
    let reader = Reader::new(
        run,
        reader::Options {
            start: progress,
            routes: routes.clone(),
            flush: match config.apply_mode {
                ApplyMode::Eager => Flush::Eager,
                ApplyMode::Interval => {
                    Flush::Interval(Duration::from_secs(config.idle_timeout_seconds.into()))
                }
            },
            changes_max: config.max_batch_size as usize,
            budget,
            stats: stats.clone(),
            limit: None,
            bound: None,
            stop,
            demand: demanded,
            work: work_sender,
        },
    );
    // Dropped with this future, which ends the task.
    let mut tasks = JoinSet::new();
    tasks.spawn(Box::pin(reader.run(consumer.clone())));
    let topic = run.topics.changes(run.mirror.topics_slug());

    let applier = Applier {
        run,
        stats,
        writer,
        group: Group {
            consumer,
            topic,
            committed: progress.next_offset,
            wanted: progress.next_offset,
            next_at: Instant::now(),
        },
        generation: progress.generation,
        catching_up,
        position: progress.position,
        next_offset: progress.next_offset,
        batches: BatchLog::default(),
        main_end,
    };
    let mut main = Main {
        applier,
        ahead: Ahead::new(run, routes, work),
        demand,
    };
    let ended = Box::pin(main.run()).await?;
    match ended {
        Stop::Generation {
            generation,
            next_offset,
        } => {
            // Takes an unfinished transaction of the former generation with it.
            drop(main);
            leave_main(run, generation, next_offset).await?;
            Ok(Ended::Generation)
        }
        Stop::Joined => Ok(Ended::Joined),
        Stop::There => Ok(Ended::Stopped),
        Stop::ReaderGone => Err(reader_error(&mut tasks).await),
    }
}

/// What the mirror's options say to a writer.
pub(crate) fn policy(run: &MirrorRun) -> Policy {
    let config = &run.mirror.config;
    Policy {
        has_initial_snapshot: config.do_initial_snapshot,
        creates_tables: config.create_destination_tables,
        schema_changes: config.schema_changes,
    }
}

enum Stop {
    Joined,
    There,
    Generation { generation: Uuid, next_offset: i64 },
    ReaderGone,
}

struct Applier<'a> {
    run: &'a MirrorRun,
    stats: &'a Stats,
    writer: Writer,
    group: Group,
    generation: Uuid,
    /// Tables in main that are not LIVE yet, and from which position on they are.
    catching_up: Vec<(TableName, Option<Position>)>,
    position: Position,
    next_offset: i64,
    main_end: &'a mut MainEnd,
    batches: BatchLog,
}

struct Main<'a> {
    applier: Applier<'a>,
    ahead: Ahead<'a>,
    demand: watch::Sender<bool>,
}

impl Main<'_> {
    async fn run(&mut self) -> Result<Stop> {
        loop {
            self.demand.send_replace(!self.ahead.has_work());
            let applier = &mut self.applier;
            let is_between_batches = !applier.writer.is_open();
            let work = tokio::select! {
                biased;
                hold = applier.main_end.hold(), if is_between_batches => {
                    self.ahead.undo().await;
                    if applier.hold(hold).await? == Outcome::Joined {
                        return Ok(Stop::Joined);
                    }
                    continue;
                }
                work = self.ahead.work() => work,
                () = sleep_until(applier.group.next_at), if applier.group.is_behind() => {
                    applier.group.commit();
                    continue;
                }
            };
            self.demand.send_replace(false);
            match work {
                None => return Ok(Stop::ReaderGone),
                Some(Work::Part(part)) => Box::pin(self.part(&part)).await?,
                Some(Work::CaughtUp | Work::Bound { .. }) => self.applier.caught_up().await?,
                Some(Work::Stop) => return Ok(Stop::There),
                Some(Work::Generation {
                    generation,
                    next_offset,
                }) => {
                    return Ok(Stop::Generation {
                        generation,
                        next_offset,
                    });
                }
            }
        }
    }

    /// Writes a part, and prepares the next meanwhile if that can be done beside it.
    async fn part(&mut self, part: &Part) -> Result<()> {
        self.ahead.change_over(&mut self.applier.writer);
        if self.applier.writer.writes_beside(part) {
            let mut writing = pin!(self.applier.part(part));
            tokio::select! {
                biased;
                written = &mut writing => written?,
                () = self.ahead.take() => {
                    let (written, ()) = tokio::join!(writing, self.ahead.prepare());
                    written?;
                }
            }
        } else {
            self.applier.part(part).await?;
        }
        self.ahead.written(&mut self.applier.writer);
        Ok(())
    }
}

impl Applier<'_> {
    /// Stands still until the catch-up reader has done what it asked for this.
    async fn hold(&mut self, hold: Hold) -> Result<Outcome> {
        let progress = self.progress();
        if hold.held.send(progress).is_err() {
            return Ok(Outcome::GoOn);
        }
        tracing::debug!(mirror = %self.run.mirror.name, offset = progress.next_offset, "main holds");
        hold.outcome.await.map_err(|_| {
            Error::NotYet("the catch-up reader ended while main waited for it".to_owned())
        })
    }

    fn progress(&self) -> Progress {
        Progress {
            generation: self.generation,
            position: self.position,
            next_offset: self.next_offset,
        }
    }

    async fn part(&mut self, part: &Part) -> Result<()> {
        self.batches.begins(part);
        match self.write(part).await {
            Ok(()) => self.batches.written(self.run, part),
            Err(error) => {
                self.batches.failed(self.run, part, &error);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write(&mut self, part: &Part) -> Result<()> {
        self.stats.writing(part.commit_ts_us);
        if !self.writer.is_open() {
            reached(crash_points::BEFORE_BEGIN);
            self.writer.begin(part.first_offset).await?;
            reached(crash_points::AFTER_BEGIN);
        }
        if self.writer.is_prepared() {
            reached(crash_points::BEFORE_MERGE);
        }
        self.writer.write(part).await?;
        reached(crash_points::AFTER_WRITE);
        self.position = part.position;
        self.next_offset = part.next_offset;
        if !part.complete {
            reached(crash_points::MID_LARGE_TRANSACTION);
            return Ok(());
        }
        let position = part.position;
        let (live, still) = std::mem::take(&mut self.catching_up)
            .into_iter()
            .partition(|(_, live)| live.is_some_and(|live| live <= position));
        self.catching_up = still;
        self.commit(live, part.seen as u64).await
    }

    /// The log ends here, so it holds nothing more of any sync's time.
    async fn caught_up(&mut self) -> Result<()> {
        if self.catching_up.is_empty() {
            return Ok(());
        }
        self.writer.begin(self.next_offset).await?;
        let live = std::mem::take(&mut self.catching_up);
        self.commit(live, 0).await
    }

    async fn commit(
        &mut self,
        live: Vec<(TableName, Option<Position>)>,
        events: u64,
    ) -> Result<()> {
        let progress = self.progress();
        let live: Vec<TableName> = live.into_iter().map(|(table, _)| table).collect();
        self.writer.commit(&progress, &live).await?;
        reached(crash_points::AFTER_COMMIT);
        self.writer.tell(self.run);
        let is_news = !live.is_empty();
        for table in live {
            tracing::info!(mirror = %self.run.mirror.name, %table, "table is LIVE");
        }
        self.stats.applied(&progress, events);
        if is_news {
            self.stats.news();
        }
        self.main_end.committed(progress);
        self.group.wanted = self.next_offset;
        self.group.commit_if_due();
        reached(crash_points::AFTER_GROUP_COMMIT);
        Ok(())
    }
}

/// The consumer group's offset.
struct Group {
    consumer: Arc<Closing<StreamConsumer>>,
    topic: String,
    committed: i64,
    wanted: i64,
    next_at: Instant,
}

impl Group {
    fn is_behind(&self) -> bool {
        self.committed < self.wanted
    }

    fn commit_if_due(&mut self) {
        if self.is_behind() && Instant::now() >= self.next_at {
            self.commit();
        }
    }

    fn commit(&mut self) {
        self.next_at = Instant::now() + GROUP_COMMIT_EVERY;
        self.committed = self.wanted;
        let mut offsets = TopicPartitionList::new();
        let committed = offsets
            .add_partition_offset(&self.topic, PARTITION, Offset::Offset(self.wanted))
            .and_then(|()| self.consumer.commit(&offsets, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(topic = %self.topic, %error, "the consumer group's offset was not committed");
        }
    }
}

pub(crate) async fn reader_error(tasks: &mut JoinSet<Result<()>>) -> Error {
    match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => {
            Error::NotYet(format!("reading the change topic ended by itself: {error}"))
        }
        Some(Ok(Ok(()))) | None => {
            Error::NotYet("reading the change topic ended by itself".to_owned())
        }
    }
}

/// Another generation begins: its syncs bring the tables back into main.
pub(crate) async fn leave_main(run: &MirrorRun, generation: Uuid, next_offset: i64) -> Result<()> {
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    client
        .batch_execute("BEGIN")
        .await
        .map_err(Error::sql("beginning a generation"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
    bookkeeping::leave_main(client, run.mirror_id()).await?;
    bookkeeping::leave_main(client, swap::ledger_of(run.mirror_id())).await?;
    let progress = Progress {
        generation,
        position: Position::default(),
        next_offset,
    };
    bookkeeping::set_progress(client, run.mirror_id(), &progress).await?;
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing a generation"))?;
    tracing::info!(mirror = %run.mirror.name, %generation, "another generation begins, every table needs a sync");
    Ok(())
}
