//! What every batch says to `_bunny`, prepared.

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

const ADD_COUNTS_SQL: &str =
    "UPDATE _bunny.tables SET rows_inserted = rows_inserted + $4, rows_updated = rows_updated + $5,
         rows_deleted = rows_deleted + $6, last_synced_at = now(), updated_at = now()
     WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3";

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

    /// Adds to a table's counters, in the transaction that writes the rows.
    pub async fn add_counts(
        &self,
        client: &Client,
        mirror_id: Uuid,
        source: &TableName,
        counts: Counts,
    ) -> Result<()> {
        client
            .execute(
                &self.counts,
                &[
                    &mirror_id,
                    &source.schema,
                    &source.name,
                    &counts.inserted,
                    &counts.updated,
                    &counts.deleted,
                ],
            )
            .await
            .map_err(Error::sql(format!("counting the rows of table {source}")))?;
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
