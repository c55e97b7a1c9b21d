//! Reads the change topic from the progress row on and hands parts to the applier.
//!
//! Contract: parts come in order, without a gap, each checked to follow the one before
//! (`order`); the next ones are decoded while one is written. The offset to start at is
//! the destination's; out of range is an error, never a reset. Whatever goes wrong ends
//! the reader with the error, and with it the run.

mod decode;
pub(crate) mod log_end;
mod open;
mod order;
mod start;

use std::sync::Arc;
use std::time::Duration;

use bunny_postgres::Lsn;
use bunny_schemas::control::GenerationStarted;
use bunny_schemas::registry::{LOST_PATIENCE, Registry};
use bunny_schemas::{Position, wire};
use futures_util::{FutureExt, StreamExt};
use rdkafka::Message;
use rdkafka::consumer::{MessageStream, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::batch::{Assembler, Part};
use crate::bookkeeping::Progress;
use crate::budget::Budget;
use crate::context::MirrorRun;
use crate::error::{Error, Result, way_out};
use crate::event::Event;
use crate::replay::Bound;
use crate::routes::Routes;
use crate::stats::Stats;
use bunny_schemas::kafka::{Closing, KafkaConfig};

use decode::{Decoding, Record};
use order::{Order, Start};

pub(crate) use open::open;
pub use start::{first_waiting, generation_start};

/// The change topic has one partition: the order of commits.
pub(crate) const PARTITION: i32 = 0;

/// After so long without the rest of a transaction that is half written, the
/// destination transaction is given up: its locks and its snapshot must not stay.
const UNFINISHED_AFTER: Duration = Duration::from_secs(10);

/// After so long without an event short of the log's end, the same: the broker may take
/// its time, but not for ever at the destination's cost.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Troubles that librdkafka gets over by itself are errors only when they last.
const TROUBLE_MAX: Duration = Duration::from_secs(30);

/// A trouble that comes so long after the one before is another one. A log without news
/// shows in no other way that the first is over; one that lasts is heard of far more
/// often, at each attempt to connect.
const TROUBLE_FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// What the applier is to do next.
#[derive(Debug)]
pub enum Work {
    Part(Part),
    /// Another generation begins; what it says is at the offset before `next_offset`.
    Generation {
        generation: Uuid,
        next_offset: i64,
    },
    /// Everything the log held at this moment has been handed over.
    CaughtUp,
    /// The bound is reached: all before `next_offset` has been handed over, `position` is
    /// the first event that is not. Nothing comes after this.
    Bound {
        position: Position,
        next_offset: i64,
    },
    /// Everything before [`Options::stop`] has been handed over; nothing more will be.
    Stop,
}

/// A place between two source transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopAt {
    /// What committed before is read.
    pub lsn: Lsn,
    /// The last event in the log at a moment when everything before `lsn` was in it.
    pub published: Position,
}

impl StopAt {
    /// Whether nothing more comes before the place, `last` being the last event read.
    fn is_reached(&self, last: Position) -> bool {
        self.published.commit_lsn < self.lsn && last >= self.published
    }

    /// Whether an event is beyond it.
    fn is_before(&self, event: Position) -> bool {
        event.commit_lsn >= self.lsn
    }
}

/// When whole transactions are handed over that do not fill a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// When the log has nothing more to give and the applier has nothing to do.
    Eager,
    /// So long after the first of them.
    Interval(Duration),
}

/// What a reader needs beside the run.
pub struct Options {
    pub start: Progress,
    pub routes: Arc<Routes>,
    pub flush: Flush,
    pub changes_max: usize,
    pub budget: Budget,
    pub stats: Arc<Stats>,
    /// What another reader of this run has committed, which this one must not pass; it
    /// always ends with a whole source transaction. None: the log's end is the only limit.
    pub limit: Option<watch::Receiver<Progress>>,
    /// Where to stop; it is not within a source transaction.
    pub bound: Option<Bound>,
    /// Where reading ends. None: it goes on for ever.
    pub stop: Option<StopAt>,
    /// Whether the applier waits for work.
    pub demand: watch::Receiver<bool>,
    pub work: mpsc::Sender<Work>,
}

/// Reads until an error, or until the applier is gone.
pub struct Reader {
    kafka: KafkaConfig,
    topic: String,
    registry: Registry,
    options: Options,
    decoding: Decoding,
    order: Order,
    assembler: Assembler,
    /// When the oldest whole transaction in the assembler came.
    oldest_at: Option<Instant>,
    /// When nothing was left at hand for the first time since the last event came.
    last_event_at: Instant,
    /// Events have come since: the clock is not asked for every one.
    has_received: bool,
    end_offset: i64,
    at_end: bool,
    caught_up_said: bool,
    trouble: Option<Trouble>,
}

/// Errors of Kafka that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trouble {
    since: Instant,
    last: Instant,
}

impl Trouble {
    /// The trouble that an error at `now` belongs to.
    fn at(now: Instant, before: Option<Trouble>) -> Trouble {
        let goes_on =
            before.filter(|before| now.duration_since(before.last) < TROUBLE_FORGOTTEN_AFTER);
        Trouble {
            since: goes_on.map_or(now, |before| before.since),
            last: now,
        }
    }

    fn lasted(&self) -> Duration {
        self.last.duration_since(self.since)
    }
}

impl Reader {
    pub fn new(run: &MirrorRun, options: Options) -> Reader {
        let limits = options.budget.limits(options.changes_max);
        Reader {
            kafka: run.kafka.clone(),
            topic: run.topics.changes(run.mirror.topics_slug()),
            registry: run.registry.clone(),
            decoding: Decoding::new(options.routes.clone()),
            order: Order::after(&options.start, way_out(run.mirror.owner.as_ref())),
            assembler: Assembler::new(limits),
            oldest_at: None,
            last_event_at: Instant::now(),
            has_received: false,
            end_offset: options.start.next_offset,
            at_end: false,
            caught_up_said: false,
            trouble: None,
            options,
        }
    }

    pub(crate) async fn run(self, consumer: Arc<Closing<StreamConsumer>>) -> Result<()> {
        let (kafka, topic) = (self.kafka.clone(), self.topic.clone());
        let stats = self.options.stats.clone();
        let is_at = |end| stats.end_offset(end);
        tokio::select! {
            read = self.read(&consumer) => read,
            lost = log_end::watch(&kafka, consumer.clone(), &topic, PARTITION, is_at) => Err(lost),
        }
    }

    async fn read(mut self, consumer: &StreamConsumer) -> Result<()> {
        let mut stream = consumer.stream();
        if self
            .options
            .stop
            .is_some_and(|stop| stop.is_reached(self.options.start.position))
        {
            return self.halt().await;
        }
        loop {
            // What librdkafka holds already comes without a detour through the timer.
            if let Some(received) = stream.next().now_or_never().flatten() {
                self.receive(received).await?;
            } else if self.options.work.is_closed() {
                return Ok(());
            } else {
                self.wait(&mut stream).await?;
            }
        }
    }

    /// Nothing is at hand: waits for the next record, or for the time to flush.
    async fn wait<C: rdkafka::consumer::ConsumerContext + 'static>(
        &mut self,
        stream: &mut MessageStream<'_, C>,
    ) -> Result<()> {
        let now = Instant::now();
        if std::mem::take(&mut self.has_received) {
            self.last_event_at = now;
        }
        let flush_at = self.flush_at(now);
        let is_due = flush_at.is_some_and(|at| at <= now);
        let holds_nothing = !self.assembler.has_whole() && !self.assembler.is_unfinished();
        let says_caught_up = self.at_end && !self.caught_up_said && holds_nothing;
        let patience = if self.at_end {
            UNFINISHED_AFTER
        } else {
            STALLED_AFTER
        };
        let give_up_at = self.last_event_at + patience;
        tokio::select! {
            biased;
            received = stream.next() => match received {
                Some(received) => self.receive(received).await,
                None => Err(Error::NotYet(format!("the stream of {} ended by itself", self.topic))),
            },
            wanted = is_wanted(&mut self.options.demand), if is_due || says_caught_up => {
                if !wanted {
                    return Ok(());
                }
                if is_due {
                    self.flush().await
                } else {
                    self.caught_up_said = true;
                    self.send(Work::CaughtUp).await
                }
            }
            () = sleep_until(flush_at.unwrap_or(now)), if flush_at.is_some() && !is_due => Ok(()),
            () = sleep_until(give_up_at), if self.assembler.is_streaming() => Err(self.unfinished()),
            () = self.options.work.closed() => Ok(()),
        }
    }

    /// Only at the end of the log is it sure that the rest of a transaction is not there.
    fn unfinished(&self) -> Error {
        if self.at_end {
            return Error::Unfinished {
                end_offset: self.end_offset,
            };
        }
        Error::NotYet(format!(
            "{} gave nothing for {} s in the middle of a transaction, at offset {}, though its end is not reached",
            self.topic,
            STALLED_AFTER.as_secs(),
            self.end_offset
        ))
    }

    /// When what is gathered is to be handed over; None while nothing is.
    fn flush_at(&self, now: Instant) -> Option<Instant> {
        let oldest_at = self.oldest_at.filter(|_| self.assembler.has_whole())?;
        Some(match self.options.flush {
            Flush::Eager => now,
            Flush::Interval(interval) => oldest_at + interval,
        })
    }

    async fn receive(&mut self, received: Result<BorrowedMessage<'_>, KafkaError>) -> Result<()> {
        let message = match received {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(_)) => {
                self.trouble = None;
                self.at_end = true;
                self.options.stats.at_end();
                return Ok(());
            }
            Err(error) => return self.trouble(error),
        };
        self.trouble = None;
        self.at_end = false;
        let offset = message.offset();
        self.wait_for_limit(offset).await?;
        let payload = message.payload().ok_or_else(|| {
            Error::Inconsistent(format!(
                "the record at offset {offset} of {} is empty: something else writes to the topic",
                self.topic
            ))
        })?;
        let (schema_id, datum) = wire::read_frame(payload)?;
        if !self.decoding.knows(schema_id) {
            let carrier = carrier(&self.topic, offset);
            let schema = self
                .registry
                .schema_of(schema_id, &carrier, LOST_PATIENCE)
                .await?;
            self.decoding.learn(schema_id, &schema)?;
        }
        let decoded = self.decoding.decode(schema_id, datum, offset);
        match decoded.map_err(|error| not_of_schema(error, schema_id, &self.topic, offset))? {
            Record::Event { generation, event } => {
                self.order.event(generation, event.position, offset)?;
                let position = event.position;
                let is_out = |bound: &Bound| bound.excludes(position, event.commit_ts_us);
                if self.options.bound.as_ref().is_some_and(is_out) {
                    return self.stop(position, offset).await;
                }
                let stop = self.options.stop;
                if stop.is_some_and(|stop| stop.is_before(position)) {
                    return self.halt().await;
                }
                self.take(event).await?;
                match stop {
                    Some(stop) if stop.is_reached(position) => self.halt().await,
                    _ => Ok(()),
                }
            }
            Record::Generation(started) => self.generation(&started, offset).await,
        }
    }

    /// Waits until the record at `offset` is within the limit. What was read so far is
    /// handed over first: it ends where a source transaction does, since the limit does.
    async fn wait_for_limit(&mut self, offset: i64) -> Result<()> {
        let is_within = |limit: &Progress| offset < limit.next_offset;
        let Some(limit) = &self.options.limit else {
            return Ok(());
        };
        let mut limit = limit.clone();
        if is_within(&limit.borrow()) {
            return Ok(());
        }
        self.flush().await?;
        let moved = tokio::select! {
            moved = limit.wait_for(is_within) => moved.is_ok(),
            () = self.options.work.closed() => false,
        };
        // Without anyone to read for, or to read after, the record must not be passed over.
        if moved { Ok(()) } else { Err(Error::Cancelled) }
    }

    /// Hands over what came before the bound, says that it is reached, and waits for the
    /// applier to end.
    async fn stop(&mut self, position: Position, next_offset: i64) -> Result<()> {
        self.flush().await?;
        self.send(Work::Bound {
            position,
            next_offset,
        })
        .await?;
        self.options.work.closed().await;
        Ok(())
    }

    async fn take(&mut self, event: Event) -> Result<()> {
        self.has_received = true;
        self.end_offset = event.offset + 1;
        self.options
            .stats
            .received(event.position, event.commit_ts_us);
        let full = self.assembler.push(event);
        if let Some(part) = full {
            self.hand_over(part).await?;
        }
        if self.assembler.has_whole() {
            self.oldest_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        match self.assembler.flush() {
            Some(part) => self.hand_over(part).await,
            None => Ok(()),
        }
    }

    async fn hand_over(&mut self, part: Part) -> Result<()> {
        self.oldest_at = None;
        self.assembler
            .set_limits(self.options.budget.limits(self.options.changes_max));
        self.send(Work::Part(part)).await?;
        // While this waited for the applier no event was looked for.
        self.last_event_at = Instant::now();
        Ok(())
    }

    async fn generation(&mut self, started: &GenerationStarted, offset: i64) -> Result<()> {
        if self.order.generation(started.generation, offset)? == Start::Known {
            return Ok(());
        }
        self.flush().await?;
        self.assembler.abandon_unfinished();
        self.send(Work::Generation {
            generation: started.generation,
            next_offset: offset + 1,
        })
        .await
    }

    /// Hands over what is there, and reads no more.
    async fn halt(&mut self) -> Result<()> {
        self.flush().await?;
        self.send(Work::Stop).await?;
        self.options.work.closed().await;
        Ok(())
    }

    async fn send(&mut self, work: Work) -> Result<()> {
        // A closed channel means that the run is over; `run` sees it next.
        let _ = self.options.work.send(work).await;
        Ok(())
    }

    fn trouble(&mut self, error: KafkaError) -> Result<()> {
        if let Some(error) = out_of_range(&self.topic, self.end_offset, &error) {
            self.kafka.ask_anew();
            return Err(error);
        }
        let error = Error::kafka(format!("reading {}", self.topic))(error);
        let trouble = Trouble::at(Instant::now(), self.trouble);
        self.trouble = Some(trouble);
        if !error.is_transient() || trouble.lasted() >= TROUBLE_MAX {
            return Err(error);
        }
        tracing::warn!(topic = %self.topic, %error, "Kafka is in trouble, going on");
        Ok(())
    }
}

/// The error of an offset that the broker says it does not have. A stale leader may say so too:
/// the next run decides, which asks where the log begins and ends before it reads. Pure.
fn out_of_range(topic: &str, offset: i64, error: &KafkaError) -> Option<Error> {
    let is_out_of_range = matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset)
    );
    is_out_of_range.then(|| {
        Error::NotYet(format!(
            "offset {offset} of {topic} is out of range ({error}): where the log begins and ends is asked again"
        ))
    })
}

/// An event that does not read by its schema shows that the schema ids have changed their meaning.
fn not_of_schema(error: Error, schema_id: u32, topic: &str, offset: i64) -> Error {
    match error {
        Error::Schemas(error) => {
            Error::Schemas(error.not_of_schema(schema_id, &carrier(topic, offset)))
        }
        other => other,
    }
}

fn carrier(topic: &str, offset: i64) -> String {
    format!("the record at offset {offset} of {topic}")
}

/// Waits until the applier waits; false when it is gone.
async fn is_wanted(demand: &mut watch::Receiver<bool>) -> bool {
    demand.wait_for(|wanted| *wanted).await.is_ok()
}

#[cfg(test)]
mod tests;
