//! What the topics of a mirror still hold: which syncs a table can be rebuilt from.
//!
//! A sync can be loaded again if it finished, all its chunks are there, and the change topic
//! reaches back to where its changes begin. What is decided here is decided on values that
//! were read once; whoever acts on them later looks again.

use bunny_postgres::{Lsn, TableName};
use uuid::Uuid;

use crate::Result;
use crate::control::{PositionRecord, SyncRecord, SyncState};
use crate::kafka::KafkaConfig;
use crate::reader::read_positions;
use crate::topics::Topics;

/// The topics of a mirror at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// How far capture has published.
    pub position: Option<PositionRecord>,
    /// Every sync that is recorded.
    pub syncs: Vec<SyncRecord>,
    /// First offset and end of the change topic.
    pub changes: (i64, i64),
    /// First offset and end of each partition of the snapshot topic; empty if there is no such topic.
    pub snapshot: Vec<(i64, i64)>,
}

/// Why a table cannot be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No sync of it has finished.
    NoSync,
    /// There were some, and what they need is trimmed.
    Trimmed,
    /// Those that are retained are all later than what is asked for; the earliest of them.
    OnlyLater(Box<SyncRecord>),
}

impl Retained {
    /// Reads position topic and watermarks.
    pub async fn read(kafka: &KafkaConfig, topics: &Topics, slug: &str) -> Result<Retained> {
        // In this order: what is trimmed meanwhile is missed here, never the other way round.
        let positions = read_positions(kafka, topics, slug).await?;
        let changes = kafka.watermarks(&topics.changes(slug), 0).await?;
        let topic = topics.snapshot(slug);
        let mut snapshot = Vec::new();
        for partition in 0..kafka.partitions(&topic).await?.unwrap_or_default() {
            snapshot.push(kafka.watermarks(&topic, partition).await?);
        }
        Ok(Retained {
            position: positions.position,
            syncs: positions.syncs.into_values().collect(),
            changes,
            snapshot,
        })
    }

    /// Whether all that the sync needs is there. Pure.
    pub fn holds(&self, sync: &SyncRecord) -> bool {
        sync.state == SyncState::Finished
            && !sync.generation.is_nil()
            && sync.changes_offset >= self.changes.0
            && sync.changes_offset <= self.changes.1
            && self.holds_copy(sync)
    }

    /// Whether the snapshot topic reaches from where the copy begins to beyond that: one that was
    /// deleted and made anew ends before. Pure.
    fn holds_copy(&self, sync: &SyncRecord) -> bool {
        let starts = &sync.start_offsets;
        let mut partitions = starts.iter().zip(&self.snapshot);
        let is_within = |(first, (low, end)): (&i64, &(i64, i64))| (low..=end).contains(&first);
        // The first partition has the beginning and the end of every copy.
        let is_begun = starts
            .first()
            .zip(self.snapshot.first())
            .is_some_and(|(first, (_, end))| first < end);
        is_begun && starts.len() <= self.snapshot.len() && partitions.all(is_within)
    }

    /// Bytes of COPY text of the copies that are there. Pure.
    pub fn copies_bytes(&self) -> u64 {
        let is_held =
            |sync: &&SyncRecord| sync.state == SyncState::Finished && self.holds_copy(sync);
        let held = self.syncs.iter().filter(is_held);
        held.map(|sync| u64::try_from(sync.bytes).unwrap_or_default())
            .sum()
    }

    /// The syncs of a table in `generation` that count: none before the first of `since` that is
    /// recorded, and none at all where none of them is yet; all if there is no `since`. Pure.
    fn of<'a>(
        &'a self,
        table: &TableName,
        generation: Uuid,
        since: &[Uuid],
    ) -> impl Iterator<Item = &'a SyncRecord> + use<'a> {
        let recorded = |since: &Uuid| {
            let mut syncs = self.syncs.iter();
            syncs.find(|sync| sync.request_id == *since)
        };
        let first = match since.iter().find_map(recorded) {
            Some(sync) => sync.lsn,
            None if since.is_empty() => Lsn(0),
            None => Lsn(u64::MAX),
        };
        let table = table.clone();
        self.syncs.iter().filter(move |sync| {
            sync.table_name() == table
                && sync.generation == generation
                && sync.lsn >= first
                && sync.state == SyncState::Finished
        })
    }

    /// The newest sync of a table that can be loaded again and satisfies `is_early_enough`;
    /// only those from `since` on count. Pure.
    pub fn newest(
        &self,
        table: &TableName,
        generation: Uuid,
        since: &[Uuid],
        is_early_enough: impl Fn(&SyncRecord) -> bool,
    ) -> std::result::Result<&SyncRecord, Missing> {
        let known: Vec<&SyncRecord> = self.of(table, generation, since).collect();
        let held: Vec<&SyncRecord> = known
            .iter()
            .copied()
            .filter(|sync| self.holds(sync))
            .collect();
        let early = held.iter().copied().filter(|sync| is_early_enough(sync));
        if let Some(newest) = early.max_by_key(|sync| sync.lsn) {
            return Ok(newest);
        }
        match held.iter().min_by_key(|sync| sync.lsn) {
            Some(earliest) => Err(Missing::OnlyLater(Box::new((*earliest).clone()))),
            None if known.is_empty() => Err(Missing::NoSync),
            None => Err(Missing::Trimmed),
        }
    }

    /// The earliest sync of a table that can be loaded again. Pure.
    pub fn earliest(
        &self,
        table: &TableName,
        generation: Uuid,
        since: &[Uuid],
    ) -> Option<&SyncRecord> {
        let held = self
            .of(table, generation, since)
            .filter(|sync| self.holds(sync));
        held.min_by_key(|sync| sync.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATION: Uuid = Uuid::from_u128(7);

    fn table() -> TableName {
        TableName::new("public", "t")
    }

    fn sync(request: u128, lsn: u64, changes_offset: i64) -> SyncRecord {
        SyncRecord {
            request_id: Uuid::from_u128(request),
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state: SyncState::Finished,
            lsn: Lsn(lsn),
            start_offsets: vec![changes_offset, changes_offset],
            generation: GENERATION,
            changes_offset,
            taken_at_us: 0,
            rows: 1,
            bytes: 1,
        }
    }

    fn retained(syncs: Vec<SyncRecord>, low: i64) -> Retained {
        Retained {
            syncs,
            changes: (low, 1000),
            snapshot: vec![(low, 1000), (low, 1000), (5, 1000)],
            ..Retained::default()
        }
    }

    fn newest(
        retained: &Retained,
        since: &[u128],
        until: u64,
    ) -> std::result::Result<u128, Missing> {
        let early = |sync: &SyncRecord| sync.lsn.0 <= until;
        let since: Vec<Uuid> = since.iter().copied().map(Uuid::from_u128).collect();
        let found = retained.newest(&table(), GENERATION, &since, early);
        found.map(|sync| sync.request_id.as_u128())
    }

    #[test]
    fn the_newest_that_is_early_enough_and_held() {
        let all = retained(vec![sync(1, 10, 1), sync(2, 20, 2), sync(3, 30, 3)], 0);
        assert_eq!(newest(&all, &[], 100), Ok(3));
        assert_eq!(newest(&all, &[], 29), Ok(2));
        assert!(
            matches!(newest(&all, &[], 9), Err(Missing::OnlyLater(first)) if first.lsn == Lsn(10))
        );
        let trimmed = retained(all.syncs.clone(), 2);
        assert!(
            matches!(newest(&trimmed, &[], 19), Err(Missing::OnlyLater(first)) if first.lsn == Lsn(20))
        );
        assert_eq!(
            newest(&retained(all.syncs.clone(), 4), &[], 100),
            Err(Missing::Trimmed)
        );
        assert_eq!(newest(&Retained::default(), &[], 100), Err(Missing::NoSync));
    }

    #[test]
    fn what_was_copied_under_another_mapping_does_not_count() {
        let all = retained(vec![sync(1, 10, 1), sync(2, 20, 2)], 0);
        assert!(matches!(newest(&all, &[2], 19), Err(Missing::OnlyLater(_))));
        assert_eq!(
            newest(&all, &[9, 2], 100),
            Ok(2),
            "what was asked for first was asked for anew before it began"
        );
        assert_eq!(
            newest(&all, &[9, 8], 100),
            Err(Missing::NoSync),
            "neither has begun"
        );
    }

    #[test]
    fn a_snapshot_topic_that_was_made_anew_holds_nothing_of_before() {
        let copy = SyncRecord {
            start_offsets: vec![0, 3],
            ..sync(1, 10, 1)
        };
        let holds = |snapshot: &[(i64, i64)]| {
            let retained = Retained {
                snapshot: snapshot.to_vec(),
                ..retained(vec![copy.clone()], 0)
            };
            assert_eq!(retained.holds(&copy), retained.copies_bytes() > 0);
            retained.holds(&copy)
        };
        assert!(holds(&[(0, 4), (3, 3)]), "all its chunks are in one");
        assert!(holds(&[(0, 4), (0, 5), (0, 0)]), "a partition came later");
        for anew in [
            &[][..],
            &[(0, 0), (0, 0)],
            &[(0, 4)],
            &[(0, 4), (0, 2)],
            &[(0, 0), (0, 5)],
        ] {
            assert!(!holds(anew), "{anew:?}");
        }
    }

    #[test]
    fn unfinished_and_foreign_ones_do_not_count() {
        let started = SyncRecord {
            state: SyncState::Started,
            ..sync(1, 10, 1)
        };
        let other = SyncRecord {
            generation: Uuid::from_u128(8),
            ..sync(2, 10, 1)
        };
        let earlier_version = SyncRecord {
            generation: Uuid::nil(),
            ..sync(3, 10, 1)
        };
        let all = retained(vec![started, other, earlier_version], 0);
        assert_eq!(newest(&all, &[], 100), Err(Missing::NoSync));
        let later = SyncRecord {
            changes_offset: 2000,
            ..sync(4, 10, 1)
        };
        assert_eq!(
            newest(&retained(vec![later], 0), &[], 100),
            Err(Missing::Trimmed)
        );
    }
}
