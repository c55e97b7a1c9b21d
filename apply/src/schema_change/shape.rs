//! What a destination table was last brought in line with (`_bunny.shapes`): the version of
//! the source's table, and which column of the destination takes each of its columns.
//!
//! A shape belongs to one sync of its table; another sync makes it void, because then the
//! sync's own definition says how the table began.

use bunny_postgres::{TableDefinition, TableName};
use bunny_schemas::envelope::{ColumnSchema, EnumLabels};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::labels;
use crate::bookkeeping::TableState;
use crate::error::{Error, Result};

/// One column of the source's table as last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// 0: never recognised in the source's catalog.
    pub(crate) attnum: i16,
    /// The last version has a column of this name that was not recognised: this one, most
    /// likely, or one that has taken its name.
    #[serde(default)]
    pub(crate) unsure: bool,
    /// At the source.
    pub(crate) name: String,
    pub(crate) type_name: String,
    pub(crate) not_null: bool,
    /// The destination's column that takes its values; None: none does.
    pub(crate) into: Option<String>,
}

/// A table as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) columns: Vec<Known>,
    /// Attnums of the source's primary key, in key order; None while it is not known.
    pub(crate) primary_key: Option<Vec<i16>>,
    /// Columns of the destination whose source column is gone.
    #[serde(default)]
    pub(crate) abandoned: Vec<String>,
    /// The enums its columns are made of.
    #[serde(default)]
    pub(crate) enums: Vec<EnumLabels>,
}

impl Shape {
    /// As the table's sync left it.
    pub(crate) fn of_sync(table: &TableState) -> Option<Shape> {
        let definition: TableDefinition = serde_json::from_value(table.definition.clone()?).ok()?;
        let columns = definition
            .columns
            .iter()
            .filter(|column| table.columns.contains(&column.name))
            .map(|column| Known {
                attnum: column.attnum,
                unsure: false,
                name: column.name.clone(),
                type_name: column.type_name.clone(),
                not_null: column.not_null,
                into: Some(column.name.clone()),
            })
            .collect();
        let attnum = |name: &String| Some(definition.column(name)?.attnum);
        Some(Shape {
            columns,
            primary_key: definition.primary_key.iter().map(attnum).collect(),
            abandoned: Vec::new(),
            enums: labels::of_objects(definition.objects.as_ref()),
        })
    }

    /// The destination's column for a column of the source.
    pub(crate) fn place_of(&self, column: &str) -> Option<&str> {
        let known = self.columns.iter().find(|known| known.name == column)?;
        known.into.as_deref()
    }

    /// The column that a version's column is, if it is not new.
    pub(crate) fn position(&self, column: &ColumnSchema) -> Option<usize> {
        let by_name =
            |known: &Known| known.name == column.name && (column.attnum == 0 || known.attnum == 0);
        let by_number = |known: &Known| column.attnum != 0 && known.attnum == column.attnum;
        let position = |is: &dyn Fn(&Known) -> bool| self.columns.iter().position(is);
        position(&by_number).or_else(|| position(&by_name))
    }
}

/// The shape of a table since the sync it holds; None before the first change of it.
pub(crate) async fn load(
    client: &Client,
    mirror_id: Uuid,
    table: &TableState,
) -> Result<Option<Shape>> {
    let row = client
        .query_opt(
            "SELECT shape FROM _bunny.shapes WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3
             AND request_id IS NOT DISTINCT FROM $4 AND attempt = $5",
            &[&mirror_id, &table.source.schema, &table.source.name, &table.request_id, &table.attempt],
        )
        .await
        .map_err(Error::sql("reading the shape of a table"))?;
    Ok(row.map(|row| row.get::<_, Json<Shape>>(0).0))
}

/// The shape that was stored last, of whichever sync.
pub(crate) async fn load_any(
    client: &Client,
    mirror_id: Uuid,
    source: &TableName,
) -> Result<Option<Shape>> {
    let row = client
        .query_opt(
            "SELECT shape FROM _bunny.shapes
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            &[&mirror_id, &source.schema, &source.name],
        )
        .await
        .map_err(Error::sql("reading the shape of a table"))?;
    Ok(row.map(|row| row.get::<_, Json<Shape>>(0).0))
}

/// In the transaction that brought the table in line.
pub(crate) async fn store(
    client: &Client,
    mirror_id: Uuid,
    table: &TableState,
    shape: &Shape,
) -> Result<()> {
    let TableName { schema, name } = &table.source;
    client
        .execute(
            "INSERT INTO _bunny.shapes (mirror_id, source_schema, source_table, request_id, attempt, shape, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, now())
             ON CONFLICT (mirror_id, source_schema, source_table) DO UPDATE SET request_id = excluded.request_id,
                 attempt = excluded.attempt, shape = excluded.shape, updated_at = excluded.updated_at",
            &[&mirror_id, schema, name, &table.request_id, &table.attempt, &Json(shape)],
        )
        .await
        .map_err(Error::sql("storing the shape of a table"))?;
    Ok(())
}
