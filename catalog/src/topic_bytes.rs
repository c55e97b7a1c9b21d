//! How many bytes a mirror's change topic holds. Kafka's protocol tells its clients offsets
//! only, so capture counts what it sends and keeps some samples here: an offset, and the
//! bytes of all events before it. They are bytes as sent, before compression. If the catalog
//! is lost, counting begins anew.

use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use uuid::Uuid;

use crate::{Catalog, Error, Result};

/// Samples kept; between two of them bytes are not told apart.
const SAMPLES_MAX: usize = 200;

/// Above so many tenths of `topic_max_bytes` the replay window shrinks, to so many.
const FULL_TENTHS: u64 = 8;
const SHRUNK_TENTHS: u64 = 6;
/// From so many on it is near.
const NEAR_TENTHS: u64 = 7;

/// What was counted of one change topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicBytes {
    samples: Vec<(i64, u64)>,
}

impl TopicBytes {
    /// Bytes of all events that were counted.
    pub fn total(&self) -> u64 {
        self.samples.last().map_or(0, |(_, bytes)| *bytes)
    }

    /// The topic ends at `end`, and so many bytes were sent since the last time. Pure.
    pub fn grew(&mut self, end: i64, bytes: u64) {
        let total = self.total().saturating_add(bytes);
        match self.samples.last_mut() {
            Some((offset, known)) if *offset >= end => *known = total,
            _ => self.samples.push((end, total)),
        }
        if self.samples.len() > SAMPLES_MAX {
            let gap = |index: &usize| self.samples[index + 1].1 - self.samples[index - 1].1;
            let least = (1..self.samples.len() - 1).min_by_key(gap);
            if let Some(index) = least {
                self.samples.remove(index);
            }
        }
    }

    /// The topic begins at `low` by now: what is before needs no samples. Pure.
    pub fn trimmed(&mut self, low: i64) {
        let before = self.samples.partition_point(|(offset, _)| *offset <= low);
        self.samples.drain(..before.saturating_sub(1));
    }

    /// Bytes from `low` on, where the topic begins; rather too many than too few. Pure.
    pub fn held(&self, low: i64) -> u64 {
        let before = self.samples.partition_point(|(offset, _)| *offset <= low);
        let at_low = self.samples.get(before.saturating_sub(1));
        self.total() - at_low.map_or(0, |(_, bytes)| *bytes)
    }

    /// The offset that the topic should not reach back beyond, so that there is room again;
    /// none while there is enough. Pure.
    pub fn window(&self, low: i64, max: u64) -> Option<i64> {
        if self.held(low) / FULL_TENTHS < max / 10 {
            return None;
        }
        let allowed = max / 10 * SHRUNK_TENTHS;
        let leaves_room = |(_, bytes): &&(i64, u64)| self.total() - bytes <= allowed;
        self.samples
            .iter()
            .find(leaves_room)
            .map(|(offset, _)| *offset)
    }

    /// Whether the window is to begin behind `offset` once it shrinks, and that is near. Pure.
    pub fn is_about_to_lose(&self, low: i64, max: u64, offset: i64) -> bool {
        let (full, allowed) = (max / 10 * FULL_TENTHS, max / 10 * SHRUNK_TENTHS);
        let held = self.held(low);
        let grows = full.saturating_sub(held);
        held >= max / 10 * NEAR_TENTHS && self.held(offset).saturating_add(grows) > allowed
    }
}

impl Catalog {
    /// What was counted of a mirror's change topic in a generation.
    pub async fn topic_bytes(&self, mirror_id: Uuid, generation: Uuid) -> Result<TopicBytes> {
        let found: Option<Json<TopicBytes>> = sqlx::query_scalar(
            "SELECT samples FROM bunny.topic_bytes WHERE mirror_id = $1 AND generation = $2",
        )
        .bind(mirror_id)
        .bind(generation)
        .fetch_optional(self.pool())
        .await
        .map_err(|error| Error::database("reading how large a topic is", error))?;
        Ok(found.map_or_else(TopicBytes::default, |Json(found)| found))
    }

    /// Stores it; what was counted of another generation is forgotten.
    pub async fn set_topic_bytes(
        &self,
        mirror_id: Uuid,
        generation: Uuid,
        counted: &TopicBytes,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO bunny.topic_bytes (mirror_id, generation, samples)
             SELECT id, $2, $3 FROM bunny.mirrors WHERE id = $1
             ON CONFLICT (mirror_id) DO UPDATE
             SET generation = excluded.generation, samples = excluded.samples",
        )
        .bind(mirror_id)
        .bind(generation)
        .bind(Json(counted))
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("storing how large a topic is", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(samples: &[(i64, u64)]) -> TopicBytes {
        TopicBytes {
            samples: samples.to_vec(),
        }
    }

    #[test]
    fn what_is_held_is_counted_from_the_begin_of_the_topic() {
        let mut topic = TopicBytes::default();
        assert_eq!((topic.total(), topic.held(0)), (0, 0));
        topic.grew(10, 0);
        topic.grew(20, 100);
        topic.grew(30, 50);
        topic.grew(30, 7);
        assert_eq!(topic.held(0), 157);
        assert_eq!(topic.held(20), 57);
        assert_eq!(topic.held(29), 57, "rather too many");
        assert_eq!(topic.held(30), 0);
        topic.trimmed(25);
        assert_eq!(topic, counted(&[(20, 100), (30, 157)]));
        assert_eq!(topic.held(25), 57);
    }

    #[test]
    fn samples_are_bounded_and_stay_spread_over_the_bytes() {
        let mut topic = TopicBytes::default();
        for offset in 0..2000 {
            topic.grew(offset, 10);
        }
        assert_eq!(topic.samples.len(), SAMPLES_MAX);
        assert_eq!((topic.held(0), topic.total()), (19_990, 20_000));
        let gaps = topic.samples.windows(2).map(|pair| pair[1].1 - pair[0].1);
        assert!(gaps.max() < Some(400), "{:?}", topic.samples);
    }

    #[test]
    fn the_window_shrinks_before_the_topic_is_full() {
        let topic = counted(&[(0, 0), (10, 300), (20, 500), (30, 790)]);
        assert_eq!(topic.window(0, 1000), None);
        let topic = counted(&[(0, 0), (10, 300), (20, 500), (30, 900)]);
        assert_eq!(topic.window(0, 1000), Some(10));
        assert_eq!(topic.window(10, 1000), None, "there is room already");
        assert_eq!(TopicBytes::default().window(0, 1000), None);
    }

    #[test]
    fn what_the_window_will_not_hold_is_known_before_it_shrinks() {
        let samples = [(0, 0), (10, 150), (20, 300), (30, 690)];
        let topic = counted(&samples);
        assert!(!topic.is_about_to_lose(0, 1000, 0), "there is time");
        let mut topic = counted(&samples);
        topic.grew(40, 20);
        let lost = [0, 10, 20, 30].map(|offset| topic.is_about_to_lose(0, 1000, offset));
        assert_eq!(lost, [true, true, false, false]);
        // And so it comes.
        topic.grew(50, 90);
        assert_eq!(topic.window(0, 1000), Some(20));
        assert!(!TopicBytes::default().is_about_to_lose(0, 1000, 0));
    }
}
