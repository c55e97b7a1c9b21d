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

/// What is to be done about what was found.
#[derive(Default)]
pub(super) struct Decided {
    /// Syncs to ask for, which ends the run.
    pub(super) wanted: Vec<UntrackedChange>,
    /// Tables that nothing can be done about yet: those are found again.
    pub(super) held_back: BTreeSet<TableName>,
}

impl Decided {
    /// Tables whose marks are not to be recorded, with those of which no sync is asked for yet.
    pub(super) fn unsettled(&self, asked: &[TableName]) -> BTreeSet<TableName> {
        let wanted = self.wanted.iter().map(|change| &change.table);
        let unasked = wanted.filter(|name| !asked.contains(name));
        self.held_back.iter().chain(unasked).cloned().collect()
    }
}

/// Decides what is to be done, and says what someone else has to do.
pub(super) fn decide(
    run: &Run,
    judged: &mut [(&MirrorTable, Judged)],
    found: Found,
    unfinished: &Unfinished,
) -> Decided {
    let mirror = &run.mirror;
    let mut decided = Decided {
        wanted: Vec::new(),
        held_back: found.undecided,
    };
    for (table, judged) in judged.iter_mut() {
        let name = &table.source;
        let Some(untracked) = found.untracked.get(name) else {
            continue;
        };
        if judged.gap.is_some() || decided.held_back.contains(name) {
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
                decided.held_back.insert(name.clone());
            }
            continue;
        }
        match cure_of(mirror, table, untracked) {
            // Both roles begin anew for a sync, and with them every copy under way.
            Cure::Sync(_) if !unfinished.copying.is_empty() => {
                judged.waiting = Some(waiting(&reason));
                decided.held_back.insert(name.clone());
            }
            Cure::Sync(strategy) => {
                judged.waiting = Some(waiting(&reason));
                decided.wanted.push(UntrackedChange {
                    table: name.clone(),
                    request_id: table.request_id,
                    strategy,
                    reason,
                });
            }
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
    decided
}

fn waiting(reason: &str) -> String {
    format!("{reason}; it is synced again when the copies and commands under way have ended")
}

/// Returns the tables that will be synced.
pub(super) async fn ask(run: &Run, wanted: &[UntrackedChange]) -> Vec<TableName> {
    crash_point(UNTRACKED_FOUND);
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
    match config.schema_changes {
        SchemaChanges::Manual => Cure::Say(
            "\"schema_changes\" is \"manual\"; alter the destination table as you want it, then resync it",
        ),
        // A sync would give the columns their new types, which is more than apply may do then.
        SchemaChanges::Additive if untracked.is_retyped() => Cure::Say(
            "\"schema_changes\": \"additive\" follows no change of a type that rewrites the table; alter the destination table as you want it, then resync it",
        ),
        // Only a table that is emptied has its columns brought in line.
        SchemaChanges::Additive | SchemaChanges::All => Cure::Sync(ResyncStrategy::Truncate),
    }
}
