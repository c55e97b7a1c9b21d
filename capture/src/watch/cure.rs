//! What is done about changes outside the stream: a sync of the table is asked for, or
//! someone is told to.

use std::collections::BTreeSet;

use bunny_catalog::{
    LogLevel, Mirror, MirrorTable, OnExistingRows, ResyncStrategy, SchemaChanges, UntrackedChange,
    UntrackedChanges,
};
use bunny_postgres::TableName;
use serde_json::json;

use super::Pending;
use super::facts::Judged;
use super::untracked::{Found, Untracked};
use crate::crash_points::{UNTRACKED_FOUND, UNTRACKED_REQUESTED, crash_point};
use crate::run::Run;

/// What a table needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cure {
    /// A sync, now.
    Sync(ResyncStrategy),
    /// Someone has to decide, for this reason.
    Say(&'static str),
}

/// Sees to what was found. A table whose sync has not finished needs nothing: the sync is
/// begun after this. Returns the tables that nothing could be done about yet.
pub(super) async fn cure(
    run: &Run,
    judged: &mut [(&MirrorTable, Judged)],
    found: Found,
    pending: &Pending,
) -> BTreeSet<TableName> {
    let mirror = &run.mirror;
    let mut held_back = found.undecided;
    let mut wanted = Vec::new();
    for (table, judged) in judged {
        let name = &table.source;
        let Some(untracked) = found.untracked.get(name) else {
            continue;
        };
        if judged.gap.is_some() || pending.contains(name) || held_back.contains(name) {
            continue;
        }
        let reason = format!(
            "the source table {name} {}, which no change event carries",
            untracked.said()
        );
        match cure_of(mirror, table, untracked) {
            Cure::Sync(strategy) => wanted.push(UntrackedChange {
                table: name.clone(),
                request_id: table.request_id,
                strategy,
                reason,
            }),
            Cure::Say(why) => {
                let said = format!("{reason}: {why}");
                let details = json!({ "table": name.to_string() });
                run.context
                    .reporter
                    .log(LogLevel::Warn, said.clone(), details);
                judged.facts.standing = Some(said);
            }
        }
    }
    if wanted.is_empty() {
        return held_back;
    }
    crash_point(UNTRACKED_FOUND);
    let catalog = &run.options.catalog;
    let asked = catalog
        .resync_untracked(&mirror.name, mirror.generation, &wanted)
        .await;
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            tracing::warn!(mirror = %mirror.name, %error, "a sync of tables changed outside the stream is asked for later");
            Vec::new()
        }
    };
    if !asked.is_empty() {
        tracing::info!(mirror = %mirror.name, tables = ?asked, "tables changed outside the stream are synced again");
        crash_point(UNTRACKED_REQUESTED);
    }
    let names = wanted.into_iter().map(|change| change.table);
    held_back.extend(names.filter(|name| !asked.contains(name)));
    held_back
}

/// Pure.
fn cure_of(mirror: &Mirror, table: &MirrorTable, untracked: &Untracked) -> Cure {
    let config = &mirror.config;
    if config.untracked_changes == UntrackedChanges::Warn {
        return Cure::Say("\"untracked_changes\" is \"warn\"; resync the table to bring it over");
    }
    if table.request_id.is_none() {
        return Cure::Say(
            "the mirror only follows changes (\"do_initial_snapshot\": false), and a sync would empty the destination table; resync it if that may be",
        );
    }
    if config.on_existing_rows == OnExistingRows::Upsert {
        return Cure::Say(
            "the destination may hold rows of its own (\"on_existing_rows\": \"upsert\"); resync the table, or delete there what is gone here",
        );
    }
    if table.replay.is_some() {
        return Cure::Say(
            "the table was replayed and is left as it is; resync the table to bring it over",
        );
    }
    if !untracked.is_rewrite() {
        return Cure::Sync(config.resync_strategy);
    }
    if config.schema_changes == SchemaChanges::Manual {
        return Cure::Say(
            "\"schema_changes\" is \"manual\"; alter the destination table as you want it, then resync it",
        );
    }
    // Only a table that is emptied has its columns brought in line.
    Cure::Sync(ResyncStrategy::Truncate)
}
