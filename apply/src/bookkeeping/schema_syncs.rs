//! `_bunny.schema_syncs`: what a schema sync has done so far and what it would not do, each
//! sentence written in the transaction that makes it true, so that a crash loses none.

use bunny_postgres::TableName;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use crate::error::{Error, Result};

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Main holds for the command: nobody may follow the stream unless the catalog has been
    /// asked how the command stands.
    Held,
    /// A statement that was run.
    Ran,
    /// Something that is not done, and why.
    Left,
    /// Every table has had its turn.
    Done,
}

impl Entry {
    fn as_str(self) -> &'static str {
        match self {
            Entry::Held => "held",
            Entry::Ran => "ran",
            Entry::Left => "left",
            Entry::Done => "done",
        }
    }
}

/// Adds sentences about a table; one that is there is not added again.
pub async fn put_entries<C: GenericClient + Sync>(
    client: &C,
    (mirror_id, command_id): (Uuid, Uuid),
    source: &TableName,
    entry: Entry,
    sentences: &[String],
) -> Result<()> {
    for sentence in sentences {
        client
            .execute(
                "INSERT INTO _bunny.schema_syncs (mirror_id, command_id, source_schema, source_table, kind, sentence)
                 SELECT $1, $2, $3, $4, $5, $6 WHERE NOT EXISTS (
                     SELECT FROM _bunny.schema_syncs WHERE mirror_id = $1 AND command_id = $2 AND source_schema = $3
                         AND source_table = $4 AND kind = $5 AND sentence = $6)",
                &[&mirror_id, &command_id, &source.schema, &source.name, &entry.as_str(), sentence],
            )
            .await
            .map_err(Error::sql(format!("noting what a schema sync did to {source}")))?;
    }
    Ok(())
}

/// The command that main holds for.
pub async fn held<C: GenericClient + Sync>(client: &C, mirror_id: Uuid) -> Result<Option<Uuid>> {
    let row = client
        .query_opt(
            "SELECT command_id FROM _bunny.schema_syncs WHERE mirror_id = $1 AND kind = $2 LIMIT 1",
            &[&mirror_id, &Entry::Held.as_str()],
        )
        .await
        .map_err(Error::sql("looking for a schema sync that main holds for"))?;
    Ok(row.map(|row| row.get(0)))
}

/// Remembers that main holds for a command, and for no other.
pub async fn hold<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    command_id: Uuid,
) -> Result<()> {
    let nowhere = TableName::new("", "");
    put_entries(
        client,
        (mirror_id, command_id),
        &nowhere,
        Entry::Held,
        &[String::new()],
    )
    .await
}

/// Remembers that every table has had its turn: main holds no more.
pub async fn done<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    command_id: Uuid,
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.schema_syncs SET kind = $3 WHERE mirror_id = $1 AND command_id = $2 AND kind = $4",
            &[&mirror_id, &command_id, &Entry::Done.as_str(), &Entry::Held.as_str()],
        )
        .await
        .map_err(Error::sql("noting that a schema sync is done"))?;
    Ok(())
}

/// Whether every table has had its turn.
pub async fn is_done<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    command_id: Uuid,
) -> Result<bool> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM _bunny.schema_syncs WHERE mirror_id = $1 AND command_id = $2 AND kind = $3)",
            &[&mirror_id, &command_id, &Entry::Done.as_str()],
        )
        .await
        .map_err(Error::sql("looking whether a schema sync is done"))?;
    Ok(row.get(0))
}

/// The sentences of one kind, in the order they were written.
pub async fn entries<C: GenericClient + Sync>(
    client: &C,
    (mirror_id, command_id): (Uuid, Uuid),
    entry: Entry,
) -> Result<Vec<(TableName, String)>> {
    let rows = client
        .query(
            "SELECT source_schema, source_table, sentence FROM _bunny.schema_syncs
             WHERE mirror_id = $1 AND command_id = $2 AND kind = $3 ORDER BY id",
            &[&mirror_id, &command_id, &entry.as_str()],
        )
        .await
        .map_err(Error::sql("reading what a schema sync did"))?;
    let one = |row: &tokio_postgres::Row| {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        (table, row.get(2))
    };
    Ok(rows.iter().map(one).collect())
}

/// Forgets every schema sync of a mirror but one.
pub async fn forget_schema_syncs<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    but: Option<Uuid>,
) -> Result<()> {
    client
        .execute(
            "DELETE FROM _bunny.schema_syncs WHERE mirror_id = $1 AND command_id IS DISTINCT FROM $2",
            &[&mirror_id, &but],
        )
        .await
        .map_err(Error::sql("forgetting former schema syncs"))?;
    Ok(())
}

/// The source's definition that a table was last brought in line with, and the columns
/// that have a place here.
pub async fn set_definition<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    definition: &serde_json::Value,
    columns: &[String],
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET definition = $4, columns = $5, updated_at = now()
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            &[
                &mirror_id,
                &source.schema,
                &source.name,
                definition,
                &columns,
            ],
        )
        .await
        .map_err(Error::sql(format!("storing the definition of {source}")))?;
    Ok(())
}
