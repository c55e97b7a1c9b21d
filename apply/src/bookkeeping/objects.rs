//! `_bunny.objects`: objects of a table that could not be made, so that the status shows
//! them for as long as they are missing; and notes on a table, which are written in the
//! transaction that makes them true and wait here until they are in the mirror's log.

use std::collections::BTreeMap;

use bunny_postgres::TableName;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use crate::error::{Error, Result};

/// The kind of a note: a sentence for the mirror's log.
const NOTE: &str = "note";

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
             WHERE mirror_id = $1 AND kind <> $2 ORDER BY 1, 2, 3, 4",
            &[&mirror_id, &NOTE],
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

/// Forgets what was missing of a table, but for one kind; notes stay.
pub async fn forget_missing_objects<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    but_kind: &str,
) -> Result<()> {
    client
        .execute(
            "DELETE FROM _bunny.objects
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3
               AND kind NOT IN ($4, $5)",
            &[&mirror_id, &source.schema, &source.name, &but_kind, &NOTE],
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

/// Leaves sentences for the mirror's log. One that was left before is not said again.
pub async fn put_notes<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    sentences: &[String],
) -> Result<()> {
    if sentences.is_empty() {
        return Ok(());
    }
    client
        .execute(
            "INSERT INTO _bunny.objects (mirror_id, source_schema, source_table, kind, name, reason, is_said)
             SELECT $1, $2, $3, $4, encode(sha256(convert_to(sentence, 'UTF8')), 'hex'), sentence, false
             FROM unnest($5::text[]) AS sentence
             ON CONFLICT (mirror_id, source_schema, source_table, kind, name) DO NOTHING",
            &[&mirror_id, &source.schema, &source.name, &NOTE, &sentences],
        )
        .await
        .map_err(Error::sql(format!("leaving notes on {source}")))?;
    Ok(())
}

/// The sentences that are not known to be in the mirror's log, by source table.
pub async fn notes<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
) -> Result<BTreeMap<TableName, Vec<String>>> {
    let rows = client
        .query(
            "SELECT source_schema, source_table, reason FROM _bunny.objects
             WHERE mirror_id = $1 AND kind = $2 AND NOT is_said ORDER BY 1, 2, updated_at, 3",
            &[&mirror_id, &NOTE],
        )
        .await
        .map_err(Error::sql("reading the notes on tables"))?;
    let mut notes: BTreeMap<TableName, Vec<String>> = BTreeMap::new();
    for row in rows {
        let source = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        notes.entry(source).or_default().push(row.get(2));
    }
    Ok(notes)
}

/// Remembers that sentences are in the mirror's log.
pub async fn notes_are_said<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    sentences: &[String],
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.objects SET is_said = true WHERE mirror_id = $1 AND source_schema = $2
               AND source_table = $3 AND kind = $4 AND reason = ANY ($5)",
            &[&mirror_id, &source.schema, &source.name, &NOTE, &sentences],
        )
        .await
        .map_err(Error::sql(format!(
            "remembering which notes on {source} are said"
        )))?;
    Ok(())
}
