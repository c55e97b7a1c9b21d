//! Where in a change topic to start reading.

use std::collections::VecDeque;

use bunny_postgres::Lsn;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{Event, Plans};
use crate::kafka::KafkaConfig;
use crate::reader::last_position;
use crate::registry::Registry;
use crate::tail::{Tail, blocking};
use crate::topics::Topics;
use crate::{Error, Result};

/// A place in a change topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first event that is retained.
    Earliest,
    /// What comes from now on.
    Latest,
    /// The last so many events.
    Last(usize),
    /// This offset, or the first event after it. It must lie in the topic, or be its end.
    Offset(i64),
    /// The first transaction of the present generation whose commit LSN is not less.
    Lsn(Lsn),
    /// The first transaction committed then or later, microseconds since the Unix epoch. Commit
    /// times are taken to ascend, which they do as far as the source's clock does.
    Time(i64),
}

/// Offsets looked at in the first step back; each further step doubles.
const FIRST_STEP: i64 = 64;

/// The offset of a place. The topic's end when nothing is there yet.
pub async fn start_offset(
    kafka: &KafkaConfig,
    registry: &Registry,
    topics: &Topics,
    slug: &str,
    start: Start,
) -> Result<i64> {
    let topic = topics.changes(slug);
    let (low, end) = kafka.watermarks(&topic, 0).await?;
    let wanted = match start {
        Start::Earliest => return Ok(low),
        Start::Latest => return Ok(end),
        Start::Offset(offset) if (low..=end).contains(&offset) => return Ok(offset),
        Start::Offset(offset) => {
            return Err(Error::Invalid(format!(
                "{topic} has no offset {offset}: it reaches from {low} to {end}"
            )));
        }
        Start::Last(count) => {
            let kafka = kafka.clone();
            return blocking(move || last(&Tail::open(&kafka, &topic, 0)?, count)).await;
        }
        Start::Time(time_us) => Wanted::Time(time_us),
        Start::Lsn(lsn) => match last_position(kafka, topics, slug).await? {
            Some(position) => Wanted::Lsn(position.generation, lsn),
            None => return Ok(end),
        },
    };
    let (kafka, registry) = (kafka.clone(), registry.clone());
    let runtime = Handle::current();
    blocking(move || {
        let tail = Tail::open(&kafka, &topic, 0)?;
        let mut plans = Plans::default();
        search(low, end, |from| {
            let Some((offset, value)) = tail.first(from)? else {
                return Ok(None);
            };
            if let Some(id) = plans.unknown(&value)? {
                plans.learn(id, &runtime.block_on(registry.schema(id))?)?;
            }
            Ok(Some((offset, wanted.is_met_by(&plans.decode(&value)?))))
        })
    })
    .await
}

/// What an event must satisfy, and with it all events after it.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Lsn(Uuid, Lsn),
    Time(i64),
}

impl Wanted {
    fn is_met_by(self, event: &Event<'_>) -> bool {
        let source = match event {
            Event::Change(change, _) => change.source,
            Event::Gap(gap) => gap.source,
            Event::Generation(started) => {
                return match self {
                    Wanted::Lsn(generation, lsn) => {
                        started.generation == generation && started.start_lsn >= lsn
                    }
                    // It has no time of its own; the event after it decides.
                    Wanted::Time(_) => false,
                };
            }
        };
        match self {
            Wanted::Lsn(generation, lsn) => {
                source.generation == generation && source.commit_lsn >= lsn
            }
            Wanted::Time(time_us) => source.commit_ts_us >= time_us,
        }
    }
}

/// The first offset in `low..end` whose event is met, or `end`. `at` tells of the first event at
/// or after an offset: its offset and whether it is met. Once met, all later ones are.
fn search(
    low: i64,
    end: i64,
    mut at: impl FnMut(i64) -> Result<Option<(i64, bool)>>,
) -> Result<i64> {
    // Everything before `first` is not met; the answer is `found` or lies before `found_from`.
    let (mut first, mut found_from, mut found) = (low, end, end);
    while first < found_from {
        let middle = first + (found_from - first) / 2;
        match at(middle)? {
            Some((offset, false)) if offset < found_from => first = offset + 1,
            Some((offset, true)) => (found_from, found) = (middle, offset),
            // What lies from the middle on holds no event, or none before one that is met.
            _ => found_from = middle,
        }
    }
    Ok(found)
}

/// The offset of the last-but-`count` event, or the first there is; the end for none.
fn last(tail: &Tail, count: usize) -> Result<i64> {
    let (low, end) = tail.watermarks()?;
    if count == 0 {
        return Ok(end);
    }
    let mut step = FIRST_STEP.max(i64::try_from(count).unwrap_or(i64::MAX));
    loop {
        let start = end.saturating_sub(step).max(low);
        let mut offsets = VecDeque::new();
        tail.read(start, |record| {
            if offsets.len() == count {
                offsets.pop_front();
            }
            offsets.push_back(record.offset);
            Ok(())
        })?;
        if offsets.len() == count || start == low {
            return Ok(offsets.front().copied().unwrap_or(end));
        }
        step = step.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_search_finds_what_a_look_at_each_would(
            offsets in prop::collection::btree_set(0_i64..200, 0..60),
            met_from in 0_i64..220,
            low in 0_i64..50,
            end in 150_i64..220,
        ) {
            let held = |from: i64| {
                let in_reach = |offset: &i64| (from.max(low)..end).contains(offset);
                offsets.iter().copied().find(in_reach)
            };
            let wanted = held(met_from).unwrap_or(end);
            let mut looks = 0;
            let found = search(low, end, |from| {
                looks += 1;
                Ok(held(from).map(|offset| (offset, offset >= met_from)))
            });
            prop_assert_eq!(found.unwrap(), wanted);
            prop_assert!(looks <= 9, "{} looks", looks);
        }
    }
}
