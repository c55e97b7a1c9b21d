//! The tables of a mirror that exists: which they are, and syncs of them asked for anew.
//!
//! A wish is a row of `bunny.mirror_tables`: its `request_id` names the table sync that is
//! wanted. Capture publishes a sync it has not finished, apply takes a table whose request
//! is new out of main and loads it; nothing else passes between them. The command only
//! shows how it goes: apply ends it when every table of it has settled.

use std::collections::BTreeMap;

use bunny_postgres::TableName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::adopt::ADOPT;
use crate::commands::{self, Command};
use crate::mirrors::{
    self, Desired, Mirror, MirrorTable, NewMirrorTable, ResyncStrategy, notify, share_request,
};
use crate::replay::REPLAY;
use crate::schema_sync::{SYNC_SCHEMA, under_way};
use crate::{Catalog, Error, Result, last_wish, reports};

/// The command of a changed list of tables.
pub const TABLES: &str = "tables";
/// The command of tables synced anew.
pub const RESYNC: &str = "resync";

/// A table that a command waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedTable {
    /// At the source.
    pub table: TableName,
    /// The sync it waits for; none where the table only follows changes.
    pub request_id: Option<Uuid>,
}

impl AwaitedTable {
    /// The tables that a `tables` or `resync` command waits for; none for other commands.
    pub fn of(command: &Command) -> Vec<AwaitedTable> {
        let awaited = command.args.get("awaited").cloned().unwrap_or(Value::Null);
        serde_json::from_value(awaited).unwrap_or_default()
    }
}

/// What a new list of tables changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChanges {
    /// New in the mirror.
    pub added: Vec<TableName>,
    /// No longer in the mirror.
    pub removed: Vec<TableName>,
    /// Written elsewhere, or with other columns: they are synced anew.
    pub changed: Vec<TableName>,
    /// Only read differently the next time (`partition_key`, `identity`), or in another order.
    pub edited: bool,
}

impl TableChanges {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == TableChanges::default()
    }

    /// What turns `present` into `wanted`. Pure.
    pub fn between(present: &[MirrorTable], wanted: &[NewMirrorTable]) -> TableChanges {
        let mut changes = TableChanges::default();
        for table in wanted {
            let found = present.iter().find(|found| found.source == table.source);
            match found {
                None => changes.added.push(table.source.clone()),
                Some(found) if needs_sync(found, table) => {
                    changes.changed.push(table.source.clone());
                }
                Some(_) => {}
            }
        }
        let is_wanted = |found: &&MirrorTable| wanted.iter().any(|w| w.source == found.source);
        let removed = present.iter().filter(|found| !is_wanted(found));
        changes.removed = removed.map(|found| found.source.clone()).collect();
        let plain = present.iter().map(plain);
        changes.edited = !plain.eq(wanted.iter().cloned());
        changes
    }
}

fn plain(table: &MirrorTable) -> NewMirrorTable {
    NewMirrorTable {
        source: table.source.clone(),
        destination: table.destination.clone(),
        partition_key: table.partition_key.clone(),
        exclude_columns: table.exclude_columns.clone(),
        identity: table.identity.clone(),
    }
}

/// What stands at the destination would not be what the mapping says: another table, or
/// values of columns that are excluded now or were before.
fn needs_sync(present: &MirrorTable, wanted: &NewMirrorTable) -> bool {
    let sorted = |columns: &[String]| {
        let mut columns = columns.to_vec();
        columns.sort();
        columns
    };
    present.destination != wanted.destination
        || sorted(&present.exclude_columns) != sorted(&wanted.exclude_columns)
}

impl Catalog {
    /// Makes `tables` the whole list of a mirror's tables. Returns what that changes, and
    /// the `tables` command, which ends when every table that is added or changed is LIVE
    /// or has failed; none if nothing changes. An open one of before is replaced by it.
    /// [`Error::Conflict`] if another mirror of the same destination peer writes one of the
    /// tables, or the mirror is being deleted.
    pub async fn set_tables(
        &self,
        name: &str,
        tables: &[NewMirrorTable],
        requested_by: &str,
    ) -> Result<(TableChanges, Option<Uuid>)> {
        let failed = |error| Error::database("changing the tables of a mirror", error);
        mirrors::check_tables(tables)?;
        let mut transaction = self.begin().await.map_err(failed)?;
        mirrors::lock_creation(&mut transaction).await?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        let changes = TableChanges::between(&mirror.tables, tables);
        if changes.is_empty() {
            return Ok((changes, None));
        }
        let what = "its tables cannot be changed in this version; delete it and attach it again with the tables it is to have";
        mirrors::refuse_attached(&mirror, what)?;
        if let Some(why) = mirror.taken_from_attached(tables) {
            return Err(Error::Conflict { message: why });
        }
        let peer = &mirror.destination_peer;
        mirrors::check_destinations_free(&mut transaction, peer, tables, Some(mirror.id)).await?;
        let wanted: Vec<MirrorTable> = tables
            .iter()
            .map(|table| with_requests(&mirror, table))
            .collect();
        mirrors::replace_tables(&mut transaction, mirror.id, &wanted).await?;
        let is_awaited = |table: &&MirrorTable| {
            changes.added.contains(&table.source) || changes.changed.contains(&table.source)
        };
        let awaited: Vec<AwaitedTable> = wanted.iter().filter(is_awaited).map(awaited).collect();
        let by = "a later change of the tables";
        replace_open(&mut transaction, mirror.id, TABLES, by).await?;
        let args = json!({
            "added": names(&changes.added), "removed": names(&changes.removed),
            "changed": names(&changes.changed), "awaited": awaited,
        });
        let command_id = commands::insert(
            &mut transaction,
            mirror.id,
            name,
            TABLES,
            &args,
            requested_by,
        )
        .await?;
        mirrors::raise_version(&mut transaction, mirror.id).await?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok((changes, Some(command_id)))
    }

    /// Asks for a new sync of `table`, or of every table; returns the `resync` command,
    /// which ends when the tables are LIVE or have failed. Asked again while the same is
    /// under way, the same command. Of a mirror whose history is lost, it also names another
    /// generation, which capture starts first. [`Error::NotFound`] for a mirror, or a table of
    /// it, that does not exist; [`Error::Conflict`] while one of the tables is synced anew by
    /// another command, and where a lost history asks for more than is asked for.
    pub async fn request_resync(
        &self,
        name: &str,
        table: Option<&TableName>,
        strategy: ResyncStrategy,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("asking for a resync", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        let is_meant = |found: &&MirrorTable| table.is_none_or(|table| found.source == *table);
        let mut meant: Vec<MirrorTable> = mirror.tables.iter().filter(is_meant).cloned().collect();
        if let (Some(table), true) = (table, meant.is_empty()) {
            let what = format!("{table} in mirror {name}");
            return Err(Error::not_found("table", what));
        }
        let table_name = table.map(TableName::to_string);
        if let Some(generation) = lost_generation(&mut transaction, &mirror).await? {
            let what = "what its destination needs of the log there is lost (its error_message says how); delete this mirror and attach it again";
            mirrors::refuse_attached(&mirror, what)?;
            check_new_generation(table, strategy)?;
            let by = requested_by;
            let begun = begin_generation(&mut transaction, &mirror, strategy, by).await?;
            commands::commit(transaction).await.map_err(failed)?;
            tracing::info!(mirror = name, lost = %generation, "another generation is asked for");
            return Ok(begun);
        }
        for open in commands::open(&mut *transaction, mirror.id).await? {
            if open.kind == SYNC_SCHEMA {
                return Err(under_way(name, &open));
            }
            if ![RESYNC, REPLAY].contains(&&*open.kind) {
                continue;
            }
            let same = json!({ "table_name": table_name, "strategy": strategy });
            let is_same = |name: &&str| open.args[*name] == same[*name];
            if open.kind == RESYNC && ["table_name", "strategy"].iter().all(is_same) {
                return Ok(open.id);
            }
            let loading = AwaitedTable::of(&open);
            if let Some(both) = loading
                .iter()
                .find(|awaited| meant.iter().any(|meant| meant.source == awaited.table))
            {
                return Err(Error::conflict(format!(
                    "table {} is being loaded already by the {} command {}: wait for it to end",
                    both.table, open.kind, open.id
                )));
            }
        }
        for table in &mut meant {
            table.request_id = Some(Uuid::new_v4());
            table.beside = strategy == ResyncStrategy::Swap;
            mirrors::set_request(&mut transaction, mirror.id, table).await?;
        }
        let awaited: Vec<AwaitedTable> = meant.iter().map(awaited).collect();
        let args = json!({ "table_name": table_name, "strategy": strategy, "awaited": awaited });
        let command_id = commands::insert(
            &mut transaction,
            mirror.id,
            name,
            RESYNC,
            &args,
            requested_by,
        )
        .await?;
        mirrors::raise_version(&mut transaction, mirror.id).await?;
        if let Some(owner) = &mirror.owner {
            mirrors::ask_capture(&mut transaction, owner.id).await?;
        }
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }

    pub(crate) async fn lock_living(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Mirror> {
        let mirror = self.lock_mirror(connection, name).await?;
        if mirror.desired == Desired::Deleted {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is TERMINATING: it is being deleted"
            )));
        }
        Ok(mirror)
    }
}

/// What a lost history leaves to be chosen.
fn check_new_generation(table: Option<&TableName>, strategy: ResyncStrategy) -> Result<()> {
    const LOST: &str = "the mirror's history is lost (its error_message says how), so that nothing can go on from where it stands";
    if let Some(table) = table {
        return Err(Error::conflict(format!(
            "{LOST}: resync the whole mirror and not only {table}"
        )));
    }
    if strategy == ResyncStrategy::Swap {
        return Err(Error::conflict(format!(
            "{LOST}, and nothing keeps the present rows current while others are loaded beside them: ask with {{\"strategy\": \"truncate\"}}, which empties the tables and loads them"
        )));
    }
    Ok(())
}

/// Another generation, and a sync of every table in it, for who is attached too. What was asked
/// for of the former comes to nothing.
async fn begin_generation(
    connection: &mut PgConnection,
    mirror: &Mirror,
    strategy: ResyncStrategy,
    requested_by: &str,
) -> Result<Uuid> {
    let generation = Uuid::new_v4();
    let mut attached: BTreeMap<(Uuid, String), Vec<AwaitedTable>> = BTreeMap::new();
    sqlx::query("UPDATE bunny.mirrors SET generation = $2, generation_ready = false WHERE id = $1")
        .bind(mirror.id)
        .bind(generation)
        .execute(&mut *connection)
        .await
        .map_err(|error| Error::database("asking for another generation", error))?;
    mirrors::nothing_trimmed(connection, mirror.id, generation).await?;
    let mut awaiting = Vec::new();
    for table in &mirror.tables {
        let table = MirrorTable {
            request_id: Some(Uuid::new_v4()),
            beside: false,
            ..table.clone()
        };
        mirrors::set_request(connection, mirror.id, &table).await?;
        awaiting.push(awaited(&table));
        let (source, request_id) = (&table.source, table.request_id.unwrap_or_default());
        for sharing in share_request(connection, mirror.id, source, request_id, false).await? {
            attached.entry(sharing).or_default().push(awaited(&table));
        }
    }
    let begun = Begun {
        generation,
        strategy,
        requested_by,
    };
    for ((id, name), awaiting) in attached {
        begun.command(connection, id, &name, &awaiting).await?;
    }
    let command_id = begun
        .command(connection, mirror.id, &mirror.name, &awaiting)
        .await?;
    notify(connection).await?;
    Ok(command_id)
}

/// A generation that is asked for, as a mirror is told of it.
struct Begun<'a> {
    generation: Uuid,
    strategy: ResyncStrategy,
    requested_by: &'a str,
}

impl Begun<'_> {
    async fn command(
        &self,
        connection: &mut PgConnection,
        mirror_id: Uuid,
        name: &str,
        awaiting: &[AwaitedTable],
    ) -> Result<Uuid> {
        for kind in [ADOPT, TABLES, RESYNC, REPLAY] {
            let by = "another generation of the mirror";
            replace_open(connection, mirror_id, kind, by).await?;
        }
        let args = json!({
            "table_name": null, "strategy": self.strategy,
            "generation": self.generation, "awaited": awaiting,
        });
        let by = self.requested_by;
        let id = commands::insert(connection, mirror_id, name, RESYNC, &args, by).await?;
        last_wish::pass_over_noted(connection, mirror_id, id).await?;
        mirrors::raise_version(connection, mirror_id).await?;
        Ok(id)
    }
}

fn awaited(table: &MirrorTable) -> AwaitedTable {
    AwaitedTable {
        table: table.source.clone(),
        request_id: table.request_id,
    }
}

fn names(tables: &[TableName]) -> Vec<String> {
    tables.iter().map(TableName::to_string).collect()
}

/// The mapping with the sync it needs: a new one if it is new or has changed, the one it
/// has otherwise.
fn with_requests(mirror: &Mirror, wanted: &NewMirrorTable) -> MirrorTable {
    let present = mirror
        .tables
        .iter()
        .find(|table| table.source == wanted.source);
    let has_snapshots = mirror.config.do_initial_snapshot
        || present.is_some_and(|present| present.request_id.is_some());
    let (request_id, beside) = match present {
        Some(present) if !needs_sync(present, wanted) => (present.request_id, present.beside),
        _ => (has_snapshots.then(Uuid::new_v4), false),
    };
    let unchanged = present.filter(|present| !needs_sync(present, wanted));
    MirrorTable {
        source: wanted.source.clone(),
        destination: wanted.destination.clone(),
        partition_key: wanted.partition_key.clone(),
        exclude_columns: wanted.exclude_columns.clone(),
        identity: wanted.identity.clone(),
        request_id,
        retry_id: present.and_then(|present| present.retry_id),
        replay: unchanged.and_then(|present| present.replay.clone()),
        since_request: unchanged.map_or(request_id, |present| present.since_request),
        checkpoint_id: unchanged.and_then(|present| present.checkpoint_id),
        beside,
    }
}

/// What earlier commands of a kind still waited for is decided by something new.
pub(crate) async fn replace_open(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    kind: &str,
    by: &str,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.commands
         SET state = 'failed', error = 'replaced by ' || $3,
             updated_at = clock_timestamp(), finished_at = clock_timestamp()
         WHERE mirror_id = $1 AND kind = $2 AND state IN ('pending', 'running')",
    )
    .bind(mirror_id)
    .bind(kind)
    .bind(by)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("replacing a command", error))
}

/// The mirror's generation, if a role of it has failed because it cannot go on.
async fn lost_generation(connection: &mut PgConnection, mirror: &Mirror) -> Result<Option<Uuid>> {
    let reports = reports::read(connection, mirror.id).await?;
    // An owner's capture that cannot go on is the owner's to cure.
    let capture = reports.capture.failure.filter(|_| mirror.owner.is_none());
    let failures = [capture, reports.apply.failure];
    let lost = failures.into_iter().flatten();
    let mut lost = lost.filter_map(|failure| failure.lost_generation);
    Ok(lost.find(|lost| *lost == mirror.generation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirrors::tests::mirror;

    fn wanted(source: &str) -> NewMirrorTable {
        NewMirrorTable {
            source: TableName::new("public", source),
            ..plain(&mirror("m").tables[0])
        }
    }

    #[test]
    fn the_same_list_changes_nothing() {
        let mirror = mirror("m");
        assert!(TableChanges::between(&mirror.tables, &[wanted("t")]).is_empty());
    }

    #[test]
    fn tables_come_go_and_change() {
        let mirror = mirror("m");
        let added = TableChanges::between(&mirror.tables, &[wanted("t"), wanted("u")]);
        assert_eq!(added.added, [TableName::new("public", "u")]);
        let removed = TableChanges::between(&mirror.tables, &[wanted("u")]);
        assert_eq!(removed.removed, [TableName::new("public", "t")]);
        let mut other = wanted("t");
        other.exclude_columns = vec!["secret".into()];
        let changed = TableChanges::between(&mirror.tables, std::slice::from_ref(&other));
        assert_eq!(changed.changed, [TableName::new("public", "t")]);
        assert_ne!(
            with_requests(&mirror, &other).request_id,
            mirror.tables[0].request_id
        );
        let mut keyed = wanted("t");
        keyed.partition_key = Some("id".into());
        let edited = TableChanges::between(&mirror.tables, std::slice::from_ref(&keyed));
        assert!(edited.edited && edited.changed.is_empty());
        assert_eq!(
            with_requests(&mirror, &keyed).request_id,
            mirror.tables[0].request_id
        );
    }
}
