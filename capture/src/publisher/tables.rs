//! What is known of each relation the walsender speaks of: its mapping, its wire schema and
//! the columns that may leave the source.

use std::collections::{BTreeSet, HashMap};

use bunny_catalog::{Mirror, MirrorTable};
use bunny_postgres::introspect::ColumnLook;
use bunny_postgres::pgoutput::{Relation, Tuple, TupleValue};
use bunny_postgres::{Session, TableName};
use bunny_schemas::control::TableRecord;
use bunny_schemas::envelope::{ColumnSchema, Encoder, TableSchema, Value};
use bunny_schemas::registry::Registry;
use foldhash::fast::RandomState;
use tokio::sync::watch;

use super::facts::{self, Facts};
use super::visibility::{Given, Look, Visibility};
use super::{labels::Labels, recognise::Former};
use crate::error::{Error, Result};
use crate::exclusion::{Exclusion, Judged};
use crate::table_topics::{TableTopic, TopicPerTable};
use crate::watch::{Exclusions, TableFacts};

/// `REPLICA IDENTITY FULL` as the walsender writes it.
const IDENTITY_FULL: u8 = b'f';

/// One mapped relation, in the version the walsender last described.
pub(crate) struct Published {
    pub(crate) table: TableName,
    pub(crate) encoder: Encoder,
    /// Where its changes go too, if anywhere.
    pub(crate) topic: Option<TableTopic>,
    /// For each column the walsender sends: whether it may leave the source.
    kept: Vec<bool>,
    has_key: bool,
    /// For each column the walsender sends: the labels known of its enum. Empty where none is.
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

/// A relation whose changes must not be published: they are not the mapped table's, or hold
/// what may be excluded.
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

/// What the stream knows of a mapped table before it is described.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    /// 0 for one that is gone.
    pub(crate) oid: u32,
    pub(crate) exclusion: Exclusion,
    /// What the position topic holds of it, or will with the next commit.
    pub(crate) record: Option<TableRecord>,
}

/// The relations of one replication session.
pub(crate) struct Tables {
    mirror: String,
    slot: String,
    mappings: HashMap<TableName, MirrorTable>,
    /// The mapped tables whose changes are captured.
    expected: HashMap<TableName, Expected>,
    known: HashMap<u32, Known, RandomState>,
    visibility: Visibility,
    /// The last transaction known to be visible in the catalog, and when that was.
    visible: Option<(Given, Look)>,
    /// Tables of which more excluded columns are known than their records say.
    learned: BTreeSet<TableName>,
    exclusions: watch::Sender<Exclusions>,
    topic_per_table: Option<TopicPerTable>,
}

impl Tables {
    pub(crate) fn new(
        mirror: &Mirror,
        expected: HashMap<TableName, Expected>,
        exclusions: watch::Sender<Exclusions>,
        visibility: Visibility,
        topic_per_table: Option<TopicPerTable>,
    ) -> Self {
        Self {
            mirror: mirror.name.clone(),
            slot: mirror.slot_name.clone(),
            mappings: mirror
                .tables
                .iter()
                .map(|table| (table.source.clone(), table.clone()))
                .collect(),
            expected,
            known: HashMap::default(),
            visibility,
            visible: None,
            learned: BTreeSet::new(),
            exclusions,
            topic_per_table,
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
        self.describe_as_of(relation, look, source, registry, true)
            .await
    }

    /// `is_now`: the stream has just come to the description, so what is found by it counts
    /// for the next.
    async fn describe_as_of(
        &mut self,
        relation: Relation,
        look: Look,
        source: &Session,
        registry: &Registry,
        is_now: bool,
    ) -> Result<()> {
        let oid = relation.oid;
        let name = TableName {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
        };
        if let Some((table, reason)) = self.displaced(oid, &name) {
            self.displace(relation, table, reason);
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
        let recognised = former.map(|former| &former.recognised);
        let facts = facts::read(&relation, recognised, (&self.slot, look), source).await?;
        let expected = self
            .expected
            .entry(name.clone())
            .or_insert_with(|| Expected {
                oid,
                exclusion: Exclusion::seen(None, &mapping.exclude_columns, &facts.attributes),
                record: None,
            });
        expected.exclusion.require(&mapping.exclude_columns);
        let described: Vec<&str> = relation.columns.iter().map(|c| c.name.as_str()).collect();
        let judged = expected.exclusion.judge(&described, &facts.attributes);
        let kept = match judged.and_then(|judged| names_rows(&relation, judged)) {
            Ok(Judged { kept, learned }) => {
                if is_now {
                    let more = expected.exclusion.add_numbers(&learned);
                    expected.exclusion = learned;
                    if more {
                        self.learned.insert(name.clone());
                        self.exclusions.send_modify(|all| {
                            if let Some((_, known)) =
                                all.get_mut(&name).filter(|(of, _)| *of == oid)
                            {
                                known.add_numbers(&expected.exclusion);
                            }
                        });
                    }
                }
                kept
            }
            Err(reason) => {
                let reason = format!("source table {name}: {reason}");
                self.displace(relation, name, reason);
                return Ok(());
            }
        };
        let published = publish(
            &self.mirror,
            mapping,
            relation,
            former,
            facts,
            kept,
            registry,
        )
        .await?;
        if let Some(mut published) = published {
            if let Some(topics) = &self.topic_per_table {
                published.topic = Some(topics.topic(&published.schema, registry).await?);
            }
            self.known.insert(oid, Known::Mapped(Box::new(published)));
        }
        Ok(())
    }

    fn displace(&mut self, relation: Relation, table: TableName, reason: String) {
        let oid = relation.oid;
        let said = matches!(self.known.get(&oid), Some(Known::Displaced(before)) if before.table == table && before.said);
        let displaced = Displaced {
            relation,
            table,
            reason,
            said,
        };
        self.known.insert(oid, Known::Displaced(displaced));
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
                self.describe_as_of(described, look, source, registry, false)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// The stream has come to where tables were as `later` says: changes of other oids are
    /// captured from now on.
    pub(crate) async fn expect(
        &mut self,
        later: HashMap<TableName, Expected>,
        source: &Session,
        registry: &Registry,
    ) -> Result<()> {
        let before = std::mem::take(&mut self.expected);
        self.expected = later;
        for (name, expected) in &mut self.expected {
            let same = before.get(name).filter(|same| same.oid == expected.oid);
            if let Some(same) = same {
                let later = std::mem::replace(&mut expected.exclusion, same.exclusion.clone());
                expected.exclusion.advance(&later);
            }
        }
        let is_same = |name: &TableName, now: &Expected| {
            let before = before.get(name);
            before.is_some_and(|was| was.oid == now.oid && was.exclusion == now.exclusion)
        };
        if before.len() == self.expected.len()
            && self.expected.iter().all(|(name, now)| is_same(name, now))
        {
            return Ok(());
        }
        let described: Vec<Relation> = self
            .known
            .values()
            .map(|known| match known {
                Known::Mapped(published) => published.described.clone(),
                Known::Displaced(displaced) => displaced.relation.clone(),
                Known::Unmapped(relation) => relation.clone(),
            })
            .collect();
        // Where a table has changed since it was described, another description comes before
        // its next row; this one only counts where it has not.
        for relation in described {
            self.describe_as_of(relation, Look::Late, source, registry, false)
                .await?;
        }
        Ok(())
    }

    /// The records that the next commit is to hold: those `found` by the watch, and those of
    /// tables of whose excluded columns the stream has learned: it is not to be forgotten
    /// once the stream has gone on.
    pub(crate) fn records(
        &mut self,
        found: &[(TableName, Option<TableRecord>)],
    ) -> Vec<(TableName, Option<TableRecord>)> {
        let mut records: Vec<(TableName, Option<TableRecord>)> = found.to_vec();
        for name in &self.learned {
            let expected = self.expected.get(name);
            if let Some(record) = expected.and_then(|expected| expected.record.as_ref())
                && !records.iter().any(|(found, _)| found == name)
            {
                records.push((name.clone(), Some(record.clone())));
            }
        }
        for (name, record) in &mut records {
            if let (Some(record), Some(expected)) = (record, self.expected.get_mut(name)) {
                *record = TableFacts::with_excluded(record, &expected.exclusion);
                expected.record = Some(record.clone());
                self.learned.remove(name);
            }
        }
        records
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

    /// Those of `oids` that are mapped tables whose changes are captured.
    pub(crate) fn all_of(&self, oids: &[u32]) -> Result<Vec<&Published>> {
        let found = oids.iter().map(|oid| self.get(*oid));
        found.filter_map(Result::transpose).collect()
    }

    /// What a relation is called: by the mirror, or by the source if it is nothing to the mirror.
    pub(crate) fn name(&self, oid: u32) -> Option<TableName> {
        match self.known.get(&oid)? {
            Known::Mapped(published) => Some(published.table.clone()),
            Known::Displaced(displaced) => Some(displaced.table.clone()),
            Known::Unmapped(relation) => Some(TableName {
                schema: relation.schema.clone(),
                name: relation.name.clone(),
            }),
        }
    }

    /// The mapped table that misses the changes of `oid` under this name, and why.
    fn displaced(&self, oid: u32, name: &TableName) -> Option<(TableName, String)> {
        let expected = self.expected.get(name);
        if expected.is_none_or(|expected| expected.oid == oid) && self.mappings.contains_key(name) {
            return None;
        }
        let mut all = self.expected.iter();
        if let Some((table, _)) = all.find(|(_, expected)| expected.oid == oid) {
            if table == name {
                let reason = format!(
                    "the table {table} has left the mirror; sync it again if it comes back"
                );
                return Some((table.clone(), reason));
            }
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

/// Whether all columns of the primary key are published. If not, it is taken out of the facts:
/// as no key, where a column of it never is (excluded or generated), else as not known,
/// because the catalog is ahead of the description.
fn keep_whole_key(
    columns: &mut [facts::Known],
    kept: &[bool],
    primary_key: &[i16],
    attributes: &[ColumnLook],
) -> bool {
    let of = |attnum: i16| columns.iter().position(|column| column.attnum == attnum);
    let missing: Vec<i16> = primary_key
        .iter()
        .copied()
        .filter(|attnum| !of(*attnum).is_some_and(|at| kept[at]))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let is_generated = |attnum: i16| {
        let mut attributes = attributes.iter();
        attributes.any(|column| column.attnum == attnum && column.is_generated)
    };
    let never = |attnum: i16| is_generated(attnum) || of(attnum).is_some();
    let is_known = missing.iter().all(|attnum| never(*attnum));
    for column in columns {
        match &mut column.facts {
            Some(facts) if is_known => {
                facts.primary_key = None;
                facts.key_is_deferrable = false;
            }
            Some(facts) if facts.primary_key.is_some() => column.facts = None,
            _ => {}
        }
    }
    false
}

/// Refuses a description whose rows are told apart by an excluded column.
fn names_rows(relation: &Relation, judged: Judged) -> std::result::Result<Judged, String> {
    let mut columns = relation.columns.iter().zip(&judged.kept);
    let is_full = relation.replica_identity == IDENTITY_FULL;
    match columns.find(|(column, kept)| column.key && !**kept && !is_full) {
        None => Ok(judged),
        Some((column, _)) => Err(format!(
            "its excluded column {} has become part of the key by which its rows are found; give it another replica identity (REPLICA IDENTITY FULL) and sync it again",
            column.name
        )),
    }
}

/// The version that `relation` describes; None when it is `former` still.
async fn publish(
    mirror: &str,
    mapping: &MirrorTable,
    relation: Relation,
    former: Option<&Published>,
    facts: Facts,
    kept: Vec<bool>,
    registry: &Registry,
) -> Result<Option<Published>> {
    let Facts {
        columns: mut catalog,
        recognised,
        attributes,
        primary_key,
        identity_is_generated,
    } = facts;
    let is_whole = keep_whole_key(&mut catalog, &kept, &primary_key, &attributes);
    let mut labels: Vec<Option<Labels>> = catalog
        .iter()
        .zip(&kept)
        .map(|(known, kept)| Labels::of(known.facts.as_ref()).filter(|_| *kept))
        .collect();
    if labels.iter().all(Option::is_none) {
        // No row of such a table is walked over for labels.
        labels.clear();
    }
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
            // what names a row. A part of a key names none.
            key: if full {
                is_whole && facts.in_primary_key
            } else {
                column.key && !identity_is_generated
            },
            facts: facts.facts,
        })
        .collect();
    let has_key = columns.iter().any(|column| column.key);
    let schema = TableSchema {
        mirror: mirror.to_owned(),
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
        topic: None,
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
