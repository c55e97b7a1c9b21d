//! `PUT /v1/mirrors/{name}/tables`: the whole list of mappings of a mirror that exists.
//!
//! What is new or changed is examined as at create; what stays is not, so that a table in
//! trouble does not keep others from leaving or coming. A refused list changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::{
    LogLevel, Mirror, NewMirrorTable, OnExistingRows, SchemaChanges, TableChanges,
};
use bunny_postgres::TableName;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::create::{Peers, other_mirrors};
use super::request::{CreateRequest, mappings};
use super::when;
use crate::answer::{Accepted, Either, Under};
use crate::auth::Caller;
use crate::mirror_validation::{self, Edge, Facts, Findings};
use crate::refusal::{Refusal, Result};
use crate::request::{Fields, ListBody, Path};
use crate::state::Api;

/// What a list of mappings changes; nothing is under way.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TableListAnswer")]
pub(crate) struct Answered {
    message: String,
    #[serde(flatten)]
    lists: Lists,
}

/// What a list of mappings changes, and the command that does it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TableListAccepted")]
pub(crate) struct Asked {
    message: String,
    /// See GET /v1/mirrors/{name}/commands/{id}.
    command_id: Uuid,
    #[serde(flatten)]
    lists: Lists,
}

/// Source names of tables, and what should be known.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Lists {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
    warnings: Vec<String>,
}

impl Lists {
    fn of(changes: &TableChanges, warnings: Vec<String>) -> Self {
        Self {
            added: names(&changes.added),
            removed: names(&changes.removed),
            changed: names(&changes.changed),
            warnings,
        }
    }
}

/// 202 and the command to watch, or 200 if the list is what the mirror has.
pub(crate) async fn set_tables(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    ListBody(fields): ListBody,
) -> Result<Either<Accepted<Asked>, Json<Answered>>> {
    let (tables, dry_run) = read_tables(fields)?;
    let mirror = api.catalog.get_mirror(&name).await?;
    let changes = TableChanges::between(&mirror.tables, &tables);
    if let Some(why) = mirror.taken_from_attached(&tables) {
        return Err(Refusal::conflict(why));
    }
    if let (Some(owner), false) = (&mirror.owner, changes.is_empty()) {
        return Err(Refusal::conflict(format!(
            "mirror '{name}' is fed by mirror '{}' and its tables cannot be changed in this version; delete it and attach it again with the tables it is to have",
            owner.name
        )));
    }
    let warnings = examine(&api, &mirror, &tables, &changes).await?;
    if dry_run || changes.is_empty() {
        let message = match changes.is_empty() {
            true => format!("The tables of mirror '{name}' are as asked for; nothing changes"),
            false => format!("The tables of mirror '{name}' can be changed; nothing was"),
        };
        let lists = Lists::of(&changes, warnings);
        return Ok(Either::That(Json(Answered { message, lists })));
    }
    let (changes, command_id) = api
        .catalog
        .set_tables(&name, &tables, &caller.username)
        .await?;
    write_log(&api, &mirror, &changes, &warnings).await;
    let (are, when) = when(&mirror, "are being", "will be");
    let message = format!("The tables of mirror '{name}' {are} changed{when}");
    let lists = Lists::of(&changes, warnings);
    Ok(match command_id {
        Some(command_id) => Either::This(Under(Asked {
            message,
            command_id,
            lists,
        })),
        // Someone else has asked for the same in between.
        None => Either::That(Json(Answered { message, lists })),
    })
}

/// The mappings, and whether only to validate them.
pub(crate) fn read_tables(mut fields: Fields) -> Result<(Vec<NewMirrorTable>, bool)> {
    let tables = mappings(&mut fields);
    let dry_run = fields.boolean("dry_run", false);
    fields.finish()?;
    Ok((tables, dry_run))
}

fn names(tables: &[TableName]) -> Vec<String> {
    tables.iter().map(TableName::to_string).collect()
}

/// Refuses what cannot be done; gives what should be known.
async fn examine(
    api: &Api,
    mirror: &Mirror,
    tables: &[NewMirrorTable],
    changes: &TableChanges,
) -> Result<Vec<String>> {
    let whole = request(mirror, tables.to_vec());
    refuse(&mirror_validation::check_request(&whole))?;
    refuse(&rows_kept(mirror, tables, changes))?;
    let touched: BTreeSet<&TableName> = changes.added.iter().chain(&changes.changed).collect();
    if touched.is_empty() {
        return Ok(Vec::new());
    }
    let peers = Peers::of(api, &whole).await?;
    let (facts, edges) = tokio::join!(
        Facts::gather(&whole, &peers.source, &peers.destination),
        other_mirrors(api, &peers),
    );
    let (facts, edges) = (facts?, edges?);
    let mut findings = Findings::default();
    mirror_validation::check_partitions(&facts.source, &mut findings);
    let is_touched: Vec<bool> = tables
        .iter()
        .map(|table| touched.contains(&table.source))
        .collect();
    let facts = of_touched(facts, mirror, &whole, &is_touched);
    let kept = |edge: &Edge| {
        edge.mirror != mirror.name
            || tables.iter().any(|table| {
                table.source == edge.source.1
                    && table.destination == edge.destination.1
                    && !touched.contains(&table.source)
            })
    };
    let edges: Vec<Edge> = edges.into_iter().filter(kept).collect();
    let wanted = tables.iter().zip(&is_touched);
    let of_touched: Vec<NewMirrorTable> = wanted
        .filter(|(_, touched)| **touched)
        .map(|(table, _)| table.clone())
        .collect();
    let found = mirror_validation::check(&request(mirror, of_touched), &facts, &edges);
    for problem in found.problems {
        if !findings.problems.contains(&problem) {
            findings.problems.push(problem);
        }
    }
    findings.warnings.extend(found.warnings);
    refuse(&findings)?;
    Ok(findings.warnings)
}

/// A table that has others' rows among its own cannot be emptied and loaded again.
fn rows_kept(mirror: &Mirror, tables: &[NewMirrorTable], changes: &TableChanges) -> Findings {
    let mut findings = Findings::default();
    if mirror.config.on_existing_rows != OnExistingRows::Upsert {
        return findings;
    }
    let stays = |table: &&NewMirrorTable| {
        changes.changed.contains(&table.source)
            && mirror
                .tables
                .iter()
                .any(|ours| ours.source == table.source && ours.destination == table.destination)
    };
    for table in tables.iter().filter(stays) {
        findings.refuse(
            "rows_kept",
            format!(
                "other columns of {0} mean that {1} is emptied and loaded again, but with \"on_existing_rows\": \"upsert\" it may hold rows that are not this mirror's; take the table out of the mirror first and then add it again, which merges it anew",
                table.source, table.destination
            ),
        );
    }
    findings
}

fn refuse(findings: &Findings) -> Result<()> {
    findings.refusal().map_or(Ok(()), Err)
}

/// The facts of the touched tables alone, as they are for a mirror that runs: its slot and
/// sender are there, and its own tables hold its own rows.
fn of_touched(
    mut facts: Facts,
    mirror: &Mirror,
    whole: &CreateRequest,
    is_touched: &[bool],
) -> Facts {
    facts.source.info_mut().slots_free += 1;
    facts.source.info_mut().senders_free += 1;
    let may_extend = mirror.config.schema_changes != SchemaChanges::Manual;
    for (table, found) in whole.tables.iter().zip(&mut facts.destination.tables) {
        let is_ours = mirror
            .tables
            .iter()
            .any(|ours| ours.source == table.source && ours.destination == table.destination);
        if let (true, Some(found)) = (is_ours, &mut found.found) {
            found.has_rows = false;
            found.is_ours = true;
            if may_extend {
                // Columns it lacks are added before it is loaded again.
                found.definition = None;
            }
        }
    }
    let mut touched = is_touched.iter();
    facts
        .source
        .tables
        .retain(|_| *touched.next().unwrap_or(&false));
    let mut touched = is_touched.iter();
    facts
        .destination
        .tables
        .retain(|_| *touched.next().unwrap_or(&false));
    facts
}

/// The mirror as if it were created with these tables.
fn request(mirror: &Mirror, tables: Vec<NewMirrorTable>) -> CreateRequest {
    CreateRequest {
        name: mirror.name.clone(),
        attach: None,
        source_peer: mirror.source_peer.clone(),
        destination_peer: mirror.destination_peer.clone(),
        config: mirror.config.clone(),
        tables,
        replication_slot_name: None,
        publication_name: mirror
            .publication_given
            .then(|| mirror.publication_name.clone()),
        adopt: false,
        dry_run: false,
    }
}

async fn write_log(api: &Api, mirror: &Mirror, changes: &TableChanges, warnings: &[String]) {
    let message = "the tables of the mirror are being changed";
    let details = json!({
        "added": names(&changes.added), "removed": names(&changes.removed),
        "changed": names(&changes.changed),
    });
    let mut entries = vec![(LogLevel::Info, message, details)];
    entries.extend(
        warnings
            .iter()
            .map(|text| (LogLevel::Warn, text.as_str(), json!({}))),
    );
    for (level, message, details) in entries {
        if let Err(error) = api.catalog.log(mirror.id, level, message, details).await {
            tracing::warn!(mirror = %mirror.name, %error, "the mirror's log could not be written");
            return;
        }
    }
}
