//! `_bunny.chunks`: the chunks of syncs under way that are loaded.

use tokio_postgres::GenericClient;
use uuid::Uuid;

use crate::error::{Error, Result};

/// The chunks of a sync already loaded: chunk number and rows.
pub async fn loaded_chunks<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    request_id: Uuid,
    attempt: i32,
) -> Result<Vec<(i32, i64)>> {
    let rows = client
        .query(
            "SELECT chunk, rows FROM _bunny.chunks WHERE mirror_id = $1 AND request_id = $2 AND attempt = $3
             ORDER BY chunk",
            &[&mirror_id, &request_id, &attempt],
        )
        .await
        .map_err(Error::sql("reading the loaded chunks"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// In the transaction that loads the chunk. A chunk recorded twice is an error (23505).
pub async fn record_chunk<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    request_id: Uuid,
    attempt: i32,
    chunk: i32,
    rows: i64,
) -> Result<()> {
    client
        .execute(
            "INSERT INTO _bunny.chunks (mirror_id, request_id, attempt, chunk, rows) VALUES ($1, $2, $3, $4, $5)",
            &[&mirror_id, &request_id, &attempt, &chunk, &rows],
        )
        .await
        .map_err(Error::sql(format!("recording chunk {chunk}")))?;
    Ok(())
}

/// Forgets all chunks of a request: of a sync that is void, or whose table is loaded.
pub async fn forget_chunks<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    request_id: Uuid,
) -> Result<()> {
    client
        .execute(
            "DELETE FROM _bunny.chunks WHERE mirror_id = $1 AND request_id = $2",
            &[&mirror_id, &request_id],
        )
        .await
        .map_err(Error::sql("forgetting the chunks of a sync"))?;
    Ok(())
}
