//! Mirrors in the catalog database.

use bunny_postgres::TableName;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::checks::{check, check_destinations_free, check_name_free, check_peers};
use super::{
    AttachedTable, Desired, Mirror, MirrorConfig, MirrorTable, NewMirror, Owner, PauseScope,
    fan_out, naming,
};
use crate::{Catalog, Error, Result, adopt, commands};

/// Serialises the creation of mirrors, so that names and tables which must not
/// meet are checked against everything that is there. Any number will do.
const CREATE_LOCK: i64 = 0x6275_6e6e_796d_6972;

/// A destination table that a mirror writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInUse {
    /// The mirror.
    pub mirror_name: String,
    /// Its source peer.
    pub source_peer: String,
    /// Its destination peer.
    pub destination_peer: String,
    /// The table at the source.
    pub source: TableName,
    /// The table at the destination.
    pub destination: TableName,
}

/// All of a mirror in one row, so that it is one moment's state.
macro_rules! select_mirrors {
    ($rest:literal) => {
        concat!(
            "SELECT m.*, o.name AS owner_name, o.slug AS owner_slug,
                 coalesce(o.generation, m.generation) AS log_generation,
                 coalesce(o.generation_ready, m.generation_ready) AS log_ready,
                 coalesce(o.desired = 'paused' AND o.pause_scope = 'all', false) AS owner_capture_paused, (
                 SELECT coalesce(jsonb_agg(jsonb_build_object(
                     'mirror', a.name,
                     'source', jsonb_build_object('schema', t.source_schema, 'name', t.source_table),
                     'request_id', t.request_id, 'retry_id', t.retry_id) ORDER BY a.name, t.position), '[]')
                 FROM bunny.mirrors a JOIN bunny.mirror_tables t ON t.mirror_id = a.id
                 WHERE a.source_mirror = m.id AND a.desired <> 'deleted') AS attached, (
                 SELECT coalesce(jsonb_agg(jsonb_build_object(
                     'source', jsonb_build_object('schema', t.source_schema, 'name', t.source_table),
                     'destination', jsonb_build_object('schema', t.destination_schema, 'name', t.destination_table),
                     'partition_key', t.partition_key,
                     'exclude_columns', to_jsonb(t.exclude_columns),
                     'identity', t.identity,
                     'request_id', t.request_id,
                     'retry_id', t.retry_id, 'beside', t.beside,
                     'replay', t.replay, 'since_request', t.since_request,
                     'checkpoint_id', t.checkpoint_id) ORDER BY t.position), '[]')
                 FROM bunny.mirror_tables t WHERE t.mirror_id = m.id) AS tables
             FROM bunny.mirrors m LEFT JOIN bunny.mirrors o ON o.id = m.source_mirror ",
            $rest
        )
    };
}

impl Catalog {
    /// Creates a mirror and its `create` command. [`Error::Conflict`] if the
    /// name is taken, a table appears twice, or another mirror of the same
    /// destination peer writes one of the tables; [`Error::NotFound`] for a
    /// peer that does not exist.
    pub async fn create_mirror(&self, new: &NewMirror) -> Result<Mirror> {
        check(new)?;
        let failed = |error| Error::database("creating a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        lock_creation(&mut transaction).await?;
        check_peers(&mut transaction, new).await?;
        check_name_free(&mut transaction, &new.name).await?;
        let peer = &new.destination_peer;
        check_destinations_free(&mut transaction, peer, &new.tables, None).await?;
        let owner = match &new.attach {
            Some(attach) => Some(
                self.lock_owner(&mut transaction, attach, &new.tables)
                    .await?,
            ),
            None => None,
        };
        let mirror_id = insert_mirror(&mut transaction, new, owner.as_ref()).await?;
        let args = match &owner {
            Some(owner) => json!({ "source_mirror": owner.name }),
            None => json!({}),
        };
        let (name, by) = (&new.name, &new.requested_by);
        let command_id =
            commands::insert(&mut transaction, mirror_id, name, "create", &args, by).await?;
        match (&new.attach, &owner) {
            (Some(attach), Some(owner)) => {
                fan_out::attach(&mut transaction, mirror_id, owner, attach, &new.tables).await?;
                // There is nothing at the source to be made.
                commands::finish(&mut transaction, command_id).await?;
            }
            _ => insert_tables(&mut transaction, mirror_id, new).await?,
        }
        if new.adopts.is_some() {
            adopt::insert(&mut transaction, mirror_id, name, by).await?;
        }
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        self.get_mirror_by_id(mirror_id)
            .await?
            .ok_or_else(|| Error::not_found("mirror", &new.name))
    }

    /// Every mirror by name, also those being deleted.
    pub async fn list_mirrors(&self) -> Result<Vec<Mirror>> {
        let rows = sqlx::query(select_mirrors!("ORDER BY m.name"))
            .fetch_all(self.pool())
            .await
            .map_err(|error| Error::database("listing mirrors", error))?;
        rows.iter().map(mirror_from).collect()
    }

    /// The mirror of that name. [`Error::NotFound`] if there is none.
    pub async fn get_mirror(&self, name: &str) -> Result<Mirror> {
        let row = sqlx::query(select_mirrors!("WHERE m.name = $1"))
            .bind(name)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a mirror", error))?
            .ok_or_else(|| Error::not_found("mirror", name))?;
        mirror_from(&row)
    }

    /// The mirror with that id, if it is still there.
    pub async fn get_mirror_by_id(&self, id: Uuid) -> Result<Option<Mirror>> {
        let row = sqlx::query(select_mirrors!("WHERE m.id = $1"))
            .bind(id)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a mirror", error))?;
        row.as_ref().map(mirror_from).transpose()
    }

    /// The mirror of that name, its row locked until the transaction ends.
    /// [`Error::NotFound`] if there is none.
    pub(crate) async fn lock_mirror(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Mirror> {
        let failed = |error| Error::database("locking a mirror", error);
        // The owner first, as by those who lock it and then what is attached to it.
        for lock in [
            "SELECT o.id FROM bunny.mirrors o JOIN bunny.mirrors m ON m.source_mirror = o.id
             WHERE m.name = $1 FOR UPDATE OF o",
            "SELECT m.id FROM bunny.mirrors m WHERE m.name = $1 FOR UPDATE",
        ] {
            sqlx::query(lock)
                .bind(name)
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
        }
        // Read by a statement that begins with the lock: one that has waited for it would show
        // the other tables as they were before.
        let row = sqlx::query(select_mirrors!("WHERE m.name = $1"))
            .bind(name)
            .fetch_optional(connection)
            .await
            .map_err(failed)?
            .ok_or_else(|| Error::not_found("mirror", name))?;
        mirror_from(&row)
    }

    /// Records that the mirror's generation has been started, and finishes the
    /// `create` command with it. Workers are woken but not restarted: they see
    /// it in [`crate::MirrorContext::latest`].
    pub async fn set_generation_ready(&self, id: Uuid, generation: Uuid) -> Result<()> {
        let failed = |error| Error::database("recording a generation", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let recorded = sqlx::query(
            "UPDATE bunny.mirrors SET generation_ready = true, updated_at = clock_timestamp()
             WHERE id = $1 AND generation = $2",
        )
        .bind(id)
        .bind(generation)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if recorded.rows_affected() == 0 {
            return Err(Error::conflict(format!(
                "generation {generation} is not the one the mirror asks for"
            )));
        }
        sqlx::query(
            "UPDATE bunny.commands
             SET state = 'done', updated_at = clock_timestamp(), finished_at = clock_timestamp()
             WHERE mirror_id = $1 AND kind = 'create' AND state IN ('pending', 'running')",
        )
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        notify(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }

    /// Every table mapping of every mirror, so that a new mirror can be refused
    /// for writing another's table or for closing a loop.
    pub async fn tables_in_use(&self) -> Result<Vec<TableInUse>> {
        let mirrors = self.list_mirrors().await?;
        let mut tables = Vec::new();
        for mirror in mirrors {
            for table in mirror.tables {
                tables.push(TableInUse {
                    mirror_name: mirror.name.clone(),
                    source_peer: mirror.source_peer.clone(),
                    destination_peer: mirror.destination_peer.clone(),
                    source: table.source,
                    destination: table.destination,
                });
            }
        }
        Ok(tables)
    }
}

async fn insert_mirror(
    connection: &mut PgConnection,
    new: &NewMirror,
    owner: Option<&Mirror>,
) -> Result<Uuid> {
    let failed = |error| Error::database("creating a mirror", error);
    let slugs: Vec<String> = sqlx::query_scalar("SELECT slug FROM bunny.mirrors")
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let slug = naming::slug(&new.name, |slug| slugs.iter().any(|taken| taken == slug));
    let (publication, publication_ins) = naming::publication_names(&new.prefix, &slug);
    let slot_name = new
        .replication_slot_name
        .clone()
        .unwrap_or_else(|| naming::slot_name(&new.prefix, &slug));
    let publication = new.publication_name.clone().unwrap_or(publication);
    // An owner's slot and publications are not this mirror's to drop.
    let names = match owner {
        Some(owner) => (
            owner.slot_name.clone(),
            owner.publication_name.clone(),
            owner.publication_ins_name.clone(),
        ),
        None => (slot_name, publication, publication_ins),
    };
    let mirror_id = new.adopts.unwrap_or_else(Uuid::new_v4);
    let generation = owner.map_or_else(Uuid::new_v4, |owner| owner.generation);
    sqlx::query(
        "INSERT INTO bunny.mirrors (id, name, slug, source_peer, destination_peer,
             slot_name, slot_given, publication_name, publication_given, publication_ins_name,
             config, generation, generation_ready, source_mirror)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(mirror_id)
    .bind(&new.name)
    .bind(&slug)
    .bind(&new.source_peer)
    .bind(&new.destination_peer)
    .bind(names.0)
    .bind(new.slot_given || owner.is_some())
    .bind(names.1)
    .bind(new.publication_given || owner.is_some())
    .bind(names.2)
    .bind(Json(&new.config))
    .bind(generation)
    // The owner's counts; a worker of an earlier version must not take this for a history to begin.
    // Of one that is adopted the log says which it is; none is ever begun for it.
    .bind(owner.is_some() || new.adopts.is_some())
    .bind(owner.map(|owner| owner.id))
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    if owner.is_none() {
        fan_out::nothing_trimmed(connection, mirror_id, generation).await?;
    }
    Ok(mirror_id)
}

async fn insert_tables(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    new: &NewMirror,
) -> Result<()> {
    let tables: Vec<MirrorTable> = new
        .tables
        .iter()
        .map(|table| {
            let request_id = new.config.do_initial_snapshot.then(Uuid::new_v4);
            MirrorTable {
                source: table.source.clone(),
                destination: table.destination.clone(),
                partition_key: table.partition_key.clone(),
                exclude_columns: table.exclude_columns.clone(),
                identity: table.identity.clone(),
                request_id,
                retry_id: None,
                replay: None,
                since_request: request_id,
                checkpoint_id: None,
                beside: false,
            }
        })
        .collect();
    replace_tables(connection, mirror_id, &tables).await
}

/// Makes these the mirror's tables, in this order.
pub(crate) async fn replace_tables(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    tables: &[MirrorTable],
) -> Result<()> {
    let failed = |error| Error::database("writing table mappings", error);
    sqlx::query("DELETE FROM bunny.mirror_tables WHERE mirror_id = $1")
        .bind(mirror_id)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    for (position, table) in (0_i32..).zip(tables) {
        sqlx::query(
            "INSERT INTO bunny.mirror_tables (mirror_id, position, source_schema, source_table,
                 destination_schema, destination_table, partition_key, exclude_columns, identity,
                 request_id, retry_id, replay, since_request, checkpoint_id, beside)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(mirror_id)
        .bind(position)
        .bind(&table.source.schema)
        .bind(&table.source.name)
        .bind(&table.destination.schema)
        .bind(&table.destination.name)
        .bind(&table.partition_key)
        .bind(&table.exclude_columns)
        .bind(&table.identity)
        .bind(table.request_id)
        .bind(table.retry_id)
        .bind(table.replay.as_ref().map(Json))
        .bind(table.since_request)
        .bind(table.checkpoint_id)
        .bind(table.beside)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

/// Asks for the table's sync, which takes the place of a replay.
pub(crate) async fn set_request(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    table: &MirrorTable,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirror_tables SET request_id = $4, replay = NULL, beside = $5
         WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
    )
    .bind(mirror_id)
    .bind(&table.source.schema)
    .bind(&table.source.name)
    .bind(table.request_id)
    .bind(table.beside)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("asking for a table sync", error))
}

/// Workers act on the mirror's row again when the transaction commits.
pub(crate) async fn raise_version(connection: &mut PgConnection, mirror_id: Uuid) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirrors SET version = version + 1, updated_at = clock_timestamp()
         WHERE id = $1",
    )
    .bind(mirror_id)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("changing a mirror", error))
}

/// One at a time creates mirrors or gives them tables; until the transaction ends.
pub(crate) async fn lock_creation(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(CREATE_LOCK)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(|error| Error::database("waiting for the creation of another mirror", error))
}

/// Wakes workers when the transaction commits.
pub(crate) async fn notify(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("SELECT pg_notify('bunny_wake', '')")
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(|error| Error::database("waking the workers", error))
}

fn mirror_from(row: &PgRow) -> Result<Mirror> {
    let read = |error| Error::database("reading a mirror", error);
    let config: Value = row.try_get("config").map_err(read)?;
    let config = MirrorConfig::from_stored(config)
        .map_err(|error| Error::internal("reading a mirror's options", error))?;
    let tables: Json<Vec<MirrorTable>> = row.try_get("tables").map_err(read)?;
    let desired: String = row.try_get("desired").map_err(read)?;
    let pause_scope: String = row.try_get("pause_scope").map_err(read)?;
    let attached: Json<Vec<AttachedTable>> = row.try_get("attached").map_err(read)?;
    let owner_id: Option<Uuid> = row.try_get("source_mirror").map_err(read)?;
    let owner = match owner_id {
        Some(id) => Some(Owner {
            id,
            name: row.try_get("owner_name").map_err(read)?,
            slug: row.try_get("owner_slug").map_err(read)?,
            capture_paused: row.try_get("owner_capture_paused").map_err(read)?,
        }),
        None => None,
    };
    Ok(Mirror {
        id: row.try_get("id").map_err(read)?,
        name: row.try_get("name").map_err(read)?,
        slug: row.try_get("slug").map_err(read)?,
        owner,
        attached: attached.0,
        source_peer: row.try_get("source_peer").map_err(read)?,
        destination_peer: row.try_get("destination_peer").map_err(read)?,
        slot_name: row.try_get("slot_name").map_err(read)?,
        slot_given: row.try_get("slot_given").map_err(read)?,
        publication_name: row.try_get("publication_name").map_err(read)?,
        publication_given: row.try_get("publication_given").map_err(read)?,
        publication_ins_name: row.try_get("publication_ins_name").map_err(read)?,
        config,
        generation: row.try_get("log_generation").map_err(read)?,
        generation_ready: row.try_get("log_ready").map_err(read)?,
        desired: match desired.as_str() {
            "running" => Desired::Running,
            "paused" => Desired::Paused,
            "deleted" => Desired::Deleted,
            other => return Err(Error::internal("reading a mirror's desired state", other)),
        },
        pause_scope: match pause_scope.as_str() {
            "apply" => PauseScope::Apply,
            "all" => PauseScope::All,
            other => return Err(Error::internal("reading a mirror's pause", other)),
        },
        keep_topics: row.try_get("keep_topics").map_err(read)?,
        version: row.try_get("version").map_err(read)?,
        capture_version: row.try_get("capture_version").map_err(read)?,
        apply_version: row.try_get("apply_version").map_err(read)?,
        created_at: row.try_get("created_at").map_err(read)?,
        updated_at: row.try_get("updated_at").map_err(read)?,
        tables: tables.0,
    })
}
