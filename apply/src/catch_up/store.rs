//! What catching up writes into `_bunny.tables`.

use bunny_postgres::TableName;
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::bookkeeping::{self, Progress};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};

/// Moves the tables' offsets up to `next_offset`, in the transaction that writes their
/// rows (I3). A table whose changes begin later keeps its own.
pub(crate) async fn advance<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    tables: &[TableName],
    next_offset: i64,
) -> Result<()> {
    let (schemas, names) = split(tables);
    let moved = client
        .execute(
            "UPDATE _bunny.tables SET restart_offset = greatest(restart_offset, $4), updated_at = now()
             WHERE mirror_id = $1 AND state = 'CATCHING_UP' AND NOT in_main
               AND (source_schema, source_table) IN (SELECT * FROM unnest($2::text[], $3::text[]))",
            &[&mirror_id, &schemas, &names, &next_offset],
        )
        .await
        .map_err(Error::sql("writing how far tables have caught up"))?;
    if moved == tables.len() as u64 {
        Ok(())
    } else {
        Err(changed_meanwhile())
    }
}

/// Marks the tables as in main, which holds at `main`: they are LIVE if main has passed
/// the end of their syncs.
pub(super) async fn join(
    client: &Client,
    run: &MirrorRun,
    tables: &[TableName],
    main: &Progress,
) -> Result<()> {
    let mirror_id = run.mirror_id();
    let (schemas, names) = split(tables);
    client
        .batch_execute("BEGIN; SET LOCAL lock_timeout = '5s'")
        .await
        .map_err(Error::sql("beginning to bring tables into main"))?;
    bookkeeping::fence(client, mirror_id, run.epoch).await?;
    if bookkeeping::progress(client, mirror_id).await? != Some(*main) {
        return Err(changed_meanwhile());
    }
    let joined = client
        .execute(
            "UPDATE _bunny.tables SET in_main = true, restart_offset = NULL, error = NULL,
                 state = CASE WHEN live_commit_lsn IS NULL
                              OR (live_commit_lsn, coalesce(live_seq, 0)) <= ($4::text::pg_lsn, $5::bigint)
                         THEN 'LIVE' ELSE state END, updated_at = now()
             WHERE mirror_id = $1 AND state = 'CATCHING_UP' AND NOT in_main
               AND (source_schema, source_table) IN (SELECT * FROM unnest($2::text[], $3::text[]))",
            &[
                &mirror_id,
                &schemas,
                &names,
                &main.position.commit_lsn.to_string(),
                &(main.position.seq as i64),
            ],
        )
        .await
        .map_err(Error::sql("bringing tables into main"))?;
    if joined != tables.len() as u64 {
        return Err(changed_meanwhile());
    }
    reached(crash_points::CATCH_UP_BEFORE_JOIN);
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("bringing tables into main"))
}

fn split(tables: &[TableName]) -> (Vec<&str>, Vec<&str>) {
    tables
        .iter()
        .map(|table| (table.schema.as_str(), table.name.as_str()))
        .unzip()
}

/// Only this run changes these rows: if they are not as it left them, begin again.
fn changed_meanwhile() -> Error {
    Error::NotYet("the states of tables that catch up changed meanwhile; starting again".to_owned())
}
