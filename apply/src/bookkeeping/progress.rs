//! `_bunny.progress`: how far a mirror is applied.

use bunny_schemas::Position;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::{lsn_from, lsn_to};
use crate::error::{Error, Result};

/// How far a mirror is applied: everything up to and including `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub generation: Uuid,
    pub position: Position,
    /// The change-topic offset to read next.
    pub next_offset: i64,
}

pub(super) const SET_PROGRESS_SQL: &str =
    "INSERT INTO _bunny.progress (mirror_id, generation, commit_lsn, seq, next_offset, updated_at)
     VALUES ($1, $2, $3, $4, $5, now())
     ON CONFLICT (mirror_id) DO UPDATE SET generation = excluded.generation,
         commit_lsn = excluded.commit_lsn, seq = excluded.seq,
         next_offset = excluded.next_offset, updated_at = excluded.updated_at";

/// None before the first progress of a mirror.
pub async fn progress<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
) -> Result<Option<Progress>> {
    let row = client
        .query_opt(
            "SELECT generation, commit_lsn, seq, next_offset FROM _bunny.progress WHERE mirror_id = $1",
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("reading the progress row"))?;
    Ok(row.map(|row| Progress {
        generation: row.get(0),
        position: Position {
            commit_lsn: lsn_from(row.get(1)),
            seq: row.get::<_, i64>(2) as u64,
        },
        next_offset: row.get(3),
    }))
}

/// In the transaction whose rows it describes (I3).
pub async fn set_progress<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    progress: &Progress,
) -> Result<()> {
    client
        .execute(
            SET_PROGRESS_SQL,
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
