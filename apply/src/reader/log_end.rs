//! How far the log goes, asked by the client that reads it.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use bunny_schemas::kafka::{Closing, KafkaConfig};
use rdkafka::consumer::{Consumer, StreamConsumer};
use tokio::time::{Instant, sleep};

use crate::error::Error;

/// How often it is asked for.
const EVERY: Duration = Duration::from_secs(1);

/// A client that Kafka has not answered for so long is to be made anew: librdkafka gets over most
/// troubles by itself, not over all. The answer comes behind the records that are being fetched, and
/// librdkafka cuts a connection on which it is late: on a slow line a large batch needs its time.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Hands over the end of a partition each second. Ends when the topic is gone, and when Kafka does
/// not answer any more: one who waits for the next record is told neither.
pub(crate) async fn watch<C: Borrow<StreamConsumer> + Send + Sync + 'static>(
    kafka: &KafkaConfig,
    consumer: Arc<Closing<C>>,
    topic: &str,
    partition: i32,
    mut is_at: impl FnMut(i64),
) -> Error {
    let mut answered = Instant::now();
    loop {
        let (asked, of) = (consumer.clone(), topic.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let client: &StreamConsumer = (**asked).borrow();
            client.fetch_watermarks(&of, partition, SILENCE_MAX)
        });
        match found.await {
            Ok(Ok((_, end))) => {
                answered = Instant::now();
                is_at(end);
            }
            Ok(Err(error)) => {
                let code = error.rdkafka_error_code();
                if kafka.has_lost(topic, code).await {
                    return Error::NotYet(format!("the topic {topic} seems to be gone: {error}"));
                }
                if answered.elapsed() >= SILENCE_MAX {
                    let seconds = answered.elapsed().as_secs();
                    return Error::NotYet(format!(
                        "Kafka has not said for {seconds} s how far {topic} goes: {error}"
                    ));
                }
                tracing::warn!(topic, %error, "Kafka does not say how far the log goes");
            }
            Err(error) => tracing::debug!(%error, "the end of the log was not asked for"),
        }
        sleep(EVERY).await;
    }
}
