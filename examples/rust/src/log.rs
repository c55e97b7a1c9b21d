//! The topics, decoded with the schemas of the schemas topic.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const ANSWER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

pub(crate) struct Log {
    brokers: String,
    /// Topic names up to the last dot.
    topics: String,
    schemas_topic: String,
    schemas: HashMap<u32, Known>,
}

struct Known {
    avro: Schema,
    kind: String,
    columns: Arc<[Column]>,
}

/// A decoded record.
pub(crate) struct Record {
    /// Name of its schema without the namespace: `Envelope` for a change.
    pub(crate) kind: String,
    pub(crate) value: Value,
    /// Fields of the row with their properties, for a change.
    pub(crate) columns: Arc<[Column]>,
}

/// A field of the row and what its properties say.
pub(crate) struct Column {
    pub(crate) field: String,
    pub(crate) name: String,
    pub(crate) attnum: i64,
    pub(crate) type_oid: i64,
    pub(crate) key: bool,
    /// What rows hold that were there before the column came.
    pub(crate) old_rows: serde_json::Value,
}

pub(crate) enum Step {
    Record(i64, Record),
    /// Everything committed has been read.
    End,
    Quiet,
    /// The topic does not hold the offset: it was trimmed, or is another one of that name.
    Gone,
}

impl Log {
    pub(crate) fn new(brokers: &str, prefix: &str, slug: &str) -> Log {
        Log {
            brokers: brokers.to_owned(),
            topics: format!("{prefix}.{slug}"),
            schemas_topic: format!("{prefix}.schemas"),
            schemas: HashMap::new(),
        }
    }

    pub(crate) fn topic(&self, what: &str) -> String {
        format!("{}.{what}", self.topics)
    }

    fn consumer(&self) -> Result<BaseConsumer> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            // Demanded; no offset is kept there.
            .set("group.id", "bunny-example-subscriber")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            // What was trimmed is never skipped in silence.
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "5")
            .create()?;
        Ok(consumer)
    }

    fn assigned(&self, topic: &str, starts: &[(i32, i64)]) -> Result<BaseConsumer> {
        let consumer = self.consumer()?;
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in starts {
            assignment.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        consumer.assign(&assignment)?;
        Ok(consumer)
    }

    /// First offset of each partition.
    pub(crate) fn first_offsets(&self, topic: &str) -> Result<Vec<i64>> {
        let consumer = self.consumer()?;
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
        let partitions = metadata
            .topics()
            .first()
            .map_or(0, |t| t.partitions().len());
        (0..partitions)
            .map(|partition| {
                let partition = i32::try_from(partition)?;
                Ok(consumer.fetch_watermarks(topic, partition, ANSWER)?.0)
            })
            .collect()
    }

    /// Hands every committed record up to the present end to `each`, with its offset.
    pub(crate) fn read_to_end(
        &mut self,
        topic: &str,
        starts: &[(i32, i64)],
        mut each: impl FnMut(i64, Record) -> Result<()>,
    ) -> Result<()> {
        let consumer = self.assigned(topic, starts)?;
        let mut unread = starts.len();
        while unread > 0 {
            match self.next(&consumer)? {
                Step::Record(offset, record) => each(offset, record)?,
                Step::End => unread -= 1,
                Step::Quiet => {}
                Step::Gone => bail!("{topic} was trimmed while it was read"),
            }
        }
        Ok(())
    }

    /// A reader of partition 0 from an offset on.
    pub(crate) fn follow(&self, topic: &str, from: i64) -> Result<BaseConsumer> {
        self.assigned(topic, &[(0, from)])
    }

    pub(crate) fn next(&mut self, consumer: &BaseConsumer) -> Result<Step> {
        match consumer.poll(POLL) {
            None => Ok(Step::Quiet),
            Some(Err(KafkaError::PartitionEOF(_))) => Ok(Step::End),
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                Ok(Step::Gone)
            }
            Some(Err(error)) => Err(error.into()),
            Some(Ok(message)) => {
                let value = message.payload().unwrap_or_default();
                let record = self
                    .decode(value)
                    .with_context(|| format!("{}@{}", message.topic(), message.offset()))?;
                Ok(Step::Record(message.offset(), record))
            }
        }
    }

    fn decode(&mut self, value: &[u8]) -> Result<Record> {
        let (&[0, a, b, c, d], mut datum) = value.split_first_chunk().context("no frame")? else {
            bail!("not the Confluent wire format");
        };
        let id = u32::from_be_bytes([a, b, c, d]);
        if !self.schemas.contains_key(&id) {
            self.read_schemas()?;
        }
        let known = self.schemas.get(&id);
        let known = known.with_context(|| format!("no schema {id}"))?;
        let reader = GenericDatumReader::builder(&known.avro).build()?;
        Ok(Record {
            kind: known.kind.clone(),
            value: reader.read_value(&mut datum)?,
            columns: Arc::clone(&known.columns),
        })
    }

    /// Reads the schemas topic anew: an id stands there before the first record that uses it.
    fn read_schemas(&mut self) -> Result<()> {
        let topic = self.schemas_topic.clone();
        let first = self.first_offsets(&topic)?;
        let consumer =
            self.assigned(&topic, &[(0, *first.first().context("no schemas topic")?)])?;
        loop {
            match consumer.poll(POLL) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(message)) => {
                    let id = std::str::from_utf8(message.key().unwrap_or_default())?.parse()?;
                    let entry: serde_json::Value =
                        serde_json::from_slice(message.payload().unwrap_or_default())?;
                    let text = entry["schema"].as_str().context("no schema")?;
                    let json: serde_json::Value = serde_json::from_str(text)?;
                    let known = Known {
                        avro: Schema::parse_str(text)?,
                        kind: json["name"].as_str().unwrap_or_default().to_owned(),
                        columns: columns(&json).into(),
                    };
                    self.schemas.insert(id, known);
                }
            }
        }
    }
}

/// The fields of Row, which is spelled out where it is first used: in `before`.
fn columns(schema: &serde_json::Value) -> Vec<Column> {
    let fields = schema["fields"].as_array().into_iter().flatten();
    let before = fields.into_iter().find(|field| field["name"] == "before");
    let row = before.and_then(|field| field["type"][1]["fields"].as_array());
    row.into_iter()
        .flatten()
        .map(|field| Column {
            field: field["name"].as_str().unwrap_or_default().to_owned(),
            name: field["column"].as_str().unwrap_or_default().to_owned(),
            attnum: field["attnum"].as_i64().unwrap_or_default(),
            type_oid: field["pg_type_oid"].as_i64().unwrap_or_default(),
            key: field["key"].as_bool().unwrap_or_default(),
            old_rows: field["facts"]["old_rows"].clone(),
        })
        .collect()
}

/// A field of a record.
pub(crate) fn field<'v>(record: &'v Value, name: &str) -> Result<&'v Value> {
    let Value::Record(fields) = record else {
        bail!("{record:?} is no record");
    };
    let found = fields.iter().find(|(own, _)| own == name);
    Ok(&found.with_context(|| format!("no field {name}"))?.1)
}

/// What a union holds; `None` for null.
pub(crate) fn present(value: &Value) -> Option<&Value> {
    match value {
        Value::Union(_, inner) if **inner == Value::Null => None,
        Value::Union(_, inner) => Some(inner),
        other => Some(other),
    }
}

pub(crate) fn text(record: &Value, name: &str) -> Result<String> {
    match field(record, name)? {
        Value::String(text) => Ok(text.clone()),
        Value::Enum(_, symbol) => Ok(symbol.clone()),
        Value::Uuid(uuid) => Ok(uuid.to_string()),
        other => bail!("{name} is {other:?}"),
    }
}

pub(crate) fn number(value: &Value) -> Result<i64> {
    match value {
        Value::Int(number) => Ok(i64::from(*number)),
        Value::Long(number) => Ok(*number),
        other => bail!("{other:?} is no number"),
    }
}

/// An LSN has 64 bits without a sign; Avro's long has one.
pub(crate) fn lsn(record: &Value, name: &str) -> Result<u64> {
    Ok(number(field(record, name)?)? as u64)
}

pub(crate) fn flag(value: &Value) -> Result<bool> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        other => bail!("{other:?} is no boolean"),
    }
}

pub(crate) fn list<'v>(record: &'v Value, name: &str) -> Result<&'v [Value]> {
    match field(record, name)? {
        Value::Array(items) => Ok(items),
        other => bail!("{name} is {other:?}"),
    }
}

pub(crate) fn numbers(record: &Value, name: &str) -> Result<Vec<i64>> {
    list(record, name)?.iter().map(number).collect()
}
