//! Reads a change topic from a chosen place and goes on reading as it grows, for whoever
//! watches it from outside.
//!
//! Nothing is written, no topic is made, and no consumer group remembers anything. Events that
//! are trimmed before they were read are [`Error::Kafka`] with `AutoOffsetReset`: a follower
//! never jumps.

mod start;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

pub use start::{Start, start_offset};

use crate::control::{GenerationStarted, SchemaKind, TableGap};
use crate::envelope::{Change, Decoder, TableSchema};
use crate::kafka::KafkaConfig;
use crate::{Error, Result, wire};

/// A reader of one change topic. Its calls block.
pub struct Follower {
    consumer: BaseConsumer,
    topic: String,
}

/// What came of waiting for a while.
#[derive(Debug)]
pub enum Step {
    /// A committed message.
    Message {
        /// Its offset.
        offset: i64,
        /// The framed event.
        value: Vec<u8>,
    },
    /// All that is committed has been read.
    End,
    /// Nothing came in the time given.
    Quiet,
    /// Kafka is in trouble; reading goes on by itself when it is back.
    Trouble(Error),
}

impl Follower {
    /// Starts reading at `from`; connects in the background.
    pub fn open(kafka: &KafkaConfig, topic: &str, from: i64) -> Result<Follower> {
        let doing = || format!("read {topic} from offset {from}");
        let consumer: BaseConsumer = kafka
            .read_committed_consumer("bunny-reader")
            .create()
            .map_err(Error::kafka(doing()))?;
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, 0, Offset::Offset(from))
            .map_err(Error::kafka(doing()))?;
        consumer
            .assign(&assignment)
            .map_err(Error::kafka(doing()))?;
        Ok(Follower {
            consumer,
            topic: topic.to_owned(),
        })
    }

    /// The next message, waited for at most `timeout`.
    pub fn step(&self, timeout: Duration) -> Result<Step> {
        match self.consumer.poll(timeout) {
            None => Ok(Step::Quiet),
            Some(Ok(message)) => Ok(Step::Message {
                offset: message.offset(),
                value: message.payload().unwrap_or_default().to_vec(),
            }),
            Some(Err(KafkaError::PartitionEOF(_))) => Ok(Step::End),
            Some(Err(source)) => {
                let error = Error::Kafka {
                    doing: format!("read {}", self.topic),
                    source,
                };
                if error.is_transient() {
                    Ok(Step::Trouble(error))
                } else {
                    Err(error)
                }
            }
        }
    }
}

/// A decoded event of the change topic.
#[derive(Debug)]
pub enum Event<'a> {
    /// A change of a table, and the version of the table it is written in.
    Change(Change<'a>, &'a TableSchema),
    /// A change is missing here.
    Gap(TableGap<'a>),
    /// A new history begins.
    Generation(GenerationStarted),
}

/// Decodes events by a plan per schema id.
#[derive(Debug, Default)]
pub struct Plans {
    by_id: HashMap<u32, Plan>,
}

#[derive(Debug)]
enum Plan {
    Envelope(Box<Decoder>),
    Gap,
    Generation,
}

impl Plans {
    /// The schema id of a framed event, if its plan is not there yet: [`Plans::learn`] it.
    pub fn unknown(&self, value: &[u8]) -> Result<Option<u32>> {
        let (id, _) = wire::read_frame(value)?;
        Ok((!self.by_id.contains_key(&id)).then_some(id))
    }

    /// Makes the plan of a schema.
    pub fn learn(&mut self, id: u32, schema_json: &Arc<str>) -> Result<()> {
        let plan = match SchemaKind::of(schema_json)? {
            SchemaKind::Envelope => Plan::Envelope(Box::new(Decoder::new(schema_json)?)),
            SchemaKind::TableGap => Plan::Gap,
            SchemaKind::GenerationStarted => Plan::Generation,
            other => {
                return Err(Error::Corrupt(format!(
                    "the change topic holds a record of kind {other:?} (schema id {id})"
                )));
            }
        };
        self.by_id.insert(id, plan);
        Ok(())
    }

    /// Decodes a framed event whose plan is there.
    pub fn decode<'a>(&'a self, value: &'a [u8]) -> Result<Event<'a>> {
        let (id, datum) = wire::read_frame(value)?;
        match self.by_id.get(&id) {
            None => Err(Error::UnknownId(id)),
            Some(Plan::Gap) => Ok(Event::Gap(TableGap::decode(datum)?)),
            Some(Plan::Generation) => Ok(Event::Generation(GenerationStarted::decode(datum)?)),
            Some(Plan::Envelope(decoder)) => {
                Ok(Event::Change(decoder.decode(datum)?, decoder.schema()))
            }
        }
    }
}
