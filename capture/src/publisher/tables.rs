//! What is known of each relation the walsender speaks of: its mapping, its wire schema and
//! the columns that may leave the source.

use std::collections::HashMap;

use bunny_catalog::{Mirror, MirrorTable};
use bunny_postgres::pgoutput::{Relation, Tuple, TupleValue};
use bunny_postgres::{Session, TableName};
use bunny_schemas::envelope::{ColumnSchema, Encoder, TableSchema, Value};
use bunny_schemas::registry::Registry;

use crate::error::{Error, Result};

/// `REPLICA IDENTITY FULL` as the walsender writes it.
const IDENTITY_FULL: u8 = b'f';

/// One mapped relation, in the version the walsender last described.
pub(crate) struct Published {
    pub(crate) table: TableName,
    pub(crate) encoder: Encoder,
    /// For each column the walsender sends: whether it may leave the source.
    kept: Vec<bool>,
    has_key: bool,
    described: Relation,
}

impl Published {
    /// Whether events of this table carry a record key.
    pub(crate) fn has_key(&self) -> bool {
        self.has_key
    }

    /// The values of `tuple` that may leave the source. Excluded columns end here, on every
    /// version of the table.
    pub(crate) fn keep<'a>(&self, tuple: &Tuple<'a>, into: &mut Vec<Value<'a>>) -> Result<()> {
        into.clear();
        if tuple.len() != self.kept.len() {
            return Err(Error::transient(format!(
                "{}: the source sent a row of {} columns after describing {}",
                self.table,
                tuple.len(),
                self.kept.len()
            )));
        }
        for (value, kept) in tuple.iter().zip(&self.kept) {
            if !kept {
                continue;
            }
            into.push(match value {
                TupleValue::Null => Value::Null,
                TupleValue::Unchanged => Value::Unchanged,
                TupleValue::Text(text) => Value::Text(text),
                TupleValue::Binary(_) => {
                    return Err(Error::transient(format!(
                        "{}: the source sent a binary value, which was not asked for",
                        self.table
                    )));
                }
            });
        }
        Ok(())
    }
}

enum Known {
    Mapped(Box<Published>),
    /// Published, but not by this mirror's mappings (a publication the user brought).
    Unmapped,
}

/// The relations of one replication session.
pub(crate) struct Tables {
    mirror: String,
    mappings: HashMap<TableName, MirrorTable>,
    /// False when the user brought the publication, which may hold more than is mapped.
    own_publications: bool,
    known: HashMap<u32, Known>,
}

impl Tables {
    pub(crate) fn new(mirror: &Mirror) -> Self {
        Self {
            mirror: mirror.name.clone(),
            mappings: mirror
                .tables
                .iter()
                .map(|table| (table.source.clone(), table.clone()))
                .collect(),
            own_publications: !mirror.publication_given,
            known: HashMap::new(),
        }
    }

    /// Takes in a Relation message. The walsender repeats it after every invalidation,
    /// changed or not, so an equal one costs nothing.
    pub(crate) async fn describe(
        &mut self,
        relation: Relation,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        if let Some(Known::Mapped(published)) = self.known.get(&relation.oid)
            && published.described == relation
        {
            return Ok(());
        }
        let oid = relation.oid;
        let name = TableName {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
        };
        let known = match self.mappings.get(&name) {
            None if self.own_publications => {
                return Err(Error::fatal(format!(
                    "the source publishes {name} to this mirror, which does not map it: a mirrored table was renamed or swapped, or someone altered the publication; rename it back, or delete the mirror and create it again with the new name"
                )));
            }
            None => Known::Unmapped,
            Some(mapping) => {
                let published = publish(&self.mirror, mapping, relation, source, registry).await?;
                Known::Mapped(Box::new(published))
            }
        };
        self.known.insert(oid, known);
        Ok(())
    }

    /// The mapped table behind `oid`; `None` when the mirror does not map it.
    pub(crate) fn get(&self, oid: u32) -> Result<Option<&Published>> {
        match self.known.get(&oid) {
            Some(Known::Mapped(published)) => Ok(Some(published)),
            Some(Known::Unmapped) => Ok(None),
            None => Err(Error::transient(format!(
                "the source sent a change of relation {oid} before describing it"
            ))),
        }
    }
}

async fn publish(
    mirror: &str,
    mapping: &MirrorTable,
    relation: Relation,
    source: &Session,
    registry: &Registry,
) -> Result<Published> {
    let catalog = column_facts(&relation, source).await?;
    let kept: Vec<bool> = relation
        .columns
        .iter()
        .map(|column| !mapping.exclude_columns.contains(&column.name))
        .collect();
    let full = relation.replica_identity == IDENTITY_FULL;
    let columns: Vec<ColumnSchema> = relation
        .columns
        .iter()
        .zip(catalog)
        .zip(&kept)
        .filter(|(_, kept)| **kept)
        .map(|((column, facts), _)| ColumnSchema {
            name: column.name.clone(),
            attnum: facts.attnum,
            type_oid: column.type_oid,
            type_name: facts.type_name,
            typmod: column.typmod,
            not_null: facts.not_null,
            // Under FULL every column is flagged; the primary key, where there is one, is
            // what names a row.
            key: if full {
                facts.in_primary_key
            } else {
                column.key
            },
        })
        .collect();
    let has_key = columns.iter().any(|column| column.key);
    let schema = TableSchema {
        mirror: mirror.to_owned(),
        schema: relation.schema.clone(),
        table: relation.name.clone(),
        columns,
    };
    let (value_id, key_id) = registry.register_table(&schema).await?;
    Ok(Published {
        table: mapping.source.clone(),
        encoder: Encoder::new(&schema, value_id, key_id),
        kept,
        has_key,
        described: relation,
    })
}

struct ColumnFacts {
    attnum: i16,
    not_null: bool,
    type_name: String,
    in_primary_key: bool,
}

/// What the Relation message leaves out, from the source's catalog as it is now. A column
/// dropped or renamed since then has attnum 0.
async fn column_facts(relation: &Relation, source: &Session) -> Result<Vec<ColumnFacts>> {
    let names: Vec<&str> = relation.columns.iter().map(|c| c.name.as_str()).collect();
    let types: Vec<u32> = relation.columns.iter().map(|c| c.type_oid).collect();
    let typmods: Vec<i32> = relation.columns.iter().map(|c| c.typmod).collect();
    let rows = source
        .query(
            "SELECT coalesce(a.attnum, 0)::int2,
                    coalesce(a.attnotnull, false),
                    coalesce(format_type(u.type, u.typmod), 'unknown'),
                    coalesce(i.indimmediate AND EXISTS (
                        SELECT FROM unnest(i.indkey) WITH ORDINALITY k (attnum, position)
                        WHERE k.attnum = a.attnum AND k.position <= i.indnkeyatts), false)
             FROM unnest($1::text[], $2::oid[], $3::int4[])
                  WITH ORDINALITY AS u (name, type, typmod, position)
             LEFT JOIN pg_attribute a
                    ON a.attrelid = $4 AND a.attname = u.name AND NOT a.attisdropped
             LEFT JOIN pg_index i ON i.indrelid = $4 AND i.indisprimary
             ORDER BY u.position",
            &[&names, &types, &typmods, &relation.oid],
        )
        .await
        .map_err(|error| Error::Query {
            doing: "describing a table's columns",
            error,
        })?;
    Ok(rows
        .iter()
        .map(|row| ColumnFacts {
            attnum: row.get(0),
            not_null: row.get(1),
            type_name: row.get(2),
            in_primary_key: row.get(3),
        })
        .collect())
}
