//! Catch-up: brings tables that are not in main to where main is, and into it.
//!
//! Served are the tables in state CATCHING_UP that are not in main: those a sync has
//! loaded while main ran, and those that were set aside and are to go on. One reader
//! serves them all, from the lowest of their offsets on, each table from its own
//! (`restart_offset` in `_bunny.tables`). It applies whole source transactions with the
//! writer that main uses, fenced like it, and every commit moves the tables' offsets with
//! the rows (I3, I4). It never passes what main has committed; when it is near, it asks
//! main to hold (`crossing`), applies up to exactly that offset, and marks the tables as
//! in main in one transaction, which checks that main still stands there.
//!
//! On failure: an error about one table sets that table aside, its offset kept, and the
//! others go on; a lock that someone holds is waited for with growing pauses, outside of
//! main's time, and so is room for an exchange; every other error ends the run.

mod round;
mod store;

use std::time::Duration;

use bunny_postgres::{Session, TableName};
use uuid::Uuid;

use crate::bookkeeping::{self, State, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::crossing::Crossing;
use crate::error::{Error, Result};
use crate::mirror::set_aside_or;
use crate::parked;
use crate::replay;
use crate::schema_change::labels;
use crate::swap;
use crate::table_sync::chunk_copy;
use crate::waits::Task;

use round::Ended;
pub(crate) use store::advance;

/// How often it is looked for tables that are behind.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pauses while someone holds a lock on a table: the first one, and the longest.
const LOCKED_PAUSE_MIN: Duration = Duration::from_secs(1);
const LOCKED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// lock_not_available (PostgreSQL manual, appendix A).
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Serves whatever tables are behind, until an error that ends the run.
pub(crate) async fn run(run: MirrorRun, crossing: Crossing) -> Result<()> {
    let mut pause = LOCKED_PAUSE_MIN;
    let mut exchange_pause = LOCKED_PAUSE_MIN;
    let mut look = Look::new(run.clone());
    // Replays that have reached their bound; the pause that ends this run is on its way.
    let mut standing: Vec<Uuid> = Vec::new();
    loop {
        if run.is_beside() && !exchange(&run, &mut look, &mut exchange_pause).await? {
            continue;
        }
        let generation = crossing.committed().borrow().generation;
        let (all, behind) = look.behind(generation).await?;
        let (behind, bound) = replay::next_round(&run.mirror, behind, &all, &standing);
        if behind.is_empty() {
            run.waits.over(Task::catch_up_of(&run));
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        let requests: Vec<Uuid> = behind.iter().filter_map(|table| table.request_id).collect();
        let served = round::run(&run, &crossing, behind, bound, &mut look);
        match Box::pin(served).await {
            Ok(Ended::Standing) => {
                reached(crash_points::REPLAY_STANDS);
                let sources: Vec<String> = all
                    .iter()
                    .filter(|table| table.request_id.is_some_and(|id| requests.contains(&id)))
                    .map(|table| table.source.to_string())
                    .collect();
                tracing::info!(mirror = %run.mirror.name, tables = ?sources, "tables stand where they were asked to");
                run.catalog
                    .end_replay_until(run.mirror_id(), &requests)
                    .await?;
                standing.extend(requests);
            }
            Ok(_) => pause = LOCKED_PAUSE_MIN,
            Err(error @ Error::Table { .. }) => set_aside_or(&run, error).await?,
            Err(Error::Labels { table, statements }) => {
                if let Err(error) = labels::add(&run, &table, &statements).await {
                    set_aside_or(&run, error).await?;
                }
            }
            Err(Error::Locked {
                table,
                restart_offset,
                ..
            }) if !run.is_beside() => parked::park(&run, &table, restart_offset).await?,
            Err(error) if error.sqlstate() == Some(LOCK_NOT_AVAILABLE) => {
                tracing::info!(mirror = %run.mirror.name, %error, "a table that catches up is locked, trying again");
                run.waits.met(Task::catch_up_of(&run), &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOCKED_PAUSE_MAX);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Exchanges the rows of the tables that are ready for it. False: one of them could not be
/// now, or not at all.
async fn exchange(run: &MirrorRun, look: &mut Look, pause: &mut Duration) -> Result<bool> {
    match try_exchange(run, look).await {
        Ok(0) => Ok(true),
        Ok(_) => {
            *pause = LOCKED_PAUSE_MIN;
            Ok(true)
        }
        Err(error @ Error::Table { .. }) => {
            run.waits.over(Task::Exchange);
            set_aside_or(run, error).await?;
            Ok(false)
        }
        Err(error) if swap::may_pass(&error) => {
            tracing::info!(mirror = %run.mirror.name, %error, "the rows of a table are exchanged later");
            run.waits.met(Task::Exchange, &error);
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).min(LOCKED_PAUSE_MAX);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// As many tables as have other rows then. If it fails, they are let go on with those they
/// have.
async fn try_exchange(run: &MirrorRun, look: &mut Look) -> Result<usize> {
    let session = look.session().await?;
    let exchanged = swap::exchange(run, &session).await;
    if exchanged.is_err() {
        // What was begun goes with its session.
        drop(session);
        swap::put_back(run, &*look.session().await?).await?;
        return exchanged;
    }
    look.session = Some(session);
    exchanged
}

/// Looks at the table states, through a session that is kept.
pub(super) struct Look {
    run: MirrorRun,
    session: Option<Session>,
}

impl Look {
    fn new(run: MirrorRun) -> Look {
        Look { run, session: None }
    }

    async fn session(&mut self) -> Result<Session> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => chunk_copy::connect(&self.run).await,
        }
    }

    /// All tables, and those of them that are behind main in its generation.
    async fn behind(&mut self, generation: Uuid) -> Result<(Vec<TableState>, Vec<TableState>)> {
        let session = self.session().await?;
        let client: &tokio_postgres::Client = &session;
        let tables = bookkeeping::tables(client, self.run.ledger).await?;
        let behind = tables.iter().filter(|table| is_behind(table, generation));
        let behind = behind.cloned().collect();
        self.session = Some(session);
        Ok((tables, behind))
    }

    /// Whether a table can be exchanged that main has not to give up, because it was set aside.
    async fn is_exchange_due(&mut self) -> Result<bool> {
        if !self.run.is_beside() {
            return Ok(false);
        }
        let session = self.session().await?;
        let is_due = swap::is_due(&self.run, &session).await?;
        self.session = Some(session);
        Ok(is_due)
    }

    /// The tables that main can give up for an exchange; none where nothing is exchanged.
    async fn exchangeable(&mut self) -> Result<Vec<TableName>> {
        if !self.run.is_beside() {
            return Ok(Vec::new());
        }
        let session = self.session().await?;
        let tables = swap::in_main(&self.run, &session).await?;
        self.session = Some(session);
        Ok(tables)
    }
}

/// Whether a catch-up reader serves the table.
fn is_behind(table: &TableState, generation: Uuid) -> bool {
    table.state == State::CatchingUp
        && !table.in_main
        && table.generation == Some(generation)
        && table.restart_offset.is_some()
}
