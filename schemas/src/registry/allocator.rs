//! Gives out schema ids, one writer at a time.

use std::ops::RangeInclusive;
use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer};

use super::Shared;
use super::state::Registered;
use crate::kafka::{CALL_TIMEOUT, Closing, TransactionalProducer, commit_transaction};
use crate::{Error, Result};

/// How long an abort may take before the producer is given up as it is; who
/// initialises next aborts for it.
const ABORT_MAX: Duration = Duration::from_secs(5);

/// Where the ids of a new topic begin: somewhere else than those of the one that it replaces, whose
/// ids stand in events that are still there (docs/adr/0060). Clients take ids for 32-bit integers
/// with a sign, so half of those is left to count up.
const FIRST_IDS: RangeInclusive<u32> = 1..=1 << 30;

/// Holds the producer between allocations.
///
/// While nobody else has initialised the transactional id, nobody else can have
/// written to the topic, so what was read after initialising, and our own
/// commits, are the whole of it. Once somebody has, our next commit fails, and
/// we initialise and read again.
#[derive(Default)]
pub(super) struct Allocator {
    /// The allocator goes with the last clone of the registry, on whatever thread that is.
    producer: Option<Closing<TransactionalProducer>>,
}

impl Allocator {
    /// Ids of `wanted`, written where there were none: those that a server has `given`, one each,
    /// or the next ones. Blocks. After an error the outcome may be unknown; the next call reads
    /// before it writes.
    pub(super) fn allocate(
        &mut self,
        shared: &Shared,
        wanted: &[(String, String)],
        given: Option<&[u32]>,
    ) -> Result<Vec<u32>> {
        // Someone may have been faster while we waited for our turn.
        let known = shared.read_state(|state| state.ids(wanted));
        if let Some(ids) = known
            && given.is_none_or(|given| given == ids)
        {
            return Ok(ids);
        }
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => initialise(shared)?,
        };
        let missing = shared.read_state(|state| match given {
            Some(ids) => state.missing_given(wanted, ids),
            None => {
                // Another process may have turned to a server since this one looked.
                shared.refuse_own_ids(state)?;
                state.missing(wanted, rand::random_range(FIRST_IDS))
            }
        })?;
        if !missing.is_empty() {
            // On error the producer is dropped: it may be fenced, or its
            // transaction may have ended either way.
            write(&producer, shared, &missing)?;
            shared.write_state(|state| {
                missing
                    .into_iter()
                    .try_for_each(|record| state.insert(record))
            })?;
        }
        self.producer = Some(producer);
        shared
            .read_state(|state| state.ids(wanted))
            .ok_or_else(|| Error::Corrupt(format!("{}: ids just written are gone", shared.topic)))
    }
}

/// Fences the former writer, then reads all it has committed.
fn initialise(shared: &Shared) -> Result<Closing<TransactionalProducer>> {
    let doing = format!("become the writer of {}", shared.topic);
    let mut config = shared
        .kafka
        .transactional_producer(&shared.transactional_id);
    config
        // A writer that dies hides later records for at most so long.
        .set("transaction.timeout.ms", "15000")
        .set("message.timeout.ms", "15000");
    let producer = TransactionalProducer::create(config).map_err(Error::kafka(doing.clone()))?;
    let producer = Closing::new(producer);
    producer
        .init_transactions(CALL_TIMEOUT)
        .map_err(Error::kafka(doing))?;
    shared.read_on()?;
    Ok(producer)
}

/// Writes records in one transaction.
fn write(producer: &TransactionalProducer, shared: &Shared, records: &[Registered]) -> Result<()> {
    let doing = || format!("write {} schemas to {}", records.len(), shared.topic);
    producer
        .begin_transaction()
        .map_err(Error::kafka(doing()))?;
    let written = send_and_commit(producer, shared, records, doing);
    if written.is_err() {
        // Best effort: an open transaction would hide later records from readers.
        let _ = producer.abort_transaction(ABORT_MAX);
    }
    written
}

fn send_and_commit(
    producer: &TransactionalProducer,
    shared: &Shared,
    records: &[Registered],
    doing: impl Fn() -> String,
) -> Result<()> {
    for record in records {
        let (key, value) = (record.key(), record.value()?);
        producer
            .send(
                BaseRecord::to(&shared.topic)
                    .partition(0)
                    .key(&key)
                    .payload(&value),
            )
            .map_err(|(source, _)| Error::Kafka {
                doing: doing(),
                source,
            })?;
    }
    commit_transaction(&**producer, CALL_TIMEOUT).map_err(Error::kafka(doing()))?;
    tracing::debug!(
        topic = shared.topic,
        schemas = records.len(),
        "wrote schemas"
    );
    Ok(())
}
