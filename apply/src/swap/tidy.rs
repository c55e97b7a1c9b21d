//! Drops what is beside tables and is not wanted there any more.
//!
//! A DROP waits for everyone who has the table open, a dump of the whole database among
//! them. So nothing that starts or leads a run drops anything: it lets the row go
//! ([`let_go`]), and this drops the table beside main, with a bounded wait, as often as it
//! takes.
//!
//! On failure: what the database refuses, a lock that someone holds above all, is tried again
//! with growing pauses and said among the mirror's messages; every other error ends the run.
//! What is not dropped when a run ends is found by the next one, or goes with the mirror.

use std::time::Duration;

use bunny_postgres::TableName;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{begin, commit, ledger_of};
use crate::bookkeeping::{self, State, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::waits::Task;

/// How often it is looked for something to drop.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pauses while something cannot be dropped: the first one, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Forgets what was loaded beside a table, in the caller's transaction: all that is left is a
/// row under the name of what is to be dropped, so that something else can be wanted of the
/// table meanwhile.
pub(crate) async fn let_go(client: &Client, mirror_id: Uuid, beside: &TableState) -> Result<()> {
    let ledger = ledger_of(mirror_id);
    bookkeeping::remove_table(client, ledger, &beside.source).await?;
    bookkeeping::put_table(client, ledger, &left(&beside.destination)).await
}

fn left(beside: &TableName) -> TableState {
    TableState {
        state: State::Removing,
        ..TableState::wanted(beside.clone(), beside.clone(), None)
    }
}

/// Wants something beside a table, in the caller's transaction. Whatever stands there still is
/// dropped when that begins.
pub(crate) async fn put(client: &Client, mirror_id: Uuid, beside: &TableState) -> Result<()> {
    let ledger = ledger_of(mirror_id);
    bookkeeping::remove_table(client, ledger, &beside.destination).await?;
    bookkeeping::put_table(client, ledger, beside).await
}

/// Forgets and drops all that a mirror loads beside its tables, in the caller's transaction.
pub(crate) async fn forget_all(client: &Client, mirror_id: Uuid) -> Result<()> {
    for table in bookkeeping::tables(client, ledger_of(mirror_id)).await? {
        drop_table(client, &table.destination).await?;
        bookkeeping::remove_table(client, ledger_of(mirror_id), &table.source).await?;
    }
    Ok(())
}

/// The statement that drops the same by hand. Pure.
pub(crate) fn dropping_by_hand(mirror_id: Uuid) -> String {
    format!(
        "DO $$DECLARE beside record; BEGIN FOR beside IN SELECT dest_schema, dest_table FROM _bunny.tables WHERE mirror_id = '{}' LOOP EXECUTE format('DROP TABLE IF EXISTS %I.%I', beside.dest_schema, beside.dest_table); END LOOP; END$$;",
        ledger_of(mirror_id)
    )
}

/// Drops what is let go and what failed swaps have left, until an error that ends the run.
/// `run` is that of what is beside.
pub(crate) async fn tidy(run: MirrorRun) -> Result<()> {
    let session = run.connect().await?;
    let mut pause = PAUSE_MIN;
    loop {
        match drop_left(&run, &session).await? {
            None => {
                run.waits.over(Task::Tidy);
                pause = PAUSE_MIN;
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Some(error) => {
                tracing::info!(mirror = %run.mirror.name, %error, "a table beside another is dropped later");
                run.waits.met(Task::Tidy, &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Drops what can be dropped now; gives the last answer of the database that kept it from it.
async fn drop_left(run: &MirrorRun, client: &Client) -> Result<Option<Error>> {
    let rows = client
        .query(
            "SELECT source_schema, source_table, dest_schema, dest_table, state FROM _bunny.tables
             WHERE mirror_id = $1
               AND (state = 'REMOVING' OR state = 'ERRORED'
                    AND to_regclass(format('%I.%I', dest_schema, dest_table)) IS NOT NULL)",
            &[&run.ledger],
        )
        .await
        .map_err(Error::sql("looking for what swaps left"))?;
    let mut refused = None;
    for row in rows {
        let name = |at: usize| TableName::new(row.get::<_, &str>(at), row.get::<_, &str>(at + 1));
        let is_failed = row.get::<_, &str>(4) == State::Errored.as_str();
        begin(run, client).await?;
        match drop_table(client, &name(2)).await {
            Ok(()) => {
                // That of a failed swap stays: it says that the request is done with, and why.
                if !is_failed {
                    bookkeeping::remove_table(client, run.ledger, &name(0)).await?;
                }
                reached(crash_points::BESIDE_DROPPED);
                commit(client).await?;
            }
            Err(error) if error.sqlstate().is_some() => {
                client
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(Error::sql("leaving a table beside another for later"))?;
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

async fn drop_table(client: &Client, table: &TableName) -> Result<()> {
    client
        .batch_execute(&format!("DROP TABLE IF EXISTS {}", table.quoted()))
        .await
        .map_err(Error::sql(format!("dropping {table}")))
}
