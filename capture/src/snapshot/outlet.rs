//! Writing to the snapshot topic: one idempotent producer for all workers of a round.
//!
//! Bytes under way are bounded by a budget that a record takes from before it is sent and
//! gives back when Kafka has answered for it. So a slow Kafka slows COPY down, and the
//! memory of a process doesn't depend on rows, chunks, workers or mirrors.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bunny_schemas::kafka::KafkaConfig;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// What all rounds of a process may have sent that is not answered for yet.
#[derive(Clone)]
pub(crate) struct UnderWay {
    left: Arc<Semaphore>,
    kib: u32,
}

impl UnderWay {
    /// At most `bytes`.
    pub(crate) fn at_most(bytes: usize) -> UnderWay {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        UnderWay {
            left: Arc::new(Semaphore::new(kib as usize)),
            kib,
        }
    }

    /// A record larger than all there is takes all of it and travels alone.
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.left
            .clone()
            .acquire_many_owned(kib.clamp(1, self.kib))
            .await
            .map_err(|error| Error::transient(error.to_string()))
    }
}

/// How long Kafka may take to tell where one partition ends.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a record that found librdkafka's queue full is offered again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);
/// How long a full queue may stay full: by then its records have timed out.
const QUEUE_FULL_PATIENCE: Duration = Duration::from_secs(120);

/// The way into one mirror's snapshot topic.
pub(super) struct Outlet {
    producer: Option<Arc<ThreadedProducer<Acknowledgements>>>,
    topic: String,
    under_way: UnderWay,
}

/// Records that belong together, such as the parts of a chunk: they count once all of them
/// have been acknowledged.
#[derive(Clone, Default)]
pub(super) struct Consignment {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    under_way: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
    settled: Notify,
}

/// Travels with a record and comes back with its acknowledgement.
struct Ticket {
    consignment: Consignment,
    /// Given back when the ticket is dropped.
    _budget: OwnedSemaphorePermit,
}

/// What Kafka has acknowledged.
#[derive(Default)]
struct Acknowledgements {
    /// The last offset of each partition. They rise, for nobody else writes there; where they do not,
    /// the topic was deleted and made anew, and what was acknowledged before is gone.
    last: Mutex<HashMap<i32, i64>>,
    is_torn: AtomicBool,
}

impl Acknowledgements {
    /// Whether all that was acknowledged so far is in the topic, this one included.
    fn is_whole_with(&self, partition: i32, offset: i64) -> bool {
        // Not known of a record that Kafka had already.
        if offset >= 0 {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let before = last.insert(partition, offset);
            if before.is_some_and(|before| offset <= before) {
                self.is_torn.store(true, Ordering::Release);
            }
        }
        !self.is_torn.load(Ordering::Acquire)
    }
}

impl ClientContext for Acknowledgements {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka, snapshot producer");
    }
}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let failure = match result {
            Ok(message) if self.is_whole_with(message.partition(), message.offset()) => None,
            Ok(_) => Some(KafkaError::MessageProduction(
                RDKafkaErrorCode::UnknownTopicOrPartition,
            )),
            Err((error, _)) => Some(error.clone()),
        };
        ticket.consignment.answered(failure);
    }
}

impl Consignment {
    /// Waits until every record sent so far has been answered for.
    ///
    /// # Errors
    /// The first record that Kafka did not take.
    pub(super) async fn settled(&self) -> Result<()> {
        loop {
            // Registered before looking, so that an answer in between is not missed.
            let settled = self.state.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.state.under_way.load(Ordering::Acquire) == 0 {
                return self.check();
            }
            settled.await;
        }
    }

    fn check(&self) -> Result<()> {
        match &*self.failure() {
            None => Ok(()),
            Some(error) => Err(Error::Kafka {
                doing: "delivering to the snapshot topic",
                error: error.clone(),
            }),
        }
    }

    fn answered(&self, failure: Option<KafkaError>) {
        if let Some(error) = failure {
            self.failure().get_or_insert(error);
        }
        if self.state.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.settled.notify_waiters();
        }
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<KafkaError>> {
        self.state
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet {
    pub(super) fn open(kafka: &KafkaConfig, topic: String, under_way: UnderWay) -> Result<Self> {
        let producer = kafka
            .idempotent_producer()
            .create_with_context(Acknowledgements::default())
            .map_err(|error| Error::Kafka {
                doing: "opening the snapshot producer",
                error,
            })?;
        Ok(Self {
            producer: Some(Arc::new(producer)),
            topic,
            under_way,
        })
    }

    /// The present end of each of the topic's first `partitions` partitions.
    pub(super) async fn ends(&self, partitions: usize) -> Result<Vec<i64>> {
        let producer = self.producer()?.clone();
        let topic = self.topic.clone();
        // Over the producer's own connection: this is asked once a table.
        tokio::task::spawn_blocking(move || {
            let client = producer.client();
            (0..partitions)
                .map(|partition| {
                    let (_, end) =
                        client.fetch_watermarks(&topic, partition as i32, ENDS_TIMEOUT)?;
                    Ok(end)
                })
                .collect::<KafkaResult<Vec<i64>>>()
        })
        .await
        .map_err(|error| Error::transient(format!("reading the snapshot topic's end: {error}")))?
        .map_err(|error| Error::Kafka {
            doing: "reading the snapshot topic's end",
            error,
        })
    }

    fn producer(&self) -> Result<&Arc<ThreadedProducer<Acknowledgements>>> {
        self.producer
            .as_ref()
            .ok_or_else(|| Error::transient("the snapshot producer is closed"))
    }

    /// Takes `record` on its way; records to one partition keep their order. Waits while
    /// too many bytes are under way.
    ///
    /// # Errors
    /// An earlier record of the consignment failed, or Kafka takes nothing.
    pub(super) async fn send(
        &self,
        consignment: &Consignment,
        partition: i32,
        record: &[u8],
    ) -> Result<()> {
        let budget = self.under_way.take(record.len()).await?;
        consignment.check()?;
        let producer = self.producer()?;

        consignment.state.under_way.fetch_add(1, Ordering::AcqRel);
        let ticket = Box::new(Ticket {
            consignment: consignment.clone(),
            _budget: budget,
        });
        let mut message =
            BaseRecord::<[u8], [u8], Box<Ticket>>::with_opaque_to(&self.topic, ticket)
                .partition(partition)
                .payload(record);
        let give_up_at = Instant::now() + QUEUE_FULL_PATIENCE;
        loop {
            match producer.send(message) {
                Ok(()) => return Ok(()),
                Err((error, returned)) => {
                    let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    if !full || Instant::now() >= give_up_at {
                        consignment.answered(Some(error));
                        return consignment.check();
                    }
                    message = returned;
                }
            }
            tokio::time::sleep(QUEUE_FULL_PAUSE).await;
        }
    }
}

impl Drop for Outlet {
    /// Closing a producer blocks for as long as a broker keeps it waiting, so that happens
    /// on a thread of its own. What is still queued then is of no use to anyone.
    fn drop(&mut self) {
        let Some(producer) = self.producer.take() else {
            return;
        };
        let close = move || {
            producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
            drop(producer);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(close)),
            Err(_) => close(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_made_anew_under_a_copy_is_noticed() {
        let told = Acknowledgements::default();
        for (partition, offset) in [(0, 4), (1, 0), (0, 5), (0, -1), (1, 9)] {
            assert!(told.is_whole_with(partition, offset));
        }
        assert!(!told.is_whole_with(0, 0), "the first of another topic");
        assert!(!told.is_whole_with(1, 10), "what came before is gone");
    }

    #[tokio::test]
    async fn settles_with_the_last_answer() {
        let consignment = Consignment::default();
        consignment.settled().await.expect("nothing was sent");

        consignment.state.under_way.store(2, Ordering::SeqCst);
        let waiting = {
            let consignment = consignment.clone();
            tokio::spawn(async move { consignment.settled().await })
        };
        tokio::task::yield_now().await;
        consignment.answered(None);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        consignment.answered(None);
        waiting.await.expect("task").expect("all delivered");
    }

    #[tokio::test]
    async fn one_failure_fails_the_consignment() {
        let consignment = Consignment::default();
        consignment.state.under_way.store(2, Ordering::SeqCst);
        consignment.answered(Some(KafkaError::MessageProduction(
            RDKafkaErrorCode::MessageTimedOut,
        )));
        consignment.answered(None);
        assert!(consignment.settled().await.is_err());
    }

    #[tokio::test]
    async fn an_unreachable_kafka_stops_at_the_budget() {
        let patient = [("message.timeout.ms".to_owned(), "300000".to_owned())];
        let kafka = KafkaConfig::with_overrides("127.0.0.1:1", patient.into());
        let under_way = UnderWay::at_most(32 << 20);
        let outlet = Outlet::open(&kafka, "t".into(), under_way).expect("opens without a broker");
        let consignment = Consignment::default();
        let record = vec![0_u8; 8 * 1024 * 1024];
        let fill = async {
            for _ in 0..5 {
                outlet.send(&consignment, 0, &record).await.expect("sent");
            }
        };
        let filled = tokio::time::timeout(Duration::from_millis(500), fill).await;
        assert!(filled.is_err(), "the fifth record exceeds the budget");
        assert_eq!(consignment.state.under_way.load(Ordering::SeqCst), 4);
    }
}
