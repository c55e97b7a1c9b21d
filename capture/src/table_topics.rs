//! A topic for each table, beside the change topic: `table_topics` of a mirror.
//!
//! Its records are made with the change's event and sent right after it, so they are in the same
//! Kafka transaction as the event and the position that covers it. Whatever is dropped, repeated
//! or taken back of the one is so of the other (invariant I2), and where a run goes on is found
//! in the change topic alone.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bunny_catalog::TableTopics;
use bunny_postgres::TableName;
use bunny_schemas::debezium::{
    AvroSchemas, NEW_KEY_HEADER, OLD_KEY_HEADER, Origin, RowEncoder, RowEvent,
};
use bunny_schemas::envelope::{Op, Source, TableSchema, Value};
use bunny_schemas::kafka::{KafkaConfig, TopicKind};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use rdkafka::error::RDKafkaErrorCode;

use crate::error::{Error, Result};
use crate::run::Run;

/// How many topics are made or looked at at a time.
const TOPICS_AT_ONCE: usize = 8;

/// Makes the topics of the mapped tables, or checks those that are there.
///
/// # Errors
/// A topic has a setting under which records could be refused, or Kafka does not take its name.
pub(crate) async fn ensure(run: &Run) -> Result<()> {
    if !is_on(run) {
        return Ok(());
    }
    let config = &run.mirror.config;
    let kind = TopicKind::Table {
        // A topic that keeps nothing would be read by nobody.
        retention_hours: config.topic_retention_hours.max(1),
    };
    let tables = run.mirror.tables.iter();
    let names: Vec<String> = tables.map(|table| name(run, &table.source)).collect();
    let kafka = run.options.kafka.clone();
    stream::iter(names)
        .map(move |name| ensure_one(kafka.clone(), name, kind))
        .buffer_unordered(TOPICS_AT_ONCE)
        .try_collect()
        .await
}

async fn ensure_one(kafka: KafkaConfig, name: String, kind: TopicKind) -> Result<()> {
    match kafka.ensure_topic(&name, kind).await {
        Err(error) if error.kafka_code() == Some(RDKafkaErrorCode::InvalidTopic) => {
            Err(Error::fatal(format!(
                "Kafka does not take {name} as a topic's name, most likely because another topic's differs from it in nothing but dots and underscores; delete or rename that one, or map the table in a mirror of another name"
            )))
        }
        answer => Ok(answer.map(|_| ())?),
    }
}

/// The topics of all tables that are mapped, or were once.
pub(crate) async fn all_names(run: &Run) -> Result<BTreeSet<String>> {
    if !is_on(run) {
        return Ok(BTreeSet::new());
    }
    let taken_out = run.options.catalog.tables_taken_out(run.mirror.id).await?;
    let taken_out = taken_out
        .iter()
        .filter_map(|table| TableName::parse(table).ok());
    let mapped = run.mirror.tables.iter().map(|table| table.source.clone());
    Ok(mapped
        .chain(taken_out)
        .map(|table| name(run, &table))
        .collect())
}

fn is_on(run: &Run) -> bool {
    run.mirror.config.table_topics != TableTopics::Off
}

fn name(run: &Run, table: &TableName) -> String {
    let topics = &run.options.topics;
    topics.table(&run.mirror.slug, &table.schema, &table.name)
}

/// What the topics of a mirror's tables have in common.
pub(crate) struct TopicPerTable {
    topics: Topics,
    slug: String,
    origin: Origin,
    format: Format,
}

/// What their records are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Avro,
}

impl TopicPerTable {
    /// `None` where the mirror has no such topics.
    pub(crate) fn of(run: &Run) -> Option<Self> {
        let topics = &run.options.topics;
        let slug = &run.mirror.slug;
        let format = match run.mirror.config.table_topics {
            TableTopics::Off => return None,
            TableTopics::Debezium => Format::Json,
            TableTopics::DebeziumAvro => Format::Avro,
        };
        Some(Self {
            topics: topics.clone(),
            slug: slug.clone(),
            origin: Origin {
                name: topics.table_prefix(slug).into(),
                database: run.context.source.database.as_str().into(),
            },
            format,
        })
    }

    /// The topic of a table, for the records of one version of it. Their schemas are registered
    /// before there is one.
    pub(crate) async fn topic(
        &self,
        schema: &TableSchema,
        registry: &Registry,
    ) -> Result<TableTopic> {
        let name = self.name(schema);
        let encoder = match self.format {
            Format::Json => RowEncoder::json(schema, &self.origin),
            Format::Avro => {
                let schemas = AvroSchemas::of(schema, &self.origin);
                let ids = registry.register_topic(&name, &schemas).await?;
                RowEncoder::avro(schema, &self.origin, ids)
            }
        };
        Ok(TableTopic::new(name, schema, encoder))
    }

    fn name(&self, schema: &TableSchema) -> String {
        self.topics.table(&self.slug, &schema.schema, &schema.table)
    }
}

/// The topic of one table, in one version of it.
pub(crate) struct TableTopic {
    name: Arc<str>,
    has_key: bool,
    encoder: RowEncoder,
}

impl fmt::Display for TableTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl TableTopic {
    fn new(name: String, schema: &TableSchema, encoder: RowEncoder) -> Self {
        Self {
            name: name.into(),
            has_key: schema.has_key(),
            encoder,
        }
    }

    /// Appends the records of one change. An update that changes the key is a delete of the old
    /// one and a create of the new; a delete is followed by a record without a value.
    pub(crate) fn row(
        &self,
        records: &mut Records,
        op: Op,
        before: Option<&[Value<'_>]>,
        after: Option<&[Value<'_>]>,
        source: &Source<'_>,
    ) -> Result<()> {
        let old_key = self.key(before)?;
        let new_key = self.key(after)?;
        let event = RowEvent {
            op,
            before,
            after,
            source,
            read_us: now_us(),
        };
        if let (Some(before), Some(after)) = (before, after)
            && self.has_key
            && !self.encoder.is_same_key(before, after)
        {
            let (old_header, new_header) = (self.key_header(before)?, self.key_header(after)?);
            let delete = RowEvent {
                op: Op::Delete,
                after: None,
                ..event
            };
            let header = Some((NEW_KEY_HEADER, &*new_header));
            self.push(records, &old_key, Some(&delete), header)?;
            self.push_tombstone(records, &old_key, header)?;
            let create = RowEvent {
                op: Op::Create,
                before: None,
                ..event
            };
            let header = Some((OLD_KEY_HEADER, &*old_header));
            return self.push(records, &new_key, Some(&create), header);
        }
        let key = if after.is_some() { &new_key } else { &old_key };
        self.push(records, key, Some(&event), None)?;
        if op == Op::Delete && self.has_key {
            self.push_tombstone(records, key, None)?;
        }
        Ok(())
    }

    /// Appends the record of the table's truncate.
    pub(crate) fn truncate(&self, records: &mut Records, source: &Source<'_>) -> Result<()> {
        let event = RowEvent {
            op: Op::Truncate,
            before: None,
            after: None,
            source,
            read_us: now_us(),
        };
        self.push(records, &[], Some(&event), None)
    }

    fn key(&self, row: Option<&[Value<'_>]>) -> Result<Vec<u8>> {
        let mut key = Vec::new();
        if let Some(row) = row {
            self.encoder.key(&mut key, row)?;
        }
        Ok(key)
    }

    fn key_header(&self, row: &[Value<'_>]) -> Result<Vec<u8>> {
        let mut header = Vec::new();
        self.encoder.key_header(&mut header, row)?;
        Ok(header)
    }

    /// What takes the row of a key out of a compacted topic; of no key there is none.
    fn push_tombstone(
        &self,
        records: &mut Records,
        key: &[u8],
        header: Option<(&'static str, &[u8])>,
    ) -> Result<()> {
        match key.is_empty() {
            true => Ok(()),
            false => self.push(records, key, None, header),
        }
    }

    fn push(
        &self,
        records: &mut Records,
        key: &[u8],
        event: Option<&RowEvent<'_>>,
        header: Option<(&'static str, &[u8])>,
    ) -> Result<()> {
        let bytes = &mut records.bytes;
        bytes.extend_from_slice(key);
        let value = match event {
            None => None,
            Some(event) => {
                let start = bytes.len();
                self.encoder.value(bytes, event)?;
                Some(bytes.len() - start)
            }
        };
        let header = header.map(|(name, value)| {
            bytes.extend_from_slice(value);
            (name, value.len())
        });
        records.kept.push(Kept {
            topic: Arc::clone(&self.name),
            key: key.len(),
            value,
            header,
        });
        Ok(())
    }
}

fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// Records of table topics that go with one event. No I/O.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    topic: Arc<str>,
    /// 0 for no key.
    key: usize,
    value: Option<usize>,
    header: Option<(&'static str, usize)>,
}

/// A record of a table topic.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) topic: &'a Arc<str>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) header: Option<(&'static str, &'a [u8])>,
}

impl Record<'_> {
    pub(crate) fn bytes(&self) -> usize {
        let header = self.header.map(|(_, value)| value);
        let parts = [self.key, self.value, header];
        parts.into_iter().flatten().map(<[u8]>::len).sum()
    }
}

impl Records {
    /// In the order they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        let mut rest = self.bytes.as_slice();
        self.kept.iter().filter_map(move |kept| {
            let header_bytes = kept.header.map_or(0, |(_, length)| length);
            let (key, after) = rest.split_at_checked(kept.key)?;
            let (value, after) = after.split_at_checked(kept.value.unwrap_or_default())?;
            let (header, after) = after.split_at_checked(header_bytes)?;
            rest = after;
            Some(Record {
                topic: &kept.topic,
                key: (!key.is_empty()).then_some(key),
                value: kept.value.map(|_| value),
                header: kept.header.map(|(name, _)| (name, header)),
            })
        })
    }

    /// The size of a record that is larger than `bytes_max`, if one is.
    pub(crate) fn over(&self, bytes_max: usize) -> Option<usize> {
        self.iter()
            .map(|record| record.bytes())
            .find(|bytes| *bytes > bytes_max)
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.kept.clear();
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;
    use bunny_schemas::envelope::ColumnSchema;
    use uuid::Uuid;

    use super::*;

    const SOURCE: Source<'static> = Source {
        generation: Uuid::nil(),
        mirror: "shop",
        schema: "public",
        table: "t",
        xid: 1,
        lsn: Lsn(1),
        commit_lsn: Lsn(2),
        commit_ts_us: 0,
        seq: 1,
    };

    fn topic(keyed: bool) -> TableTopic {
        let column = |name: &str, key: bool| ColumnSchema {
            name: name.to_owned(),
            attnum: 1,
            type_oid: 23,
            type_name: "integer".to_owned(),
            typmod: -1,
            not_null: key,
            key,
            facts: None,
        };
        let schema = TableSchema {
            mirror: "shop".to_owned(),
            schema: "public".to_owned(),
            table: "t".to_owned(),
            columns: vec![column("id", keyed), column("n", false)],
        };
        let origin = Origin {
            name: "bunny.shop".into(),
            database: "d".into(),
        };
        let name = Topics::new("bunny").table("shop", "public", "t");
        TableTopic::new(name, &schema, RowEncoder::json(&schema, &origin))
    }

    fn row(id: &'static str, n: &'static str) -> [Value<'static>; 2] {
        [id, n].map(|text| Value::Text(text.as_bytes()))
    }

    /// Of a record: id in the key, op, header and the id in it.
    type Seen = (Option<i64>, Option<String>, Option<(&'static str, i64)>);

    fn seen(records: &Records) -> Vec<Seen> {
        let id = |bytes: &[u8]| {
            let key: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            key["payload"]["id"].as_i64().unwrap()
        };
        let op = |bytes: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            value["payload"]["op"].as_str().unwrap().to_owned()
        };
        let seen = records.iter().map(|record| {
            assert_eq!(&**record.topic, "bunny.shop.public.t");
            let header = record.header.map(|(name, value)| {
                let key: serde_json::Value = serde_json::from_slice(value).unwrap();
                (name, key["id"].as_i64().unwrap())
            });
            (record.key.map(id), record.value.map(op), header)
        });
        seen.collect()
    }

    fn op(op: &str) -> Option<String> {
        Some(op.to_owned())
    }

    #[test]
    fn a_delete_leaves_a_tombstone() {
        let mut records = Records::default();
        let (one, two) = (row("1", "5"), row("1", "6"));
        let topic = topic(true);
        topic
            .row(&mut records, Op::Create, None, Some(&one), &SOURCE)
            .unwrap();
        topic
            .row(&mut records, Op::Update, Some(&one), Some(&two), &SOURCE)
            .unwrap();
        topic
            .row(&mut records, Op::Delete, Some(&two), None, &SOURCE)
            .unwrap();
        topic.truncate(&mut records, &SOURCE).unwrap();
        let expected = [
            (Some(1), op("c"), None),
            (Some(1), op("u"), None),
            (Some(1), op("d"), None),
            (Some(1), None, None),
            (None, op("t"), None),
        ];
        assert_eq!(seen(&records), expected);
        assert_eq!(records.over(1 << 20), None);
        assert!(records.over(100).is_some());
        records.clear();
        assert_eq!(records.iter().count(), 0);
    }

    #[test]
    fn another_key_is_a_delete_and_a_create_that_name_each_other() {
        let mut records = Records::default();
        let (old, new) = (row("1", "5"), row("2", "5"));
        topic(true)
            .row(&mut records, Op::Update, Some(&old), Some(&new), &SOURCE)
            .unwrap();
        let expected = [
            (Some(1), op("d"), Some((NEW_KEY_HEADER, 2))),
            (Some(1), None, Some((NEW_KEY_HEADER, 2))),
            (Some(2), op("c"), Some((OLD_KEY_HEADER, 1))),
        ];
        assert_eq!(seen(&records), expected);
    }

    #[test]
    fn without_a_key_there_is_nothing_to_change_or_to_bury() {
        let mut records = Records::default();
        let (old, new) = (row("1", "5"), row("2", "5"));
        let topic = topic(false);
        topic
            .row(&mut records, Op::Update, Some(&old), Some(&new), &SOURCE)
            .unwrap();
        topic
            .row(&mut records, Op::Delete, Some(&new), None, &SOURCE)
            .unwrap();
        assert_eq!(
            seen(&records),
            [(None, op("u"), None), (None, op("d"), None)]
        );
    }
}
