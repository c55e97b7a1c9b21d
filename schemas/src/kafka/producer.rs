//! Producers of transactions.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::BaseProducer;

/// How often events are looked for.
const EVERY: Duration = Duration::from_millis(100);

/// How many of them are taken then. One event holds the reports of many messages.
const EVENTS_MAX: usize = 16;

/// A producer of which only trouble is heard: that messages were delivered, the commit says.
///
/// A thread of its own takes what there is to hear ten times a second and does nothing in
/// between. rdkafka's `ThreadedProducer` waits for events in stretches of 100 ms, counted in
/// whole milliseconds, and spins through what is left of the last one: measured on 0.39, ten
/// times as much CPU for a producer at rest.
pub struct TransactionalProducer {
    producer: Arc<BaseProducer>,
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
        let producer: BaseProducer = config.set("delivery.report.only.error", "true").create()?;
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
    type Target = BaseProducer;

    fn deref(&self) -> &BaseProducer {
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
