//! Brings the destination to the source's present schema, as `sync-schema` asks for it.
//!
//! Main holds before it follows the stream, capture hands the source's definitions over
//! with the position they are true at, main follows up to that position and no further, and
//! there every table in main is brought in line (`tables`). So the rows here are those
//! that the source had under these very definitions.
//!
//! - `prepare`: before main follows; `carry_out`: at the position; `finish`: tells the
//!   command, beside main, as soon as the catalog can be reached.
//! - `difference`: what a table lacks beyond what `schema_change::plan` knows. Pure.
//!
//! A crash anywhere leads to the same place again: progress does not pass the position before
//! [`bookkeeping::done`], and a plan is made from what is there. What was run, and what was
//! not, is kept in `_bunny.schema_syncs` until the command says it. A command whose definitions
//! do not come is ended: main must not stand for it for ever.

mod difference;
mod tables;

use std::time::Duration;

use bunny_catalog::{Command, LogLevel, READ, SYNC_SCHEMA, SourceDefinitions, sync_mode};
use bunny_postgres::TableName;
use bunny_schemas::Position;
use bunny_schemas::source_tables::SourceTables;
use serde_json::json;
use tokio::time::Instant;

use crate::bookkeeping::{self, Entry, Progress};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::reader::StopAt;
use crate::stats::Stats;

/// How often the catalog is asked for definitions.
const POLL: Duration = Duration::from_millis(100);
/// How long main holds for them; capture gives up a little earlier, with a better reason.
const PATIENCE: Duration = Duration::from_secs(75);
/// How many sentences of each kind the command's outcome names; its `report` has them all.
const NAMED_MAX: usize = 50;

/// A schema sync whose position is ahead of main.
pub(crate) struct Pending {
    command: Command,
    definitions: SourceDefinitions,
    tables: SourceTables,
}

impl Pending {
    /// Where main is to stop for it.
    pub(crate) fn stop_at(&self) -> StopAt {
        let (commit_lsn, seq) = self.definitions.published;
        StopAt {
            lsn: self.definitions.lsn,
            published: Position { commit_lsn, seq },
        }
    }
}

/// Before main follows from `progress`: waits for the definitions of a schema sync that is
/// asked for. None: there is none, or it has been given up.
pub(crate) async fn prepare(
    run: &MirrorRun,
    stats: &Stats,
    progress: &Progress,
) -> Result<Option<Pending>> {
    let mirror_id = run.mirror_id();
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    let held = bookkeeping::held(client, mirror_id).await?;
    let command = match run.catalog.open_command(mirror_id, SYNC_SCHEMA).await {
        Ok(command) => command,
        // Main has never held for one, so no position was chosen that it must not pass.
        Err(error) if held.is_none() => {
            tracing::info!(mirror = %run.mirror.name, %error, "following without the catalog");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let Some(command) = command else {
        forget(run, client).await?;
        return Ok(None);
    };
    if bookkeeping::is_done(client, mirror_id, command.id).await? {
        return Ok(None);
    }
    begin(run, client).await?;
    bookkeeping::forget_schema_syncs(client, mirror_id, Some(command.id)).await?;
    bookkeeping::hold(client, mirror_id, command.id).await?;
    commit(client).await?;
    reached(crash_points::SCHEMA_SYNC_HELD);
    stats.phase("holding until the source's definitions are read");
    let Some(definitions) = wait_for_definitions(run, &command).await? else {
        forget(run, client).await?;
        return Ok(None);
    };
    if let Some(why) = out_of_place(&definitions, progress) {
        run.catalog.fail_command(command.id, why).await?;
        forget(run, client).await?;
        return Ok(None);
    }
    let tables = serde_json::from_value(definitions.tables.clone()).map_err(|error| {
        Error::Inconsistent(format!(
            "the source's definitions for command {} cannot be read: {error}",
            command.id
        ))
    })?;
    Ok(Some(Pending {
        command,
        definitions,
        tables,
    }))
}

/// Why definitions cannot be used where main stands, if so. Pure.
fn out_of_place(definitions: &SourceDefinitions, progress: &Progress) -> Option<&'static str> {
    if definitions.generation != progress.generation {
        return Some("another generation has begun; its table syncs bring the source's schema");
    }
    (progress.position.commit_lsn >= definitions.lsn)
        .then_some("changes beyond the position of the definitions are applied already; ask again")
}

async fn wait_for_definitions(
    run: &MirrorRun,
    command: &Command,
) -> Result<Option<SourceDefinitions>> {
    let catalog = &run.catalog;
    if !command.steps.iter().any(|step| step == READ) {
        catalog.mark_step(command.id, bunny_catalog::HELD).await?;
    }
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(definitions) = catalog.source_definitions(command.id).await? {
            return Ok(Some(definitions));
        }
        if !catalog.get_command(command.id).await?.state.is_open() {
            return Ok(None);
        }
        if Instant::now() >= give_up_at {
            let why = format!(
                "capture did not read the source's definitions within {} s: is it running? Ask again when the mirror's status says that it is",
                PATIENCE.as_secs()
            );
            if catalog.give_up_definitions(command.id, &why).await? {
                return Ok(None);
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Brings the tables in main in line; main stands at the definitions' position.
pub(crate) async fn carry_out(run: &MirrorRun, stats: &Stats, pending: &Pending) -> Result<()> {
    let command = &pending.command;
    let key = (run.mirror_id(), command.id);
    let mode = sync_mode(command, run.mirror.config.schema_changes);
    tracing::info!(mirror = %run.mirror.name, lsn = %pending.definitions.lsn, "bringing the destination to the source's schema");
    for table in &pending.tables.tables {
        stats.phase(format!(
            "bringing table {} to the source's schema",
            table.name()
        ));
        tables::bring_in_line(run, stats, key, mode, table).await?;
    }
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    begin(run, client).await?;
    for (table, reason) in &pending.tables.unreadable {
        let sentence = format!("its definition cannot be read at the source: {reason}");
        bookkeeping::put_entries(client, key, table, Entry::Left, &[sentence]).await?;
    }
    bookkeeping::done(client, key.0, key.1).await?;
    commit(client).await?;
    reached(crash_points::SCHEMA_SYNC_DONE);
    Ok(())
}

/// The stream comes to another generation before the position: ends the command.
pub(crate) async fn abandon(run: &MirrorRun, pending: &Pending) -> Result<()> {
    let why = "another generation has begun; its table syncs bring the source's schema";
    run.catalog.fail_command(pending.command.id, why).await?;
    Ok(())
}

/// Ends a command whose tables have all had their turn. False: they have not.
pub(crate) async fn finish(run: &MirrorRun, command: &Command) -> Result<bool> {
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    let key = (run.mirror_id(), command.id);
    if !bookkeeping::is_done(client, key.0, key.1).await? {
        return Ok(false);
    }
    let ran = bookkeeping::entries(client, key, Entry::Ran).await?;
    let left = bookkeeping::entries(client, key, Entry::Left).await?;
    let lsn = run
        .catalog
        .source_definitions(command.id)
        .await?
        .map(|definitions| definitions.lsn.to_string());
    say(run, &ran, &left).await?;
    let report = json!({
        "lsn": lsn,
        "ran": ran.iter().map(|(table, sql)| json!({"table": table.to_string(), "statement": sql})).collect::<Vec<_>>(),
        "not_done": left.iter().map(|(table, why)| json!({"table": table.to_string(), "reason": why})).collect::<Vec<_>>(),
    });
    let outcome = outcome(lsn.as_deref(), &ran, &left);
    run.catalog
        .finish_sync_schema(command.id, &outcome, &report)
        .await?;
    reached(crash_points::SCHEMA_SYNC_TOLD);
    forget(run, client).await?;
    Ok(true)
}

/// Every schema sync of the mirror is over.
async fn forget(run: &MirrorRun, client: &tokio_postgres::Client) -> Result<()> {
    begin(run, client).await?;
    bookkeeping::forget_schema_syncs(client, run.mirror_id(), None).await?;
    commit(client).await
}

type Sentences = [(TableName, String)];

/// In the mirror's log. After a crash a sentence may come twice.
async fn say(run: &MirrorRun, ran: &Sentences, left: &Sentences) -> Result<()> {
    let ran = ran.iter().map(|(table, sentence)| {
        let message = format!("schema sync of table {table}: ran {sentence}");
        (LogLevel::Info, table, message)
    });
    let left = left.iter().map(|(table, sentence)| {
        let message = format!("schema sync of table {table}, not done: {sentence}");
        (LogLevel::Warn, table, message)
    });
    for (level, table, message) in ran.chain(left) {
        let details = json!({"table": table.to_string()});
        run.catalog
            .log(run.mirror_id(), level, &message, details)
            .await?;
    }
    Ok(())
}

/// What people read of it. Pure.
fn outcome(lsn: Option<&str>, ran: &Sentences, left: &Sentences) -> String {
    let list = |sentences: &Sentences| {
        let named: Vec<String> = sentences
            .iter()
            .take(NAMED_MAX)
            .map(|(table, sentence)| format!("{table}: {sentence}"))
            .collect();
        let more = match sentences.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more in args.report"),
        };
        format!("{}{more}", named.join("; "))
    };
    let at = lsn.map(|lsn| format!(" at {lsn}")).unwrap_or_default();
    let did = match ran.len() {
        0 => format!("nothing had to be run{at}"),
        count => format!("{count} statements were run{at}: {}", list(ran)),
    };
    match left.len() {
        0 => did,
        count => format!("{did}. {count} things were not done: {}", list(left)),
    }
}

async fn begin(run: &MirrorRun, client: &tokio_postgres::Client) -> Result<()> {
    crate::schema::build::begin(client, run).await
}

async fn commit(client: &tokio_postgres::Client) -> Result<()> {
    crate::schema::build::commit(client).await
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn definitions_are_used_only_before_what_comes_after_them() {
        let generation = Uuid::from_u128(1);
        let definitions = SourceDefinitions {
            generation,
            lsn: Lsn(100),
            published: (Lsn(90), 1),
            tables: json!({}),
        };
        let at = |generation, commit_lsn| Progress {
            generation,
            position: Position { commit_lsn, seq: 1 },
            next_offset: 5,
        };
        assert_eq!(out_of_place(&definitions, &at(generation, Lsn(99))), None);
        assert!(out_of_place(&definitions, &at(generation, Lsn(100))).is_some());
        assert!(out_of_place(&definitions, &at(Uuid::from_u128(2), Lsn(9))).is_some());
    }

    #[test]
    fn an_outcome_says_what_was_done_and_what_was_not() {
        let table = TableName::new("public", "t");
        let one = |text: &str| vec![(table.clone(), text.to_owned())];
        assert_eq!(
            outcome(Some("0/1"), &[], &[]),
            "nothing had to be run at 0/1"
        );
        assert_eq!(
            outcome(None, &one("ALTER"), &one("because")),
            "1 statements were run: public.t: ALTER. 1 things were not done: public.t: because"
        );
    }
}
