//! Apply's part of `adopt`: it tells the catalog which copies the destination holds, so that
//! these are what is asked for from now on, and nothing is loaded again.
//!
//! A copy counts if the log knows it in the generation it is of, and if it carries the columns
//! that the mapping says. A table without one is copied as if it were new.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bunny_catalog::{
    AdoptedTable, Command, Finished, FoundLog, Mirror, MirrorContext, MirrorTable,
};
use bunny_postgres::TableDefinition;
use bunny_schemas::control::SyncRecord;
use uuid::Uuid;

use crate::bookkeeping::{self, Progress, TableState};
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::last_wish;
use crate::mirror::{Shared, connect_to_take_over};

const POLL: Duration = Duration::from_millis(300);

pub(crate) async fn read_destination(
    shared: &Shared,
    mirror: &Mirror,
    context: &MirrorContext,
    command: Command,
) -> Result<Finished> {
    let catalog = &context.catalog;
    let Some((command, log)) = log_of(context, command).await? else {
        return Ok(Finished::Idle);
    };
    let session = connect_to_take_over(mirror, context).await?;
    bookkeeping::install(&session).await?;
    // Nobody changes it while it is read.
    bookkeeping::take_over(&session, mirror).await?;
    let client: &tokio_postgres::Client = &session;
    let progress = bookkeeping::progress(client, mirror.id).await?;
    if let Some(why) = not_of_log(progress.as_ref(), log) {
        catalog.fail_command(command.id, &why).await?;
        return Err(Error::History(why));
    }
    let present = bookkeeping::tables(client, mirror.id).await?;
    let positions = last_wish::positions_if_any(shared, mirror).await?;
    let found = Found {
        present: &present,
        syncs: &positions.syncs,
        generation: log.generation,
        is_copied: mirror.config.do_initial_snapshot,
    };
    let tables: Vec<AdoptedTable> = mirror.tables.iter().map(|table| found.of(table)).collect();
    let here = bookkeeping::last_wish(&session, mirror.id).await?;
    let wishes: Vec<Uuid> = log.wish.into_iter().chain(here).collect();
    let outcome = found.outcome(&mirror.tables, &tables);
    tracing::info!(mirror = %mirror.name, outcome, "adopting what the destination holds");
    reached(crash_points::COPIES_FOUND);
    catalog
        .finish_adopt(
            mirror.id,
            &command,
            log,
            &tables,
            &wishes,
            outcome.as_deref(),
        )
        .await?;
    Ok(Finished::Idle)
}

/// What capture has found; `None` once the command has ended without it.
async fn log_of(
    context: &MirrorContext,
    mut command: Command,
) -> Result<Option<(Command, FoundLog)>> {
    while command.state.is_open() {
        if let Some(log) = FoundLog::of(&command) {
            return Ok(Some((command, log)));
        }
        tokio::time::sleep(POLL).await;
        command = context.catalog.get_command(command.id).await?;
    }
    Ok(None)
}

/// Why the destination does not go on from this log. Pure.
fn not_of_log(progress: Option<&Progress>, log: FoundLog) -> Option<String> {
    let applied = progress.filter(|progress| progress.generation != log.generation)?;
    Some(format!(
        "the destination has applied generation {}, and the log is of generation {}: they do not go on from each other, and nothing was adopted; resync the mirror to start a new generation",
        applied.generation, log.generation
    ))
}

struct Found<'a> {
    present: &'a [TableState],
    syncs: &'a HashMap<Uuid, SyncRecord>,
    generation: Uuid,
    /// Tables without a copy get one.
    is_copied: bool,
}

impl Found<'_> {
    fn of(&self, mapping: &MirrorTable) -> AdoptedTable {
        let mut present = self.present.iter();
        let held = present.find(|table| table.source == mapping.source);
        match held.filter(|table| self.counts(mapping, table)) {
            Some(table) => AdoptedTable {
                source: mapping.source.clone(),
                request_id: table.request_id,
                retry_id: table.retry_id,
            },
            None => AdoptedTable {
                source: mapping.source.clone(),
                request_id: self.is_copied.then(Uuid::new_v4),
                retry_id: None,
            },
        }
    }

    fn counts(&self, mapping: &MirrorTable, table: &TableState) -> bool {
        let is_in_log = match table.request_id {
            Some(request) => {
                let sync = self.syncs.get(&request);
                sync.is_some_and(|sync| sync.generation == self.generation)
            }
            // It only follows changes, from where the mirror began to.
            None => table.generation == Some(self.generation),
        };
        is_in_log && table.destination == mapping.destination && carries(table, mapping)
    }

    /// What is not as it was, for whoever asked. Pure.
    fn outcome(&self, mappings: &[MirrorTable], adopted: &[AdoptedTable]) -> Option<String> {
        let is_held = |table: &&AdoptedTable| {
            let mut present = self.present.iter();
            present.any(|held| held.source == table.source && held.request_id == table.request_id)
        };
        let anew = adopted.iter().filter(|table| !is_held(table));
        let anew: Vec<String> = anew.map(|table| table.source.to_string()).collect();
        let is_mapped = |held: &&TableState| mappings.iter().any(|m| m.source == held.source);
        let left = self.present.iter().filter(|held| !is_mapped(held));
        let left: Vec<String> = left.map(|held| held.source.to_string()).collect();
        let mut sentences = Vec::new();
        if !anew.is_empty() {
            sentences.push(format!(
                "copied anew, for no copy of them counts: {}",
                anew.join(", ")
            ));
        }
        if !left.is_empty() {
            sentences.push(format!(
                "not mapped, so not followed any more, though the destination holds them: {}",
                left.join(", ")
            ));
        }
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }
}

/// Whether the copy left behind just what the mapping excludes. Pure.
fn carries(table: &TableState, mapping: &MirrorTable) -> bool {
    let definition = table.definition.clone();
    let definition =
        definition.and_then(|json| serde_json::from_value::<TableDefinition>(json).ok());
    let Some(definition) = definition else {
        // Without one, nothing was copied.
        return table.request_id.is_none();
    };
    let columns = definition.columns.iter();
    let columns = columns.filter(|column| column.generated.is_none());
    let names: BTreeSet<&String> = columns.map(|column| &column.name).collect();
    let left_behind = names.iter().filter(|name| !table.columns.contains(name));
    let excluded = names
        .iter()
        .filter(|name| mapping.exclude_columns.contains(name));
    left_behind.eq(excluded)
}

#[cfg(test)]
mod tests;
