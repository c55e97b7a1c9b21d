//! `_bunny.objects`: objects of a table that could not be made, so that the status shows
//! them for as long as they are missing.

use bunny_postgres::TableName;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use crate::error::{Error, Result};

/// An object that is missing at the destination because it was refused there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingObject {
    /// The table it belongs to, at the source.
    pub source: TableName,
    /// `index`, `foreign key` and so on.
    pub kind: String,
    pub name: String,
    /// What the destination said.
    pub reason: String,
}

/// All of a mirror's missing objects, by table.
pub async fn missing_objects<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
) -> Result<Vec<MissingObject>> {
    let rows = client
        .query(
            "SELECT source_schema, source_table, kind, name, reason FROM _bunny.objects
             WHERE mirror_id = $1 ORDER BY 1, 2, 3, 4",
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("reading the missing objects"))?;
    let missing = rows.iter().map(|row| MissingObject {
        source: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        kind: row.get(2),
        name: row.get(3),
        reason: row.get(4),
    });
    Ok(missing.collect())
}

/// Remembers that an object could not be made.
pub async fn put_missing_object<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    missing: &MissingObject,
) -> Result<()> {
    client
        .execute(
            "INSERT INTO _bunny.objects (mirror_id, source_schema, source_table, kind, name, reason)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (mirror_id, source_schema, source_table, kind, name)
             DO UPDATE SET reason = excluded.reason, updated_at = now()",
            &[
                &mirror_id,
                &missing.source.schema,
                &missing.source.name,
                &missing.kind,
                &missing.name,
                &missing.reason,
            ],
        )
        .await
        .map_err(Error::sql(format!(
            "remembering that {} {} is missing",
            missing.kind, missing.name
        )))?;
    Ok(())
}

/// Forgets what was missing of a table, but for one kind.
pub async fn forget_missing_objects<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    but_kind: &str,
) -> Result<()> {
    client
        .execute(
            "DELETE FROM _bunny.objects
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3 AND kind <> $4",
            &[&mirror_id, &source.schema, &source.name, &but_kind],
        )
        .await
        .map_err(Error::sql(format!(
            "forgetting the missing objects of {source}"
        )))?;
    Ok(())
}

/// Forgets one missing object: it is there now.
pub async fn forget_missing_object<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    kind: &str,
    name: &str,
) -> Result<()> {
    client
        .execute(
            "DELETE FROM _bunny.objects WHERE mirror_id = $1 AND source_schema = $2
               AND source_table = $3 AND kind = $4 AND name = $5",
            &[&mirror_id, &source.schema, &source.name, &kind, &name],
        )
        .await
        .map_err(Error::sql(format!(
            "forgetting that {kind} {name} was missing"
        )))?;
    Ok(())
}
