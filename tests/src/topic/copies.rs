//! What the position topic says of the copies in the snapshot topic.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context, ensure};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use rdkafka::config::ClientConfig;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::records;

/// The records of copies that stand, by key.
fn recorded(brokers: &str, topic: &str) -> anyhow::Result<HashMap<Vec<u8>, Vec<u8>>> {
    let mut syncs = HashMap::new();
    records::consume_messages(brokers, topic, |message| {
        let key = message.key().unwrap_or_default().to_vec();
        if key.starts_with(b"sync/") {
            match message.payload() {
                Some(payload) => syncs.insert(key, payload.to_vec()),
                None => syncs.remove(&key),
            };
        }
        Ok(())
    })?;
    Ok(syncs)
}

/// The requests under which copies are recorded.
pub(super) fn requests(
    brokers: &str,
    prefix: &str,
    slug: &str,
) -> anyhow::Result<BTreeSet<String>> {
    let keys = recorded(brokers, &format!("{prefix}.{slug}.position"))?.into_keys();
    let requests = keys.map(|key| String::from_utf8(key).map(|key| key.replace("sync/", "")));
    Ok(requests.collect::<Result<_, _>>()?)
}

/// Nothing else lets a test wait for hours: every copy becomes as old as if it had been taken
/// `by` earlier.
pub(super) fn age(brokers: &str, prefix: &str, slug: &str, by: Duration) -> anyhow::Result<()> {
    let topic = format!("{prefix}.{slug}.position");
    let syncs = recorded(brokers, &topic)?;
    ensure!(!syncs.is_empty(), "no copies in {topic}");
    let path = crate::services::repository().join("schemas/avro/Sync.avsc");
    let schema = Schema::parse_str(&std::fs::read_to_string(path)?)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    for (key, value) in syncs {
        let (frame, mut datum) = value.split_at_checked(5).context("no Confluent frame")?;
        let mut sync = GenericDatumReader::builder(&schema)
            .build()?
            .read_value(&mut datum)?;
        let Value::Record(fields) = &mut sync else {
            anyhow::bail!("a sync is no record: {sync:?}");
        };
        for (name, value) in fields {
            if let ("taken_at_us", Value::Long(taken)) = (name.as_str(), value) {
                *taken -= i64::try_from(by.as_micros())?;
            }
        }
        let aged = GenericDatumWriter::builder(&schema)
            .build()?
            .write_value_to_vec(sync)?;
        let aged = [frame, &aged].concat();
        producer
            .send(BaseRecord::to(&topic).key(&key).payload(&aged))
            .map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(10))?;
    Ok(())
}
