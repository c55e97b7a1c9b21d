//! The facts of a table's columns, asked for outside of the stream.

use bunny_postgres::pgoutput::{Relation, RelationColumn};
use bunny_postgres::{Session, TableDefinition};
use bunny_schemas::envelope::ColumnFacts;

use super::facts;
use super::visibility::Look;
use crate::error::Result;

/// What a version of the table would say of `columns`, of a table that nobody can alter now.
pub(crate) async fn describe(
    definition: &TableDefinition,
    columns: &[String],
    slot: &str,
    source: &Session,
) -> Result<Vec<(String, ColumnFacts)>> {
    let described = definition
        .columns
        .iter()
        .filter(|column| column.generated.is_none())
        .map(|column| RelationColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            typmod: column.typmod,
            key: false,
        });
    let relation = Relation {
        oid: definition.oid,
        schema: definition.name.schema.clone(),
        name: definition.name.name.clone(),
        replica_identity: b'd',
        columns: described.collect(),
    };
    let found = facts::read(&relation, None, (slot, Look::InTime), source).await?;
    let named = relation.columns.into_iter().zip(found.columns);
    Ok(named
        .filter(|(column, _)| columns.contains(&column.name))
        .map(|(column, known)| (column.name, known.facts.unwrap_or_default()))
        .collect())
}
