//! What every batch says to `_bunny`, prepared.

use std::collections::BTreeMap;

use bunny_postgres::TableName;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::lsn_to;
use super::owner::{Epoch, FENCE_SQL, check_fence};
use super::progress::{Progress, SET_PROGRESS_SQL};
use crate::error::{Error, Result};

/// Source rows of each kind applied to one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
}

/// However many tables a batch is about, it is one statement.
const ADD_COUNTS_SQL: &str =
    "UPDATE _bunny.tables AS t SET rows_inserted = t.rows_inserted + n.inserted,
         rows_updated = t.rows_updated + n.updated, rows_deleted = t.rows_deleted + n.deleted,
         last_synced_at = now(), updated_at = now()
     FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
         AS n (source_schema, source_table, inserted, updated, deleted)
     WHERE t.mirror_id = $1 AND t.source_schema = n.source_schema AND t.source_table = n.source_table";

const SET_LIVE_SQL: &str = "UPDATE _bunny.tables SET state = 'LIVE', updated_at = now()
     WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3 AND state = 'CATCHING_UP'";

/// The statements of every batch, prepared once per session, so that each costs one
/// message and several travel together.
pub struct Prepared {
    fence: Statement,
    progress: Statement,
    counts: Statement,
    live: Statement,
}

impl Prepared {
    pub async fn new(client: &Client) -> Result<Prepared> {
        let prepare = async |sql: &str| {
            client
                .prepare(sql)
                .await
                .map_err(Error::sql("preparing the statements of _bunny"))
        };
        Ok(Prepared {
            fence: prepare(FENCE_SQL).await?,
            progress: prepare(SET_PROGRESS_SQL).await?,
            counts: prepare(ADD_COUNTS_SQL).await?,
            live: prepare(SET_LIVE_SQL).await?,
        })
    }

    /// See [`fence`].
    pub async fn fence(&self, client: &Client, mirror_id: Uuid, epoch: Epoch) -> Result<()> {
        let row = client
            .query_opt(&self.fence, &[&mirror_id])
            .await
            .map_err(Error::sql("checking the owner epoch"))?;
        check_fence(row, mirror_id, epoch)
    }

    /// See [`set_progress`].
    pub async fn set_progress(
        &self,
        client: &Client,
        mirror_id: Uuid,
        progress: &Progress,
    ) -> Result<()> {
        client
            .execute(
                &self.progress,
                &[
                    &mirror_id,
                    &progress.generation,
                    &lsn_to(progress.position.commit_lsn),
                    &(progress.position.seq as i64),
                    &progress.next_offset,
                ],
            )
            .await
            .map_err(Error::sql("writing the progress row"))?;
        Ok(())
    }

    /// Adds to the tables' counters, in the transaction that writes the rows.
    pub async fn add_counts(
        &self,
        client: &Client,
        mirror_id: Uuid,
        counts: &BTreeMap<TableName, Counts>,
    ) -> Result<()> {
        if counts.is_empty() {
            return Ok(());
        }
        let schemas: Vec<&str> = counts.keys().map(|table| table.schema.as_str()).collect();
        let tables: Vec<&str> = counts.keys().map(|table| table.name.as_str()).collect();
        let of = |kind: fn(&Counts) -> i64| counts.values().map(kind).collect::<Vec<i64>>();
        client
            .execute(
                &self.counts,
                &[
                    &mirror_id,
                    &schemas,
                    &tables,
                    &of(|counts| counts.inserted),
                    &of(|counts| counts.updated),
                    &of(|counts| counts.deleted),
                ],
            )
            .await
            .map_err(Error::sql("counting the rows of tables"))?;
        Ok(())
    }

    /// A table that was catching up has caught up.
    pub async fn set_live(
        &self,
        client: &Client,
        mirror_id: Uuid,
        source: &TableName,
    ) -> Result<()> {
        client
            .execute(&self.live, &[&mirror_id, &source.schema, &source.name])
            .await
            .map_err(Error::sql(format!("setting table {source} to LIVE")))?;
        Ok(())
    }
}
