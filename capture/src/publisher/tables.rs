//! What is known of each relation the walsender speaks of: its mapping, its wire schema and
//! the columns that may leave the source.

use std::collections::HashMap;

use bunny_catalog::{Mirror, MirrorTable};
use bunny_postgres::pgoutput::{Relation, Tuple, TupleValue};
use bunny_postgres::{Session, TableName};
use bunny_schemas::envelope::{ColumnSchema, Encoder, TableSchema, Value};
use bunny_schemas::registry::Registry;

use super::visibility::{Given, Look, Visibility};
use super::{facts, labels::Labels, recognise::Former};
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
    /// For each column the walsender sends: the labels known of its enum.
    labels: Vec<Option<Labels>>,
    schema: TableSchema,
    described: Relation,
    /// What the next version is recognised by.
    recognised: Former,
}

impl Published {
    /// Whether events of this table carry a record key.
    pub(crate) fn has_key(&self) -> bool {
        self.has_key
    }

    /// Whether the row holds an enum label that this version does not know: labels are added
    /// without a word from the walsender.
    pub(crate) fn has_new_label(&self, tuple: &Tuple<'_>) -> bool {
        tuple.iter().zip(&self.labels).any(|(value, labels)| {
            matches!((value, labels), (TupleValue::Text(text), Some(labels)) if !labels.know(text))
        })
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
    /// A mapped table under another name, or another table under a mapped name: its
    /// changes must not be published as the table's, and are missed there.
    Displaced(Displaced),
    /// Published, but nothing to the mirror's mappings.
    Unmapped(Relation),
}

/// Whose changes a relation's are not, any more or yet.
pub(crate) struct Displaced {
    relation: Relation,
    /// The mapped table that misses them.
    pub(crate) table: TableName,
    pub(crate) reason: String,
    /// The log says so already.
    said: bool,
}

/// What a change of a relation is to the mirror.
pub(crate) enum Captured<'t> {
    /// A change of a mapped table.
    Of(&'t Published),
    /// One that the table misses: the first, so the log has to say so.
    Missed(&'t Displaced),
    Not,
}

/// The relations of one replication session.
pub(crate) struct Tables {
    mirror: String,
    slot: String,
    mappings: HashMap<TableName, MirrorTable>,
    /// Oids of the mapped tables whose changes are captured; 0 for one that is gone.
    oids: HashMap<TableName, u32>,
    known: HashMap<u32, Known>,
    visibility: Visibility,
    /// The last transaction known to be visible in the catalog, and when that was.
    visible: Option<(Given, Look)>,
}

impl Tables {
    pub(crate) fn new(
        mirror: &Mirror,
        oids: HashMap<TableName, u32>,
        visibility: Visibility,
    ) -> Self {
        Self {
            mirror: mirror.name.clone(),
            slot: mirror.slot_name.clone(),
            mappings: mirror
                .tables
                .iter()
                .map(|table| (table.source.clone(), table.clone()))
                .collect(),
            oids,
            known: HashMap::new(),
            visibility,
            visible: None,
        }
    }

    /// Takes in a Relation message of a transaction. The walsender repeats it after every
    /// invalidation, changed or not, and says nothing of defaults, NOT NULL or primary keys:
    /// so the catalog is asked each time, and a new version begins only where something differs.
    pub(crate) async fn described(
        &mut self,
        relation: Relation,
        given: Given,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        let look = self.see(given, source).await?;
        self.describe(relation, look, source, registry).await
    }

    async fn see(&mut self, given: Given, source: &Session) -> Result<Look> {
        if let Some((_, look)) = self.visible.filter(|(seen, _)| *seen == given) {
            return Ok(look);
        }
        let look = self.visibility.wait_for(given, source).await?;
        self.visible = Some((given, look));
        Ok(look)
    }

    async fn describe(
        &mut self,
        relation: Relation,
        look: Look,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        let oid = relation.oid;
        let name = TableName {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
        };
        if let Some((table, reason)) = self.displaced(oid, &name) {
            let said = matches!(self.known.get(&oid), Some(Known::Displaced(before)) if before.table == table && before.said);
            let displaced = Displaced {
                relation,
                table,
                reason,
                said,
            };
            self.known.insert(oid, Known::Displaced(displaced));
            return Ok(());
        }
        let Some(mapping) = self.mappings.get(&name) else {
            self.known.insert(oid, Known::Unmapped(relation));
            return Ok(());
        };
        let former = match self.known.get(&oid) {
            Some(Known::Mapped(former)) => Some(former.as_ref()),
            _ => None,
        };
        let stream = StreamOf {
            mirror: &self.mirror,
            slot: &self.slot,
            look,
        };
        let published = publish(stream, mapping, relation, former, source, registry).await?;
        if let Some(published) = published {
            self.known.insert(oid, Known::Mapped(Box::new(published)));
        }
        Ok(())
    }

    /// Asks the catalog again about a relation, which the walsender has not described anew.
    pub(crate) async fn describe_again(
        &mut self,
        oid: u32,
        given: Given,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        match self.known.get(&oid) {
            Some(Known::Mapped(published)) => {
                let described = published.described.clone();
                let look = self.see(given, source).await?;
                self.describe(described, look, source, registry).await
            }
            _ => Ok(()),
        }
    }

    /// Changes of other oids are captured from now on.
    pub(crate) async fn expect(
        &mut self,
        oids: HashMap<TableName, u32>,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        if self.oids == oids {
            return Ok(());
        }
        self.oids = oids;
        let described: Vec<Relation> = self
            .known
            .values()
            .map(|known| match known {
                Known::Mapped(published) => published.described.clone(),
                Known::Displaced(displaced) => displaced.relation.clone(),
                Known::Unmapped(relation) => relation.clone(),
            })
            .collect();
        for relation in described {
            self.describe(relation, Look::Late, source, registry)
                .await?;
        }
        Ok(())
    }

    /// What a change of `oid` is. A displaced table's is given out once.
    pub(crate) fn captured(&mut self, oid: u32) -> Result<Captured<'_>> {
        match self.known.get_mut(&oid) {
            Some(Known::Mapped(published)) => Ok(Captured::Of(published)),
            Some(Known::Displaced(displaced)) => Ok(if displaced.said {
                Captured::Not
            } else {
                displaced.said = true;
                Captured::Missed(displaced)
            }),
            Some(Known::Unmapped(_)) => Ok(Captured::Not),
            None => Err(undescribed(oid)),
        }
    }

    /// The mapped table behind `oid`; `None` when its changes are not captured.
    pub(crate) fn get(&self, oid: u32) -> Result<Option<&Published>> {
        match self.known.get(&oid) {
            Some(Known::Mapped(published)) => Ok(Some(published)),
            Some(Known::Displaced(_) | Known::Unmapped(_)) => Ok(None),
            None => Err(undescribed(oid)),
        }
    }

    /// The mapped table that misses the changes of `oid` under this name, and why.
    fn displaced(&self, oid: u32, name: &TableName) -> Option<(TableName, String)> {
        let expected = self.oids.get(name);
        if expected.is_none_or(|expected| *expected == oid) && self.mappings.contains_key(name) {
            return None;
        }
        let mut oids = self.oids.iter();
        if let Some((table, _)) = oids.find(|(_, expected)| **expected == oid) {
            let reason = format!(
                "the source table {table} was renamed to {name}; rename it back and sync it again, or take it out of the mirror"
            );
            return Some((table.clone(), reason));
        }
        self.mappings.contains_key(name).then(|| {
            let reason = format!(
                "the source table {name} is another one than before (dropped and created again, or another was given its name); sync it again"
            );
            (name.clone(), reason)
        })
    }
}

fn undescribed(oid: u32) -> Error {
    Error::transient(format!(
        "the source sent a change of relation {oid} before describing it"
    ))
}

/// Where a description comes from.
struct StreamOf<'a> {
    mirror: &'a str,
    slot: &'a str,
    look: Look,
}

/// The version that `relation` describes; None when it is `former` still.
async fn publish(
    stream: StreamOf<'_>,
    mapping: &MirrorTable,
    relation: Relation,
    former: Option<&Published>,
    source: &Session,
    registry: &Registry,
) -> Result<Option<Published>> {
    let recognised = former.map(|former| &former.recognised);
    let (catalog, recognised) =
        facts::read(&relation, recognised, (stream.slot, stream.look), source).await?;
    let kept: Vec<bool> = relation
        .columns
        .iter()
        .map(|column| !mapping.exclude_columns.contains(&column.name))
        .collect();
    let labels = catalog
        .iter()
        .zip(&kept)
        .map(|(known, kept)| Labels::of(known.facts.as_ref()).filter(|_| *kept))
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
            facts: facts.facts,
        })
        .collect();
    let has_key = columns.iter().any(|column| column.key);
    let schema = TableSchema {
        mirror: stream.mirror.to_owned(),
        schema: relation.schema.clone(),
        table: relation.name.clone(),
        columns,
    };
    if former
        .is_some_and(|former| former.described == relation && says_no_more(&former.schema, &schema))
    {
        return Ok(None);
    }
    let (value_id, key_id) = registry.register_table(&schema).await?;
    Ok(Some(Published {
        table: mapping.source.clone(),
        encoder: Encoder::new(&schema, value_id, key_id),
        kept,
        has_key,
        labels,
        schema,
        described: relation,
        recognised,
    }))
}

/// Whether the later look at the same description adds nothing to the former: it found the
/// same, or the catalog has moved on and a column is not to be recognised in it any more.
fn says_no_more(former: &TableSchema, later: &TableSchema) -> bool {
    let is_lost = former
        .columns
        .iter()
        .zip(&later.columns)
        .any(|(former, later)| former.facts.is_some() && later.facts.is_none());
    is_lost || former == later
}
