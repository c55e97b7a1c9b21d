//! Topics as plain values: consumed `read_committed`, decoded by `apache-avro`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use apache_avro::Schema;
use apache_avro::types::Value;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::version::{Column, Row, Version};

/// So long may no record come before the end of the topic does.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Everything in the topics of a mirror.
pub(super) struct Topics {
    pub(super) changes: Vec<ChangeRecord>,
    /// Offset of the first record of the change topic.
    pub(super) changes_from: Option<i64>,
    pub(super) snapshot: Vec<SnapshotRecord>,
    /// See [`super::Summary::avro_types`].
    pub(super) avro_types: HashMap<(String, String), HashMap<String, String>>,
}

#[derive(Debug)]
pub(super) enum ChangeRecord {
    GenerationStarted { generation: String },
    TableGap,
    Event(Box<Event>),
}

/// One envelope.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) op: String,
    pub(super) before_kind: String,
    pub(super) before: Option<Row>,
    pub(super) after: Option<Row>,
    /// The version of its table that its rows are written under.
    pub(super) version: Arc<Version>,
    pub(super) unchanged: Vec<String>,
    /// Tables of a truncate.
    pub(super) truncated: Vec<(String, String)>,
    pub(super) table: (String, String),
    pub(super) generation: String,
    pub(super) commit_lsn: u64,
    pub(super) seq: i64,
    pub(super) last: bool,
}

#[derive(Debug)]
pub(super) enum SnapshotRecord {
    Started {
        sync: Sync,
        table: (String, String),
        generation: String,
        lsn: u64,
        columns: Vec<String>,
        definition: String,
    },
    Chunk {
        sync: Sync,
        chunk: i32,
        part: i32,
        last: bool,
        rows: i64,
        chunk_rows: i64,
        data: Vec<u8>,
    },
    Finished {
        sync: Sync,
        chunks: i32,
        rows: i64,
    },
}

/// Request and attempt.
pub(super) type Sync = (String, i32);

/// A registered schema, with the names its record properties tell.
struct Registered {
    avro: Schema,
    record: String,
    /// True names of the row's columns in field order; empty for fixed records.
    columns: Vec<String>,
    /// The Avro type of each, beside null.
    types: Vec<String>,
    /// Of each, whether it is generated at the source: the oracle has no use for it then.
    generated: Vec<bool>,
    version: Arc<Version>,
}

impl Topics {
    pub(super) fn read(brokers: &str, prefix: &str, slug: &str) -> anyhow::Result<Topics> {
        let schemas = read_schemas(brokers, &format!("{prefix}.schemas"))?;
        let mut changes = Vec::new();
        let mut avro_types = HashMap::new();
        let changes_from = consume(brokers, &format!("{prefix}.{slug}.changes"), |_, value| {
            let (schema, record) = decode(&schemas, value)?;
            let record = change_record(schema, &record)?;
            if let ChangeRecord::Event(event) = &record {
                let columns = schema.columns.iter().cloned();
                avro_types.insert(
                    event.table.clone(),
                    columns.zip(schema.types.iter().cloned()).collect(),
                );
            }
            changes.push(record);
            Ok(())
        })?;
        let mut snapshot = Vec::new();
        consume(brokers, &format!("{prefix}.{slug}.snapshot"), |_, value| {
            let (schema, record) = decode(&schemas, value)?;
            snapshot.push(snapshot_record(schema, &record)?);
            Ok(())
        })?;
        Ok(Topics {
            changes,
            changes_from,
            snapshot,
            avro_types,
        })
    }
}

/// How many ids the schemas topic holds, each once.
pub(super) fn schema_ids(brokers: &str, topic: &str) -> anyhow::Result<usize> {
    Ok(read_schemas(brokers, topic)?.len())
}

fn read_schemas(brokers: &str, topic: &str) -> anyhow::Result<HashMap<u32, Registered>> {
    let mut schemas = HashMap::new();
    consume(brokers, topic, |key, value| {
        let id: u32 = std::str::from_utf8(key)?.parse()?;
        let entry: serde_json::Value = serde_json::from_slice(value)?;
        let text = entry["schema"]
            .as_str()
            .context("an entry without schema")?;
        let json: serde_json::Value = serde_json::from_str(text)?;
        let row = json["fields"]
            .as_array()
            .and_then(|fields| fields.iter().find(|field| field["name"] == "before"))
            .map(|before| before["type"][1]["fields"].clone());
        let fields: Vec<&serde_json::Value> = row
            .as_ref()
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .collect();
        let of_fields = |name: fn(&serde_json::Value) -> &serde_json::Value| -> Vec<String> {
            let texts = fields.iter().map(|field| name(field).as_str());
            texts
                .map(|text| text.unwrap_or_default().to_owned())
                .collect()
        };
        let is_generated = |field: &&serde_json::Value| field["facts"]["generated"] == true;
        let registered = Registered {
            avro: Schema::parse_str(text)?,
            record: json["name"].as_str().unwrap_or_default().to_owned(),
            columns: of_fields(|field| &field["column"]),
            types: of_fields(|field| &field["type"][1]),
            generated: fields.iter().map(is_generated).collect(),
            version: Arc::new(Version {
                columns: fields
                    .iter()
                    .copied()
                    .filter(|field| !is_generated(field))
                    .map(Column::of_schema)
                    .collect(),
            }),
        };
        let former = schemas.insert(id, registered);
        ensure!(former.is_none(), "schema id {id} was given twice");
        Ok(())
    })?;
    Ok(schemas)
}

/// Hands every committed record of all partitions to `each`, up to the present ends. Returns
/// the offset of the first.
fn consume(
    brokers: &str,
    topic: &str,
    mut each: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Option<i64>> {
    let mut first = None;
    consume_messages(brokers, topic, |message| {
        first.get_or_insert(message.offset());
        let value = message.payload().unwrap_or_default();
        each(message.key().unwrap_or_default(), value)
    })?;
    Ok(first)
}

/// As [`consume`], with all there is in a message.
pub(super) fn consume_messages(
    brokers: &str,
    topic: &str,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "topic-oracle")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.message.max.bytes", "83886080")
        .set("receive.message.max.bytes", "100000000")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10))?;
    let partitions = metadata
        .topics()
        .first()
        .map_or(0, |topic| topic.partitions().len());
    ensure!(partitions > 0, "topic {topic} does not exist");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, i32::try_from(partition)?, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let mut at_end = 0;
    let mut last_heard = Instant::now();
    while at_end < partitions {
        ensure!(
            last_heard.elapsed() < SILENCE_LIMIT,
            "nothing came from {topic} for {SILENCE_LIMIT:?}, and its end did not either"
        );
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => at_end += 1,
            Some(Err(error)) => return Err(error).with_context(|| format!("reading {topic}")),
            Some(Ok(message)) => {
                last_heard = Instant::now();
                each(&message).with_context(|| {
                    format!(
                        "record {topic}/{}@{}",
                        message.partition(),
                        message.offset()
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// Fails at the first record with `needle` in its key or value.
pub(super) fn assert_without(brokers: &str, topic: &str, needle: &str) -> anyhow::Result<()> {
    let needle = needle.as_bytes();
    consume(brokers, topic, |key, value| {
        let found = |bytes: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
        ensure!(
            !found(key) && !found(value),
            "the record holds what it should not"
        );
        Ok(())
    })
    .map(|_| ())
}

/// Writes the last event of the change topic once more.
pub(super) fn repeat_last_event(brokers: &str, topic: &str) -> anyhow::Result<()> {
    let mut last = None;
    consume(brokers, topic, |key, value| {
        last = Some((key.to_vec(), value.to_vec()));
        Ok(())
    })?;
    let (key, value) = last.context("an empty topic")?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    producer
        .send(BaseRecord::to(topic).key(&key).payload(&value))
        .map_err(|(error, _)| error)?;
    producer.flush(Duration::from_secs(10))?;
    Ok(())
}

fn decode<'a>(
    schemas: &'a HashMap<u32, Registered>,
    value: &[u8],
) -> anyhow::Result<(&'a Registered, Value)> {
    let [0, a, b, c, d, datum @ ..] = value else {
        bail!("no Confluent frame");
    };
    let id = u32::from_be_bytes([*a, *b, *c, *d]);
    let schema = schemas
        .get(&id)
        .with_context(|| format!("schema id {id} is not in the schemas topic"))?;
    let mut rest = datum;
    let value = apache_avro::reader::datum::GenericDatumReader::builder(&schema.avro)
        .build()?
        .read_value(&mut rest)?;
    ensure!(rest.is_empty(), "{} bytes after the datum", rest.len());
    Ok((schema, value))
}

fn change_record(schema: &Registered, record: &Value) -> anyhow::Result<ChangeRecord> {
    Ok(match schema.record.as_str() {
        "Envelope" => ChangeRecord::Event(Box::new(event(schema, record)?)),
        "GenerationStarted" => ChangeRecord::GenerationStarted {
            generation: text(field(record, "generation")?)?,
        },
        "TableGap" => ChangeRecord::TableGap,
        other => bail!("a record '{other}' in the change topic"),
    })
}

fn event(schema: &Registered, record: &Value) -> anyhow::Result<Event> {
    let row = |name: &str| row(schema, field(record, name)?);
    let source = field(record, "source")?;
    let truncated = match option(field(record, "truncate")?) {
        None => Vec::new(),
        Some(truncate) => list(field(truncate, "tables")?)?
            .iter()
            .map(|table| {
                Ok((
                    text(field(table, "schema")?)?,
                    text(field(table, "table")?)?,
                ))
            })
            .collect::<anyhow::Result<_>>()?,
    };
    Ok(Event {
        op: text(field(record, "op")?)?,
        before_kind: text(field(record, "before_kind")?)?,
        before: row("before")?,
        after: row("after")?,
        version: schema.version.clone(),
        unchanged: texts(field(record, "unchanged")?)?,
        truncated,
        table: (
            text(field(source, "schema")?)?,
            text(field(source, "table")?)?,
        ),
        generation: text(field(source, "generation")?)?,
        commit_lsn: lsn(field(source, "commit_lsn")?)?,
        seq: number(field(source, "seq")?)?,
        last: flag(field(source, "last")?)?,
    })
}

fn row(schema: &Registered, value: &Value) -> anyhow::Result<Option<Row>> {
    let Some(row) = option(value) else {
        return Ok(None);
    };
    let Value::Record(fields) = row else {
        bail!("a row that is no record");
    };
    ensure!(
        fields.len() == schema.columns.len(),
        "a row of another width"
    );
    let cells = schema.generated.iter().zip(fields);
    cells
        .filter(|(generated, _)| !**generated)
        .map(|(_, (_, value))| cell(value))
        .collect::<anyhow::Result<Row>>()
        .map(Some)
}

/// A value as COPY text has it, floats in the one form of [`super::version`].
fn cell(value: &Value) -> anyhow::Result<Option<String>> {
    Ok(Some(match option(value) {
        None => return Ok(None),
        Some(Value::Boolean(true)) => "t".to_owned(),
        Some(Value::Boolean(false)) => "f".to_owned(),
        Some(Value::Int(number)) => number.to_string(),
        Some(Value::Long(number)) => number.to_string(),
        Some(Value::Float(number)) => format!("{number:?}"),
        Some(Value::Double(number)) => format!("{number:?}"),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bytes(bytes)) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\\x{digits}")
        }
        Some(other) => bail!("a cell {other:?}"),
    }))
}

fn snapshot_record(schema: &Registered, record: &Value) -> anyhow::Result<SnapshotRecord> {
    let small =
        |name: &str| -> anyhow::Result<i32> { Ok(i32::try_from(number(field(record, name)?)?)?) };
    let sync = (text(field(record, "request_id")?)?, small("attempt")?);
    Ok(match schema.record.as_str() {
        "TableSyncStarted" => SnapshotRecord::Started {
            sync,
            table: (
                text(field(record, "schema")?)?,
                text(field(record, "table")?)?,
            ),
            generation: text(field(record, "generation")?)?,
            lsn: lsn(field(record, "lsn")?)?,
            columns: texts(field(record, "columns")?)?,
            definition: text(field(record, "definition")?)?,
        },
        "SnapshotChunk" => SnapshotRecord::Chunk {
            sync,
            chunk: small("chunk")?,
            part: small("part")?,
            last: flag(field(record, "last")?)?,
            rows: number(field(record, "rows")?)?,
            chunk_rows: number(field(record, "chunk_rows")?)?,
            data: match field(record, "data")? {
                Value::Bytes(bytes) => bytes.clone(),
                other => bail!("data is {other:?}"),
            },
        },
        "TableSyncFinished" => SnapshotRecord::Finished {
            sync,
            chunks: small("chunks")?,
            rows: number(field(record, "rows")?)?,
        },
        other => bail!("a record '{other}' in the snapshot topic"),
    })
}

fn field<'a>(record: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let Value::Record(fields) = record else {
        bail!("no record: {record:?}");
    };
    fields
        .iter()
        .find(|(field, _)| field == name)
        .map(|(_, value)| value)
        .with_context(|| format!("no field {name}"))
}

fn option(value: &Value) -> Option<&Value> {
    match value {
        Value::Null => None,
        Value::Union(_, inner) => option(inner),
        other => Some(other),
    }
}

fn list(value: &Value) -> anyhow::Result<&[Value]> {
    match value {
        Value::Array(items) => Ok(items),
        other => bail!("no array: {other:?}"),
    }
}

fn text(value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) | Value::Enum(_, text) => Ok(text.clone()),
        Value::Uuid(uuid) => Ok(uuid.to_string()),
        other => bail!("no string: {other:?}"),
    }
}

fn texts(value: &Value) -> anyhow::Result<Vec<String>> {
    list(value)?.iter().map(text).collect()
}

fn number(value: &Value) -> anyhow::Result<i64> {
    match value {
        Value::Int(number) => Ok(i64::from(*number)),
        Value::Long(number) => Ok(*number),
        other => bail!("no number: {other:?}"),
    }
}

/// An LSN is the `long` with the same 64 bits.
fn lsn(value: &Value) -> anyhow::Result<u64> {
    Ok(number(value)?.cast_unsigned())
}

fn flag(value: &Value) -> anyhow::Result<bool> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        other => bail!("no boolean: {other:?}"),
    }
}
