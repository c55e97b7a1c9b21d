//! Checkpoints: fresh copies of tables that no destination loads, so that the topics can
//! rebuild the tables after the changes since their last sync have been trimmed.
//!
//! A wish is `checkpoint_id` beside a table's mapping: capture publishes a sync under that
//! request as under any other. The command shows how it goes; capture ends it.

use std::collections::HashSet;

use bunny_postgres::TableName;
use serde_json::json;
use uuid::Uuid;

use crate::mirrors::{ask_capture, notify, refuse_attached};
use crate::tables::AwaitedTable;
use crate::{Catalog, Error, Result, commands};

/// The command of tables copied for later rebuilding.
pub const CHECKPOINT: &str = "checkpoint";

impl Catalog {
    /// Every sync that a mirror's tables speak of, those of the mirrors attached to it too: the one
    /// that the destination is to hold, the last checkpoint, the first that counts, and what is
    /// loaded again. What the log knows of others is only about what it still holds.
    pub async fn syncs_named(&self, mirror_id: Uuid) -> Result<HashSet<Uuid>> {
        let named: Vec<Uuid> = sqlx::query_scalar(
            "SELECT DISTINCT named.sync
             FROM bunny.mirrors m JOIN bunny.mirror_tables t ON t.mirror_id = m.id,
                 unnest(ARRAY[t.request_id, t.checkpoint_id, t.since_request, (t.replay ->> 'sync')::uuid]) AS named (sync)
             WHERE (m.id = $1 OR m.source_mirror = $1) AND named.sync IS NOT NULL",
        )
        .bind(mirror_id)
        .fetch_all(self.pool())
        .await
        .map_err(|error| Error::database("reading which syncs are spoken of", error))?;
        Ok(named.into_iter().collect())
    }

    /// Asks for fresh copies of `named` tables, or of all; returns the `checkpoint` command,
    /// which ends when they are in the topics. Asked again while the same is under way, the
    /// same command. [`Error::NotFound`] for a mirror, or a table of it, that does not exist.
    pub async fn request_checkpoint(
        &self,
        name: &str,
        named: Option<&[TableName]>,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("asking for a checkpoint", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        refuse_attached(
            &mirror,
            "ask for the checkpoint there, its copies are of use to both",
        )?;
        if let Some(unknown) = named.into_iter().flatten().find(|name| {
            let mut tables = mirror.tables.iter();
            !tables.any(|table| table.source == **name)
        }) {
            return Err(Error::not_found(
                "table",
                format!("{unknown} in mirror {name}"),
            ));
        }
        let names: Option<Vec<String>> =
            named.map(|named| named.iter().map(TableName::to_string).collect());
        let mut args = json!({ "tables": names });
        for open in commands::open(&mut *transaction, mirror.id).await? {
            if open.kind == CHECKPOINT && open.args["tables"] == args["tables"] {
                return Ok(open.id);
            }
        }
        let is_meant = |table: &TableName| named.is_none_or(|named| named.contains(table));
        let mut awaited = Vec::new();
        for table in mirror.tables.iter().filter(|table| is_meant(&table.source)) {
            let request_id = Uuid::new_v4();
            sqlx::query(
                "UPDATE bunny.mirror_tables SET checkpoint_id = $4
                 WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            )
            .bind(mirror.id)
            .bind(&table.source.schema)
            .bind(&table.source.name)
            .bind(request_id)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
            awaited.push(AwaitedTable {
                table: table.source.clone(),
                request_id: Some(request_id),
            });
        }
        args["awaited"] = json!(awaited);
        let command_id = commands::insert(
            &mut transaction,
            mirror.id,
            name,
            CHECKPOINT,
            &args,
            requested_by,
        )
        .await?;
        ask_capture(&mut transaction, mirror.id).await?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }
}
