//! Tables that somebody has kept locked for a minute: they leave main, or the catch-up
//! reader, and come back by themselves.
//!
//! What is PARKED keeps its offset, so the log keeps what it misses (I6). It is looked at
//! every second whether its lock can be had, without waiting for it; then it is CATCHING_UP,
//! which is all that coming back takes. A table that is locked again each time is left alone
//! for longer and longer.
//!
//! On failure: a run that ends leaves it PARKED, and the next one lets it catch up at once.

use std::collections::HashMap;
use std::time::Duration;

use bunny_catalog::LogLevel;
use bunny_postgres::TableName;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::bookkeeping::{self, State, TableState};
use crate::catch_up::LOCK_NOT_AVAILABLE;
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::swap;

/// How long a statement waits for someone else's lock before its table is parked.
const PATIENCE_SECONDS: u32 = 60;

/// How often parked tables are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a table stays parked that was locked again: the first time, and at most.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a writer waits for someone else's lock, in seconds. Only tests of this program
/// shorten it.
pub(crate) fn patience_seconds() -> u32 {
    #[cfg(feature = "failpoints")]
    if let Some(seconds) = fail::eval("apply_lock_patience_seconds", |seconds| seconds)
        && let Some(seconds) = seconds.and_then(|seconds| seconds.parse().ok())
    {
        return seconds;
    }
    PATIENCE_SECONDS
}

/// Takes a table out of main, or from the catch-up reader; `restart_offset` is the first
/// offset that main has not applied to it.
pub(crate) async fn park(
    run: &MirrorRun,
    table: &TableName,
    restart_offset: Option<i64>,
) -> Result<()> {
    let session = run.connect().await?;
    let client: &Client = &session;
    let known = bookkeeping::table(client, run.mirror_id(), table).await?;
    let holders = match &known {
        Some(known) => holders(run, client, &known.destination).await?,
        None => None,
    };
    let holders = holders.unwrap_or_else(|| "another session".to_owned());
    let reason = format!(
        "{holders} keeps it locked at the destination: its changes wait in the log, and it goes on by itself when the lock is gone"
    );
    begin(run, client).await?;
    bookkeeping::park_table(client, run.mirror_id(), table, &reason, restart_offset).await?;
    end(client, "COMMIT").await?;
    reached(crash_points::TABLE_PARKED);
    tracing::warn!(mirror = %run.mirror.name, %table, reason, restart_offset, "table is PARKED, the others go on");
    run.reporter.log(
        LogLevel::Warn,
        format!("table {table} is PARKED: {reason}"),
        serde_json::json!({"table": table.to_string(), "restart_offset": restart_offset}),
    );
    Ok(())
}

/// Who holds locks on a table, apart from us; None if nobody does any more.
async fn holders(run: &MirrorRun, client: &Client, table: &TableName) -> Result<Option<String>> {
    let row = client
        .query_one(
            "SELECT string_agg(DISTINCT format('pid %s (%s)', a.pid, a.application_name), ', ')
             FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.relation = to_regclass($1) AND l.granted AND a.application_name <> $2
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[&table.quoted(), &run.application_name],
        )
        .await
        .map_err(Error::sql(format!("looking who locks {table}")))?;
    Ok(row.get(0))
}

/// Brings parked tables back, for as long as the run lasts.
pub(crate) async fn run(run: MirrorRun) -> Result<()> {
    let mut pauses = Pauses::default();
    let mut session = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let open = match session.take() {
            Some(open) => open,
            None => run.connect().await?,
        };
        let client: &Client = &open;
        let tables = bookkeeping::tables(client, run.mirror_id()).await?;
        for table in pauses.due(&tables, Instant::now()) {
            if let_go_on(&run, client, &table).await? {
                pauses.went_on(&table.source);
                tracing::info!(mirror = %run.mirror.name, table = %table.source, "the lock is gone, the table goes on");
            }
        }
        session = Some(open);
    }
}

/// Lets the table catch up if its lock can be had. False: it is still locked.
async fn let_go_on(run: &MirrorRun, client: &Client, table: &TableState) -> Result<bool> {
    begin(run, client).await?;
    let lock = format!(
        "LOCK TABLE {} IN ROW EXCLUSIVE MODE NOWAIT",
        table.destination.quoted()
    );
    let tried = client
        .batch_execute(&lock)
        .await
        .map_err(Error::sql("looking for a lock"));
    match tried {
        Err(error) if error.sqlstate() == Some(LOCK_NOT_AVAILABLE) => {
            end(client, "ROLLBACK").await?;
            return Ok(false);
        }
        // Whatever else is wrong with the table, the catch-up reader will meet and say.
        Err(error) if error.sqlstate().is_some() && !error.is_transient() => {
            end(client, "ROLLBACK").await?;
            begin(run, client).await?;
        }
        tried => tried?,
    }
    bookkeeping::unpark_table(client, run.mirror_id(), &table.source).await?;
    end(client, "COMMIT").await?;
    Ok(true)
}

async fn begin(run: &MirrorRun, client: &Client) -> Result<()> {
    client
        .batch_execute("BEGIN; SET LOCAL lock_timeout = '5s'; SET LOCAL synchronous_commit = on")
        .await
        .map_err(Error::sql("beginning to change a parked table"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await
}

async fn end(client: &Client, how: &str) -> Result<()> {
    client
        .batch_execute(how)
        .await
        .map_err(Error::sql("changing a parked table"))
}

/// How long each table is left alone.
#[derive(Debug, Default)]
struct Pauses {
    tables: HashMap<TableName, Pause>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    length: Duration,
    next_at: Instant,
    /// It was let go on; if it is parked again, that was too early.
    went_on: bool,
}

impl Pauses {
    /// The parked tables that are to be looked at now; those that are live are forgotten.
    fn due(&mut self, tables: &[TableState], now: Instant) -> Vec<TableState> {
        let lives = |name: &TableName| {
            let mut of = tables.iter().filter(|table| table.source == *name);
            of.any(|table| table.state != State::Live)
        };
        self.tables.retain(|name, _| lives(name));
        let parked = tables.iter().filter(|table| is_parked(table));
        let mut due = Vec::new();
        for table in parked {
            let pause = self.tables.entry(table.source.clone()).or_insert(Pause {
                length: PAUSE_MIN,
                next_at: now,
                went_on: false,
            });
            if pause.went_on {
                *pause = Pause {
                    length: (pause.length * 2).min(PAUSE_MAX),
                    next_at: now + pause.length,
                    went_on: false,
                };
            }
            if pause.next_at <= now {
                due.push(table.clone());
            }
        }
        due
    }

    fn went_on(&mut self, table: &TableName) {
        if let Some(pause) = self.tables.get_mut(table) {
            pause.went_on = true;
        }
    }
}

/// Whether somebody's lock is why the table is out of main. Pure.
fn is_parked(table: &TableState) -> bool {
    table.state == State::Parked && !swap::is_out_for_exchange(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(error: &str) -> TableState {
        let name = TableName::new("public", "t");
        TableState {
            state: State::Parked,
            error: Some(error.to_owned()),
            ..TableState::wanted(name.clone(), name, None)
        }
    }

    #[test]
    fn a_table_that_is_locked_each_time_is_left_alone_for_longer() {
        let (mut pauses, table) = (Pauses::default(), parked("locked"));
        let tables = [table.clone()];
        let now = Instant::now();
        assert_eq!(pauses.due(&tables, now).len(), 1);
        // Looked at again and again while the lock is held.
        assert_eq!(pauses.due(&tables, now).len(), 1);
        pauses.went_on(&table.source);
        assert!(pauses.due(&tables, now).is_empty());
        assert_eq!(pauses.due(&tables, now + PAUSE_MIN).len(), 1);
        pauses.went_on(&table.source);
        assert!(pauses.due(&tables, now + PAUSE_MIN).is_empty());
        assert!(pauses.due(&tables, now + PAUSE_MIN * 2).is_empty());
        assert_eq!(pauses.due(&tables, now + PAUSE_MIN * 3).len(), 1);
        let live = TableState {
            state: State::Live,
            ..table.clone()
        };
        pauses.due(&[live], now);
        assert_eq!(pauses.due(&tables, now).len(), 1);
    }

    #[test]
    fn what_is_out_for_an_exchange_is_not_ours() {
        let mut pauses = Pauses::default();
        let tables = [parked(swap::EXCHANGED)];
        assert!(pauses.due(&tables, Instant::now()).is_empty());
    }
}
