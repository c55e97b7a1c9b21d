//! Where topics begin and end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

/// First offset and end of each partition of the topics of a mirror, and of that of the schemas.
pub(super) fn read(
    brokers: &str,
    prefix: &str,
    slug: &str,
) -> anyhow::Result<BTreeMap<String, Vec<(i64, i64)>>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let (limit, of_mirror) = (Duration::from_secs(10), format!("{prefix}.{slug}."));
    let schemas = format!("{prefix}.schemas");
    let mut found = BTreeMap::new();
    for topic in consumer.fetch_metadata(None, limit)?.topics() {
        let name = topic.name();
        if !name.starts_with(&of_mirror) && name != schemas {
            continue;
        }
        let of_topic = topic.partitions().iter().map(|partition| {
            let watermarks = consumer.fetch_watermarks(name, partition.id(), limit);
            watermarks.map_err(anyhow::Error::from)
        });
        found.insert(name.to_owned(), of_topic.collect::<anyhow::Result<_>>()?);
    }
    ensure!(found.len() > 3, "topics are missing: {found:?}");
    Ok(found)
}
