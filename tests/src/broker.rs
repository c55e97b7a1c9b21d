//! What the broker holds, as any client may ask.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

const PATIENCE: Duration = Duration::from_secs(30);

/// Names of the topics that begin with `prefix`, sorted.
pub async fn topics(brokers: &str, prefix: &str) -> anyhow::Result<Vec<String>> {
    ask(brokers, prefix, |consumer| {
        let metadata = consumer.fetch_metadata(None, PATIENCE)?;
        let names = metadata
            .topics()
            .iter()
            .map(|topic| topic.name().to_owned());
        Ok(names.collect())
    })
    .await
}

/// Names of the consumer groups that begin with `prefix`, sorted.
pub async fn groups(brokers: &str, prefix: &str) -> anyhow::Result<Vec<String>> {
    ask(brokers, prefix, |consumer| {
        let list = consumer.fetch_group_list(None, PATIENCE)?;
        let names = list.groups().iter().map(|group| group.name().to_owned());
        Ok(names.collect())
    })
    .await
}

async fn ask(
    brokers: &str,
    prefix: &str,
    question: impl Fn(&BaseConsumer) -> anyhow::Result<Vec<String>> + Send + 'static,
) -> anyhow::Result<Vec<String>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let prefix = prefix.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut names = question(&consumer)?;
        names.retain(|name| name.starts_with(&prefix));
        names.sort_unstable();
        Ok(names)
    })
    .await?
}
