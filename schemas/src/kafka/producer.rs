//! Producers of transactions.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};

/// How often events are looked for.
const EVERY: Duration = Duration::from_millis(100);

/// How many of them are taken then. One event holds the reports of many messages.
const EVENTS_MAX: usize = 16;

/// Whoever is fenced off learns it from the call that fails, and says what becomes of it: a fact of
/// the protocol, which librdkafka reports as an error of the process.
pub struct FencingIsUsual;

impl ClientContext for FencingIsUsual {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if is_of_fencing(message) {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        } else {
            DefaultProducerContext.log(level, facility, message);
        }
    }
}

impl ProducerContext for FencingIsUsual {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// librdkafka's own text and the broker's for one and the same. Pure.
fn is_of_fencing(message: &str) -> bool {
    let texts = [
        "fenced by a newer instance",
        "Producer attempted an operation with an old epoch",
    ];
    texts.iter().any(|text| message.contains(text))
}

/// A producer of which only trouble is heard: that messages were delivered, the commit says.
///
/// A thread of its own takes what there is to hear ten times a second and does nothing in
/// between. rdkafka's `ThreadedProducer` waits for events in stretches of 100 ms, counted in
/// whole milliseconds, and spins through what is left of the last one: measured on 0.39, ten
/// times as much CPU for a producer at rest.
pub struct TransactionalProducer {
    producer: Arc<BaseProducer<FencingIsUsual>>,
    /// Dropped, it ends the thread.
    goes_on: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TransactionalProducer {
    /// `config` is that of [`super::KafkaConfig::transactional_producer`].
    ///
    /// # Errors
    /// A setting that librdkafka does not take, or no thread.
    pub fn create(mut config: ClientConfig) -> KafkaResult<TransactionalProducer> {
        config.set("delivery.report.only.error", "true");
        let producer: BaseProducer<FencingIsUsual> = config.create_with_context(FencingIsUsual)?;
        let producer = Arc::new(producer);
        let (goes_on, ended) = mpsc::channel::<()>();
        let heard = Arc::clone(&producer);
        let serve = move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(EVERY) {
                for _ in 0..EVENTS_MAX {
                    heard.poll(Duration::ZERO);
                }
            }
        };
        let thread = thread::Builder::new()
            .name("kafka events".to_owned())
            .spawn(serve)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(TransactionalProducer {
            producer,
            goes_on: Some(goes_on),
            thread: Some(thread),
        })
    }
}

impl Deref for TransactionalProducer {
    type Target = BaseProducer<FencingIsUsual>;

    fn deref(&self) -> &BaseProducer<FencingIsUsual> {
        &self.producer
    }
}

impl Drop for TransactionalProducer {
    /// The thread's share of the producer goes first, so that it is closed here.
    fn drop(&mut self) {
        drop(self.goes_on.take());
        if let Some(thread) = self.thread.take() {
            // It polls, which does not panic; if it did, the panic was told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_of_fencing;

    #[test]
    fn fencing_is_told_from_other_trouble() {
        for (message, expected) in [
            (
                "TxnCoordinator/1: Failed to add partition \"bunny.schemas\" [0] to transaction: Broker: Producer attempted an operation with an old epoch",
                true,
            ),
            (
                "Fatal transaction error: Failed to add partitions to transaction: Local: This instance has been fenced by a newer instance (_FENCED)",
                true,
            ),
            (
                "TxnCoordinator/1: Failed to add partition \"bunny.schemas\" [0] to transaction: Local: Timed out",
                false,
            ),
        ] {
            assert_eq!(is_of_fencing(message), expected, "{message}");
        }
    }
}
