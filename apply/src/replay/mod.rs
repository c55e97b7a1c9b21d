//! Replays: a table is loaded again from a sync that lies in the topic already, and follows
//! the log from there.
//!
//! To this crate a replay is a table sync like any other, under the request that the wish
//! names: reading the snapshot topic, the records of the retained sync are taken for records
//! of that request (`aliases`), and every other step is the one that every sync takes. The
//! source has no part in it.
//!
//! A wish is looked at before its table leaves main ([`admit`]): what the topics do not
//! hold is refused then, and the table stays as it is. From the transaction on that takes it
//! out of main, its `restart_offset` keeps what it needs. By swap it is loaded beside the
//! table instead (`swap`), whose rows are only exchanged: docs/adr/0033-replay-by-swap.md.

mod bound;
mod ends;
mod pace;

use std::collections::HashMap;

use bunny_catalog::{Mirror, MirrorContext, MirrorTable, Replay};
use bunny_postgres::{
    ColumnDefinition, Session, TableDefinition, TableName, introspect, quote_ident,
};
use bunny_schemas::retained::Retained;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::bookkeeping::{self, TableState};
use crate::error::{Error, Result};
use crate::mirror::Shared;
use crate::retention;
use crate::schema_change::shape;
use crate::swap;

pub use bound::Bound;
pub(crate) use bound::next_round;
pub(crate) use ends::Ends;
pub(crate) use pace::Pace;

/// Refuses the wishes that cannot be carried out, for good, and what was asked for together with
/// them: then there is another mirror to run. Those that have begun are not looked at again: they
/// hold on to what they need.
///
/// # Errors
/// [`Error::Cancelled`] if any was refused.
pub(crate) async fn admit(
    shared: &Shared,
    mirror: &Mirror,
    context: &MirrorContext,
    session: &Session,
) -> Result<()> {
    let client: &Client = session;
    let mut present = bookkeeping::tables(client, mirror.id).await?;
    present.extend(bookkeeping::tables(client, swap::ledger_of(mirror.id)).await?);
    let not_begun = not_begun_of(&mirror.tables, &present);
    if not_begun.is_empty() {
        return Ok(());
    }
    let slug = mirror.topics_slug();
    let mut retained = Retained::read(&shared.kafka, &shared.topics, slug).await?;
    // Only this owner of the destination could raise its floor.
    let floor = retention::floor(client, mirror.id, mirror.generation).await?;
    let given_up = context.catalog.log_given_up(mirror).await?;
    retained.changes.0 = retained.changes.0.max(floor).max(given_up);
    let mut refused = Vec::new();
    for table in &mirror.tables {
        let wish = table.replay.as_ref();
        let Some(replay) = wish.filter(|replay| not_begun.contains(&replay.request_id)) else {
            continue;
        };
        if is_held(replay, &retained, mirror.generation) {
            continue;
        }
        let why = format!(
            "table {}: its sync of {} is not in the topics any more; nothing was changed. Ask again, or resync the table",
            table.source, replay.of.lsn
        );
        tracing::warn!(mirror = %mirror.name, table = %table.source, "a replay is refused: {why}");
        refused.push((replay.request_id, why));
    }
    if refused.is_empty() {
        return Ok(());
    }
    let catalog = &context.catalog;
    catalog.refuse_replays(mirror, &refused, &not_begun).await?;
    Err(Error::Cancelled)
}

/// The replays that the destination does not know yet. Pure.
fn not_begun_of(tables: &[MirrorTable], present: &[TableState]) -> Vec<Uuid> {
    let has_begun = |table: &MirrorTable, replay: &Replay| {
        let mut of_table = present.iter().filter(|found| found.source == table.source);
        of_table.any(|found| found.request_id == Some(replay.request_id))
    };
    let wishes = tables.iter().filter_map(|table| {
        let replay = table.replay.as_ref()?;
        (!has_begun(table, replay)).then_some(replay.request_id)
    });
    wishes.collect()
}

fn is_held(replay: &Replay, retained: &Retained, generation: Uuid) -> bool {
    retained.syncs.iter().any(|sync| {
        sync.request_id == replay.of.sync
            && sync.attempt == replay.of.attempt
            && sync.generation == generation
            && retained.holds(sync)
    })
}

/// The mirror as the destination is to be: each table with the request it is to hold. Pure.
pub(crate) fn as_wanted(mut mirror: Mirror) -> Mirror {
    for table in &mut mirror.tables {
        table.request_id = table.wanted_request();
    }
    mirror
}

/// From where on the log is needed by what is to be loaded again. Pure.
pub(crate) fn changes_offset(mapping: &MirrorTable) -> Option<i64> {
    mapping
        .replay
        .as_ref()
        .map(|replay| replay.of.changes_offset)
}

fn replay_of(mirror: &Mirror, request_id: Uuid) -> Option<&Replay> {
    let mut replays = mirror
        .tables
        .iter()
        .filter_map(|table| table.replay.as_ref());
    replays.find(|replay| replay.request_id == request_id)
}

/// The request under which capture has published what is loaded for `request_id`. Pure.
pub(crate) fn published_as(mirror: &Mirror, request_id: Uuid) -> Uuid {
    replay_of(mirror, request_id).map_or(request_id, |replay| replay.of.sync)
}

/// For the syncs that are loaded again: what they are published as, and for which of
/// `requests`. Pure.
pub(crate) fn aliases(mirror: &Mirror, requests: &[Uuid]) -> HashMap<Uuid, Uuid> {
    let aliases = requests.iter().filter_map(|request| {
        let replay = replay_of(mirror, *request)?;
        Some((replay.of.sync, *request))
    });
    aliases.collect()
}

/// What has to be undone at a destination table so that it is again as its sync found it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Undo {
    /// In this order.
    statements: Vec<String>,
    /// The columns of the primary key to be made; empty if it is as it was, or none is.
    primary_key: Vec<String>,
}

/// A column of the destination that the mirror has written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ours {
    /// Its number at the source; 0 if not known.
    attnum: i16,
    /// At the destination.
    name: String,
    /// The source's column was last seen to refuse NULL.
    not_null: bool,
}

/// What to undo: columns that came later and are ours go, renamed ones get their names
/// back, what was nullable is again, and so is the primary key where the mirror has followed
/// another (`key_followed`). Pure.
fn undo(
    then: &TableDefinition,
    now: &TableDefinition,
    ours: &[Ours],
    key_followed: bool,
    destination: &TableName,
) -> Undo {
    let table = destination.quoted();
    let mut undo = Undo::default();
    let is_now = |name: &str| now.columns.iter().any(|column| column.name == name);
    let mut renamed: Vec<(&str, &ColumnDefinition)> = Vec::new();
    for column in &then.columns {
        let by_number = |ours: &&Ours| {
            ours.attnum != 0
                && ours.attnum == column.attnum
                && ours.name != column.name
                && is_now(&ours.name)
        };
        let Some(found) = ours.iter().find(by_number) else {
            continue;
        };
        if then.column(&found.name).is_none() && !is_now(&column.name) {
            renamed.push((&found.name, column));
        }
    }
    for (name, column) in &renamed {
        undo.statements.push(format!(
            "ALTER TABLE {table} RENAME COLUMN {} TO {}",
            quote_ident(name),
            quote_ident(&column.name)
        ));
    }
    let then_of = |name: &str| {
        let renamed = renamed.iter().find(|(now, _)| *now == name);
        renamed
            .map(|(_, column)| *column)
            .or_else(|| then.column(name))
    };
    let key_now: Vec<&str> = now
        .primary_key
        .iter()
        .map(|name| then_of(name).map_or(name.as_str(), |column| column.name.as_str()))
        .collect();
    if key_followed && key_now != then.primary_key {
        let drop = now
            .primary_key_name
            .iter()
            .map(|name| format!("ALTER TABLE {table} DROP CONSTRAINT {}", quote_ident(name)));
        undo.statements.extend(drop);
        undo.primary_key.clone_from(&then.primary_key);
    }
    let is_ours = |name: &str| ours.iter().any(|ours| ours.name == name);
    let refuses_null = |name: &str| ours.iter().any(|ours| ours.name == name && ours.not_null);
    for column in &now.columns {
        match then_of(&column.name) {
            Some(was) if column.not_null && !was.not_null && refuses_null(&column.name) => {
                undo.statements.push(format!(
                    "ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL",
                    quote_ident(&was.name)
                ))
            }
            Some(_) => {}
            None if is_ours(&column.name) => {
                undo.statements.push(format!(
                    "ALTER TABLE {table} DROP COLUMN {}",
                    quote_ident(&column.name)
                ));
            }
            None => {}
        }
    }
    undo
}

/// Takes back what has been done to a table of ours since the sync that is loaded again, in
/// the transaction that begins it: at `destination`, which is the table itself or was made
/// like it. Gives the primary key that is to be made once that is empty and has its columns.
pub(crate) async fn take_back(
    client: &Client,
    mirror_id: Uuid,
    table: &TableState,
    destination: &TableName,
    then: &TableDefinition,
) -> Result<Vec<String>> {
    let Some(now) = introspect::table_definition(client, destination).await? else {
        return Ok(Vec::new());
    };
    let synced = shape::Shape::of_sync(table).unwrap_or_default();
    let followed = shape::load_any(client, mirror_id, &table.source)
        .await?
        .unwrap_or_default();
    let ours = ours(&followed, &synced);
    let key_then: Option<Vec<i16>> = then
        .primary_key
        .iter()
        .map(|name| Some(then.column(name)?.attnum))
        .collect();
    let key_followed = followed.primary_key.is_some() && followed.primary_key != key_then;
    let undo = undo(then, &now, &ours, key_followed, destination);
    for statement in &undo.statements {
        client
            .batch_execute(statement)
            .await
            .map_err(Error::sql(format!(
                "bringing destination table {destination} back to what it was when its sync was taken ({statement})"
            )))?;
    }
    Ok(undo.primary_key)
}

/// Makes the primary key that [`take_back`] asked for. The table is empty.
pub(crate) async fn make_key(client: &Client, table: &TableName, key: &[String]) -> Result<()> {
    if key.is_empty() {
        return Ok(());
    }
    let columns: Vec<String> = key.iter().map(|column| quote_ident(column)).collect();
    let sql = format!(
        "ALTER TABLE {} ADD PRIMARY KEY ({})",
        table.quoted(),
        columns.join(", ")
    );
    client
        .batch_execute(&sql)
        .await
        .map_err(Error::sql(format!("making the primary key of {table}")))
}

/// The destination's columns that the mirror has written so far: those of the former sync,
/// and those that the stream has brought since. Pure.
fn ours(followed: &shape::Shape, synced: &shape::Shape) -> Vec<Ours> {
    let known = followed.columns.iter().chain(&synced.columns);
    let ours = known.filter_map(|known| {
        Some(Ours {
            attnum: known.attnum,
            name: known.into.clone()?,
            not_null: known.not_null,
        })
    });
    let abandoned = followed.abandoned.iter().map(|name| Ours {
        attnum: 0,
        name: name.clone(),
        not_null: false,
    });
    ours.chain(abandoned).collect()
}

#[cfg(test)]
mod tests;
