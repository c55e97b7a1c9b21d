//! What waits for a paused mirror to be resumed, in words.

use bunny_postgres::TableName;

use crate::commands::Command;
use crate::mirrors::Mirror;
use crate::replay::{REPLAY, Until};
use crate::reports::Reports;
use crate::schema_sync::SYNC_SCHEMA;
use crate::tables::{AwaitedTable, RESYNC, TABLES};

/// So many tables are named.
const NAMED_MAX: usize = 10;

/// A sentence for each moment that tables of a paused mirror stand at, and for each command
/// that apply has to carry out. `commands` are the unfinished ones.
pub(super) fn messages(mirror: &Mirror, reports: &Reports, commands: &[Command]) -> Vec<String> {
    let mut messages = standing(mirror, reports, commands);
    let waits = |command: &&Command| {
        [RESYNC, TABLES, REPLAY, SYNC_SCHEMA].contains(&command.kind.as_str())
            && command.state.is_open()
    };
    for command in commands.iter().filter(waits) {
        messages.push(format!(
            "the {} that {} has asked for (command {}) waits, for the mirror is paused: POST /v1/mirrors/{}/resume lets it go on",
            command.kind, command.requested_by, command.id, mirror.name
        ));
    }
    messages
}

/// The tables that a replay has left where it was to go.
fn standing(mirror: &Mirror, reports: &Reports, commands: &[Command]) -> Vec<String> {
    let report = reports.apply.report.as_ref();
    let has_failed = |source: &TableName| {
        let mut tables = report.into_iter().flat_map(|report| &report.tables);
        tables.any(|table| table.source == *source && table.state == "ERRORED")
    };
    let on_the_way: Vec<AwaitedTable> = commands
        .iter()
        .filter(|command| command.kind == REPLAY && command.state.is_open())
        .flat_map(AwaitedTable::of)
        .collect();
    let mut moments: Vec<(Until, Vec<&TableName>)> = Vec::new();
    for table in &mirror.tables {
        let Some((until, replay)) = table.replay.as_ref().and_then(|r| Some((r.until?, r))) else {
            continue;
        };
        let is_awaited = |awaited: &AwaitedTable| awaited.request_id == Some(replay.request_id);
        if on_the_way.iter().any(is_awaited) || has_failed(&table.source) {
            continue;
        }
        match moments.iter_mut().find(|(moment, _)| *moment == until) {
            Some((_, tables)) => tables.push(&table.source),
            None => moments.push((until, vec![&table.source])),
        }
    }
    moments
        .into_iter()
        .map(|(until, tables)| {
            let who = match tables.len() == mirror.tables.len() {
                true => "all tables stand".to_owned(),
                false => named(&tables),
            };
            format!(
                "{who} where the replay was to end, {}: POST /v1/mirrors/{}/resume lets them go on from there",
                until.in_words(),
                mirror.name
            )
        })
        .collect()
}

fn named(tables: &[&TableName]) -> String {
    let names: Vec<String> = tables
        .iter()
        .take(NAMED_MAX)
        .map(|table| table.to_string())
        .collect();
    let names = names.join(", ");
    match tables.len() {
        1 => format!("table {names} stands"),
        many if many > NAMED_MAX => format!("tables {names} and {} more stand", many - NAMED_MAX),
        _ => format!("tables {names} stand"),
    }
}
