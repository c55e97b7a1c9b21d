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

/// The tables whose sync has not finished.
pub(super) struct Unfinished {
    /// All of them.
    pub(super) pending: Pending,
    /// Those that are being copied, or about to be.
    pub(super) copying: Pending,
    /// No copy has begun before what was found was looked at.
    pub(super) is_first_look: bool,
}

/// Sees to what was found. Returns the tables that nothing could be done about yet: those are
/// found again.
pub(super) async fn cure(
    run: &Run,
    judged: &mut [(&MirrorTable, Judged)],
    found: Found,
    unfinished: &Unfinished,
) -> BTreeSet<TableName> {
    let mirror = &run.mirror;
    let mut held_back = found.undecided;
    let mut wanted = Vec::new();
    for (table, judged) in judged.iter_mut() {
        let name = &table.source;
        let Some(untracked) = found.untracked.get(name) else {
            continue;
        };
        if judged.gap.is_some() || held_back.contains(name) {
            continue;
        }
        let reason = format!(
            "the source table {name} {}, which no change event carries",
            untracked.said()
        );
        if unfinished.pending.contains(name) {
            // A copy that begins later has it; one under way may not.
            if unfinished.copying.contains(name) && !unfinished.is_first_look {
                judged.waiting = Some(waiting(&reason));
                held_back.insert(name.clone());
            }
            continue;
        }
        match cure_of(mirror, table, untracked) {
            // Both roles begin anew for a sync, and with them every copy under way.
            Cure::Sync(_) if !unfinished.copying.is_empty() => {
                judged.waiting = Some(waiting(&reason));
                held_back.insert(name.clone());
            }
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
    let asked = ask(run, &wanted).await;
    for change in wanted {
        if asked.contains(&change.table) {
            continue;
        }
        let mut judged = judged.iter_mut();
        if let Some((_, judged)) = judged.find(|(table, _)| table.source == change.table) {
            judged.waiting = Some(waiting(&change.reason));
        }
        held_back.insert(change.table);
    }
    held_back
}

fn waiting(reason: &str) -> String {
    format!("{reason}; it is synced again when the copies and commands under way have ended")
}

/// Returns the tables that will be synced.
async fn ask(run: &Run, wanted: &[UntrackedChange]) -> Vec<TableName> {
    let mirror = &run.mirror;
    let catalog = &run.options.catalog;
    let asked = catalog
        .resync_untracked(&mirror.name, mirror.generation, wanted)
        .await;
    match asked {
        Ok(asked) if asked.is_empty() => asked,
        Ok(asked) => {
            tracing::info!(mirror = %mirror.name, tables = ?asked, "tables changed outside the stream are synced again");
            crash_point(UNTRACKED_REQUESTED);
            asked
        }
        Err(error) => {
            tracing::warn!(mirror = %mirror.name, %error, "a sync of tables changed outside the stream is asked for later");
            Vec::new()
        }
    }
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
