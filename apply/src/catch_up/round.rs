//! One catch-up reader, from its start to the moment its tables join main.

use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::LogLevel;
use bunny_postgres::{Session, TableName};
use bunny_schemas::Position;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{Look, store};
use crate::batch::Part;
use crate::bookkeeping::{Progress, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::crossing::{Crossing, Outcome};
use crate::error::{Error, Result};
use crate::main_stream::{policy, reader_error};
use crate::reader::{self, Flush, Reader, Work};
use crate::replay::{self, Bound};
use crate::routes::Routes;
use crate::stats::Stats;
use crate::swap;
use crate::waits::Task;
use crate::writer::Writer;

/// So many offsets behind main it asks main to hold: what is left takes a moment.
const NEAR_OFFSETS: i64 = 5_000;
/// Main waits no longer than this, and the statement under way.
const HOLD_MAX: Duration = Duration::from_secs(3);
/// While main waits, or may begin to, a lock is not waited for longer than this.
const LOCK_TIMEOUT_IN_HOLD: Duration = Duration::from_secs(1);
/// After a hold that came to nothing main is left alone for so long.
const HOLD_PAUSE: Duration = Duration::from_secs(5);
/// How often progress over events that are not of its tables is stored, and the set of
/// tables looked at.
const RECHECK_EVERY: Duration = Duration::from_secs(1);
/// Most events are other tables', so its batches may hold more than main's.
const BATCH_EVENTS_MIN: usize = 5_000;

/// Serves `behind` until they, or those of them that can, have joined main, or other
/// tables have come to be behind. With a bound they do not join: they stand there.
pub(super) async fn run(
    run: &MirrorRun,
    crossing: &Crossing,
    behind: Vec<TableState>,
    bound: Option<Bound>,
    look: &mut Look,
) -> Result<Ended> {
    let routes = Arc::new(Routes::behind(&behind));
    let offsets = behind.iter().filter_map(|table| table.restart_offset);
    let next_offset = offsets.min().unwrap_or_default();
    let start = Progress {
        generation: crossing.committed().borrow().generation,
        position: Position::default(),
        next_offset,
    };
    let writer = Writer::new(
        run.connect().await?,
        run.mirror_id(),
        run.epoch,
        routes.clone(),
        policy(run),
    )
    .await?
    .with_ledger(run.ledger);
    let consumer = reader::open(run, next_offset).await?;
    let names: Vec<String> = behind
        .iter()
        .map(|table| table.source.to_string())
        .collect();
    tracing::info!(mirror = %run.mirror.name, offset = next_offset, tables = ?names, "catching up");

    let (work_sender, work) = mpsc::channel(1);
    let (demand, demanded) = watch::channel(false);
    let reader = Reader::new(
        run,
        reader::Options {
            start,
            routes,
            flush: Flush::Eager,
            changes_max: (run.mirror.config.max_batch_size as usize).max(BATCH_EVENTS_MIN),
            budget: run.memory.join(),
            stats: Arc::new(Stats::default()),
            limit: Some(crossing.committed()),
            bound,
            stop: None,
            demand: demanded,
            work: work_sender,
        },
    );
    // Dropped with this future, which ends the reader.
    let mut tasks = JoinSet::new();
    tasks.spawn(Box::pin(reader.run(consumer)));

    let mut round = Round {
        run,
        crossing,
        generation: start.generation,
        writer,
        sources: behind.iter().map(|table| table.source.clone()).collect(),
        behind,
        next_offset,
        stored_offset: next_offset,
        holding: Holding::No {
            not_before: Instant::now(),
        },
        recheck_at: Instant::now() + RECHECK_EVERY,
        bound,
        exchangeable: look.exchangeable().await?,
        look,
        work,
        demand,
    };
    let ended = Box::pin(round.follow()).await;
    // Whatever happened, no table has joined: that ends the round by itself.
    round.holding.over();
    match ended? {
        ended @ (Ended::Over | Ended::Standing) => Ok(ended),
        Ended::ReaderGone => Err(reader_error(&mut tasks).await),
    }
}

/// How a round ended.
pub(super) enum Ended {
    Over,
    /// Its tables stand at the bound.
    Standing,
    ReaderGone,
}

/// What main was asked.
enum Holding {
    No {
        not_before: Instant,
    },
    Asked {
        answer: oneshot::Receiver<Progress>,
        tell: oneshot::Sender<Outcome>,
    },
    Held {
        main: Progress,
        tell: oneshot::Sender<Outcome>,
        until: Instant,
    },
}

struct Round<'a> {
    run: &'a MirrorRun,
    crossing: &'a Crossing,
    look: &'a mut Look,
    generation: uuid::Uuid,
    writer: Writer,
    behind: Vec<TableState>,
    sources: Vec<TableName>,
    /// Everything before it is applied, though perhaps not stored as such.
    next_offset: i64,
    stored_offset: i64,
    holding: Holding,
    recheck_at: Instant,
    bound: Option<Bound>,
    /// Where this serves what is loaded beside tables: the tables that main can give up.
    exchangeable: Vec<TableName>,
    work: mpsc::Receiver<Work>,
    demand: watch::Sender<bool>,
}

impl Round<'_> {
    async fn follow(&mut self) -> Result<Ended> {
        let mut committed = self.crossing.committed();
        loop {
            if self.join_if_there().await? {
                return Ok(Ended::Over);
            }
            let main = *committed.borrow_and_update();
            self.ask_if_near(main).await;
            self.demand.send_replace(true);
            let is_free = !self.holding.may_keep_main();
            let turn = tokio::select! {
                biased;
                answered = self.holding.answered() => Turn::Answered(answered),
                work = self.work.recv() => Turn::Work(work),
                () = sleep_until(self.recheck_at) => Turn::Recheck,
                _ = committed.changed(), if is_free => Turn::MainMoved,
            };
            self.demand.send_replace(false);
            match turn {
                Turn::Answered(Some(main)) => self.holding.held(main),
                // Main has given way to an error, or its time is up.
                Turn::Answered(None) => self.let_go(),
                Turn::Work(None) => return Ok(Ended::ReaderGone),
                Turn::Work(Some(Work::Part(part))) => self.part(&part).await?,
                Turn::Work(Some(Work::Bound {
                    position,
                    next_offset,
                })) => {
                    return self.stand(Some(position), next_offset).await;
                }
                Turn::Work(Some(Work::CaughtUp))
                    if self.bound.is_some_and(|bound| bound.may_end_with_log()) =>
                {
                    return self.stand(None, self.next_offset).await;
                }
                Turn::Work(Some(Work::CaughtUp | Work::Stop)) | Turn::MainMoved => {}
                // Main meets it too, and takes every table out.
                Turn::Work(Some(Work::Generation { .. })) => return Ok(Ended::Over),
                Turn::Recheck => {
                    self.recheck_at = Instant::now() + RECHECK_EVERY;
                    self.store_offset().await?;
                    self.exchangeable = self.look.exchangeable().await?;
                    if self.tables_changed().await? {
                        return Ok(Ended::Over);
                    }
                }
            }
        }
    }

    async fn part(&mut self, part: &Part) -> Result<()> {
        let has_effect = !part.events.is_empty();
        if has_effect && !self.writer.is_open() {
            self.begin(part.first_offset).await?;
        }
        if has_effect {
            self.writer.write(part).await?;
        }
        if !part.complete {
            return Ok(());
        }
        self.next_offset = part.next_offset;
        if !self.writer.is_open() {
            return Ok(());
        }
        self.commit().await?;
        self.run.waits.over(Task::catch_up_of(self.run));
        Ok(())
    }

    async fn begin(&mut self, first_offset: i64) -> Result<()> {
        self.writer.begin(first_offset).await?;
        if self.holding.may_keep_main() {
            self.writer.wait_for_locks(LOCK_TIMEOUT_IN_HOLD).await?;
        }
        Ok(())
    }

    /// The rows, if any, and the tables' offsets.
    async fn commit(&mut self) -> Result<()> {
        self.writer
            .commit_behind(self.next_offset, &self.sources)
            .await?;
        reached(crash_points::CATCH_UP_AFTER_COMMIT);
        self.writer.tell(self.run);
        self.stored_offset = self.next_offset;
        Ok(())
    }

    /// Offsets that moved over other tables' events only.
    async fn store_offset(&mut self) -> Result<()> {
        if self.writer.is_open() || self.stored_offset >= self.next_offset {
            return Ok(());
        }
        self.begin(self.next_offset).await?;
        self.commit().await
    }

    async fn tables_changed(&mut self) -> Result<bool> {
        if self.writer.is_open() || self.holding.may_keep_main() {
            return Ok(false);
        }
        if self.look.is_exchange_due().await? {
            return Ok(true);
        }
        let (all, now) = self.look.behind(self.generation).await?;
        let (now, _) = replay::next_round(&self.run.mirror, now, &all, &[]);
        let same = now.len() == self.behind.len()
            && now.iter().zip(&self.behind).all(|(now, before)| {
                now.source == before.source && now.request_id == before.request_id
            });
        Ok(!same)
    }

    /// Everything up to the bound is applied: the tables stand there, from where they go on
    /// one day. `first_out` is the event behind it, if there is one.
    async fn stand(&mut self, first_out: Option<Position>, next_offset: i64) -> Result<Ended> {
        let holds_more = |table: &&TableState| {
            first_out.is_some_and(|out| table.lsn.is_some_and(|lsn| lsn > out.commit_lsn))
        };
        if let Some(table) = self.behind.iter().find(holds_more) {
            return Err(Error::Table {
                table: table.source.clone(),
                reason: "its copy is later than the first commit after the time asked for: the source's clock has gone back. Replay it up to an LSN".to_owned(),
                restart_offset: table.restart_offset,
            });
        }
        self.next_offset = next_offset.max(self.next_offset);
        self.store_offset().await?;
        Ok(Ended::Standing)
    }

    /// Asks main to hold when this is near it and a table may join.
    async fn ask_if_near(&mut self, main: Progress) {
        if self.bound.is_some() {
            return;
        }
        let Holding::No { not_before } = self.holding else {
            return;
        };
        let is_near = main.next_offset - self.next_offset <= NEAR_OFFSETS;
        if !is_near
            || self.writer.is_open()
            || Instant::now() < not_before
            || self.joining(main.position).is_empty()
        {
            return;
        }
        if let Some((answer, tell)) = self.crossing.hold().await {
            self.holding = Holding::Asked { answer, tell };
        }
    }

    /// The tables that may cross to main where it stands at `position`.
    fn joining(&self, position: Position) -> Vec<TableName> {
        let mut joining = joining(&self.behind, position);
        if self.run.is_beside() {
            joining.retain(|table| self.exchangeable.contains(table));
        }
        joining
    }

    fn let_go(&mut self) {
        let free = Holding::No {
            not_before: Instant::now() + HOLD_PAUSE,
        };
        std::mem::replace(&mut self.holding, free).over();
    }

    /// Brings the tables into main if main holds and they are where it stands.
    async fn join_if_there(&mut self) -> Result<bool> {
        let Holding::Held { main, .. } = &self.holding else {
            return Ok(false);
        };
        let main = *main;
        if self.next_offset < main.next_offset || self.writer.is_open() {
            return Ok(false);
        }
        let joining = self.joining(main.position);
        let free = Holding::No {
            not_before: Instant::now() + HOLD_PAUSE,
        };
        // From here on an error leaves main without an answer: then nobody knows.
        let Holding::Held { tell, .. } = std::mem::replace(&mut self.holding, free) else {
            return Ok(false);
        };
        reached(crash_points::CATCH_UP_HELD);
        let session: Session = self.run.connect().await?;
        if self.run.is_beside() {
            let is_out = match joining.first() {
                Some(table) => swap::take_out(self.run, &session, table, &main).await?,
                None => false,
            };
            reached(crash_points::SWAP_TAKEN_OUT);
            let _ = tell.send(match is_out {
                true => Outcome::Joined,
                false => Outcome::GoOn,
            });
            return Ok(true);
        }
        store::join(&session, self.run, &joining, &main).await?;
        reached(crash_points::CATCH_UP_JOINED);
        let _ = tell.send(Outcome::Joined);
        for table in &joining {
            tracing::info!(mirror = %self.run.mirror.name, %table, offset = main.next_offset, "table has caught up");
            self.run.reporter.log(
                LogLevel::Info,
                format!("table {table} has caught up with the others"),
                serde_json::json!({"table": table.to_string(), "offset": main.next_offset}),
            );
        }
        Ok(true)
    }
}

enum Turn {
    Answered(Option<Progress>),
    Work(Option<Work>),
    Recheck,
    MainMoved,
}

impl Holding {
    /// Whether main waits, or may have begun to: its answer is read only between two parts.
    fn may_keep_main(&self) -> bool {
        !matches!(self, Holding::No { .. })
    }

    /// No table has joined main, which is told so whether its answer was read or not.
    fn over(self) {
        match self {
            Holding::No { .. } => {}
            Holding::Asked { tell, .. } | Holding::Held { tell, .. } => {
                // Main may have given way to an error meanwhile.
                let _ = tell.send(Outcome::GoOn);
            }
        }
    }

    /// Main's answer to what was asked, or None when it is over: main gave none, or has
    /// waited long enough. For ever when nothing was asked. Cancel safe.
    async fn answered(&mut self) -> Option<Progress> {
        match self {
            Holding::No { .. } => std::future::pending().await,
            Holding::Asked { answer, .. } => answer.await.ok(),
            Holding::Held { until, .. } => {
                sleep_until(*until).await;
                None
            }
        }
    }

    fn held(&mut self, main: Progress) {
        let free = Holding::No {
            not_before: Instant::now(),
        };
        *self = match std::mem::replace(self, free) {
            Holding::Asked { tell, .. } => Holding::Held {
                main,
                tell,
                until: Instant::now() + HOLD_MAX,
            },
            other => other,
        };
    }
}

/// The tables that may join main where it stands at `position`: it has passed the end of
/// their syncs, so they are not ahead of it. Pure.
fn joining(behind: &[TableState], position: Position) -> Vec<TableName> {
    let may_join = |table: &&TableState| table.live.is_none_or(|live| live <= position);
    let joining = behind.iter().filter(may_join);
    joining.map(|table| table.source.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crossing::crossing;

    #[tokio::test]
    async fn main_is_told_to_go_on_even_if_its_answer_was_not_read() {
        let main_at = Progress {
            generation: uuid::Uuid::from_u128(1),
            position: Position::default(),
            next_offset: 7,
        };
        let (mut main, crossing) = crossing(main_at);
        let (answer, tell) = crossing.hold().await.unwrap();
        let holding = Holding::Asked { answer, tell };
        let hold = main.hold().await;
        hold.held.send(main_at).unwrap();
        assert!(holding.may_keep_main());
        holding.over();
        assert_eq!(hold.outcome.await, Ok(Outcome::GoOn));
    }
}
