//! Where a run may start reading the slot, or why it must not.
//!
//! Three places remember how far capture got: the position topic, the change topic and the
//! slot. They are compared before the stream opens; any disagreement stops the mirror,
//! because going on would lose or repeat changes without a sign (invariants I1, I2, I6).

use bunny_postgres::Lsn;
use bunny_schemas::Position;
use bunny_schemas::control::PositionRecord;
use uuid::Uuid;

/// What the change topic's last committed event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastInTopic {
    pub(crate) generation: Uuid,
    /// `None` for `GenerationStarted`, which has no position of its own.
    pub(crate) position: Option<Position>,
}

/// What the source says of the slot and of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceFacts {
    pub(crate) system_id: String,
    pub(crate) timeline: u32,
    pub(crate) flush_lsn: Lsn,
    /// `(timeline, where it ended)` for each former timeline.
    pub(crate) timeline_ends: Vec<(u32, Lsn)>,
    /// `None`: there is no such slot.
    pub(crate) slot: Option<SlotFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotFacts {
    pub(crate) confirmed_flush_lsn: Lsn,
    /// `wal_status` is `lost`, or the slot is invalidated.
    pub(crate) lost: bool,
}

/// Why capture must not start by itself. Each message carries the cause and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the position topic has no record of generation {0}: the topic was deleted or trimmed by someone else; resync the mirror to start a new generation"
    )]
    NoPosition(Uuid),
    #[error(
        "the position topic is at generation {recorded}, the mirror at {wanted}; resync the mirror to start a new generation"
    )]
    OtherGeneration { recorded: Uuid, wanted: Uuid },
    #[error(
        "the position record ends at {recorded:?} but the change topic's last event is {found}; one of the topics was changed by someone else; resync the mirror to start a new generation"
    )]
    TopicDisagrees { recorded: Position, found: String },
    #[error(
        "the replication slot is gone from the source (dropped, or lost in a failover): the changes since {0} cannot be read any more; resync the mirror to start a new generation"
    )]
    SlotMissing(Lsn),
    #[error(
        "the replication slot was invalidated by the source (max_slot_wal_keep_size): the changes since {0} are gone; raise that limit, then resync the mirror to start a new generation"
    )]
    SlotLost(Lsn),
    #[error(
        "the slot is confirmed up to {slot}, beyond {recorded} which is what the log holds; someone else has advanced it; resync the mirror to start a new generation"
    )]
    SlotAhead { slot: Lsn, recorded: Lsn },
    #[error(
        "the source is another Postgres cluster (system identifier {found}, the mirror was made on {recorded}); point the peer back, or resync the mirror to start a new generation"
    )]
    OtherSystem { recorded: String, found: String },
    #[error(
        "the source's WAL ends at {flush}, before {recorded} which the log holds already: its storage was rolled back; resync the mirror to start a new generation"
    )]
    StorageRolledBack { flush: Lsn, recorded: Lsn },
    #[error(
        "the source is on timeline {timeline}, which left the former one at {switch}, before {recorded} which the log holds already; resync the mirror to start a new generation"
    )]
    TimelineDiverged {
        timeline: u32,
        switch: Lsn,
        recorded: Lsn,
    },
    #[error(
        "publication {0} of this mirror is gone from the source: changes may have been missed; resync the mirror to start a new generation"
    )]
    PublicationGone(String),
    #[error(
        "a publication of this mirror was dropped and created again at the source: changes may have been missed; resync the mirror to start a new generation"
    )]
    PublicationReplaced,
    #[error(
        "the log was last told by command {0}, which this catalog does not know: it was restored from a backup that is older, or it is another installation's; POST …/adopt goes on from what the log and the destination hold, or resync the mirror to start a new generation"
    )]
    UnknownWish(Uuid),
    /// Says the way out too.
    #[error("{0}")]
    IdLost(String),
    #[error(
        "the source is on timeline {found} and its history does not name timeline {recorded}; resync the mirror to start a new generation"
    )]
    UnknownTimeline { recorded: u32, found: u32 },
}

impl Refusal {
    /// True when an answer of Kafka's from before a change of leader would look the same:
    /// only a disagreement that lasts is one.
    pub(crate) fn may_be_stale(&self) -> bool {
        matches!(
            self,
            Refusal::NoPosition(_)
                | Refusal::OtherGeneration { .. }
                | Refusal::TopicDisagrees { .. }
                | Refusal::SlotAhead { .. }
        )
    }
}

/// Checks that position record and change topic belong together.
pub(crate) fn check_log(
    wanted: Uuid,
    record: Option<&PositionRecord>,
    last: Option<LastInTopic>,
) -> Result<PositionRecord, Refusal> {
    let record = record.ok_or(Refusal::NoPosition(wanted))?;
    if record.generation != wanted {
        return Err(Refusal::OtherGeneration {
            recorded: record.generation,
            wanted,
        });
    }
    let recorded = Position {
        commit_lsn: record.commit_lsn,
        seq: record.seq,
    };
    let disagrees = |found: String| Refusal::TopicDisagrees { recorded, found };
    let last = last.ok_or_else(|| disagrees("missing".to_owned()))?;
    if last.generation != wanted {
        return Err(disagrees(format!("of generation {}", last.generation)));
    }
    let found = last.position.unwrap_or_default();
    if found != recorded {
        return Err(disagrees(format!("{found:?}")));
    }
    Ok(record.clone())
}

/// Checks that the source can continue where the log ends.
pub(crate) fn check_source(record: &PositionRecord, source: &SourceFacts) -> Result<(), Refusal> {
    let recorded = record.commit_lsn.max(record.confirm_lsn);
    if source.system_id != record.system_id {
        return Err(Refusal::OtherSystem {
            recorded: record.system_id.clone(),
            found: source.system_id.clone(),
        });
    }
    if source.timeline != record.timeline {
        let switch = source
            .timeline_ends
            .iter()
            .find(|(timeline, _)| *timeline == record.timeline)
            .map(|(_, end)| *end)
            .ok_or(Refusal::UnknownTimeline {
                recorded: record.timeline,
                found: source.timeline,
            })?;
        if switch < recorded {
            return Err(Refusal::TimelineDiverged {
                timeline: source.timeline,
                switch,
                recorded,
            });
        }
    }
    let slot = source
        .slot
        .as_ref()
        .ok_or(Refusal::SlotMissing(record.confirm_lsn))?;
    if slot.lost {
        return Err(Refusal::SlotLost(record.confirm_lsn));
    }
    if slot.confirmed_flush_lsn > record.confirm_lsn {
        return Err(Refusal::SlotAhead {
            slot: slot.confirmed_flush_lsn,
            recorded: record.confirm_lsn,
        });
    }
    if source.flush_lsn < recorded {
        return Err(Refusal::StorageRolledBack {
            flush: source.flush_lsn,
            recorded,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATION: Uuid = Uuid::from_u128(7);

    fn record() -> PositionRecord {
        PositionRecord {
            generation: GENERATION,
            system_id: "42".into(),
            timeline: 1,
            commit_lsn: Lsn(100),
            seq: 3,
            confirm_lsn: Lsn(110),
        }
    }

    fn last(commit_lsn: u64, seq: u64) -> Option<LastInTopic> {
        Some(LastInTopic {
            generation: GENERATION,
            position: Some(Position {
                commit_lsn: Lsn(commit_lsn),
                seq,
            }),
        })
    }

    fn source() -> SourceFacts {
        SourceFacts {
            system_id: "42".into(),
            timeline: 1,
            flush_lsn: Lsn(500),
            timeline_ends: vec![],
            slot: Some(SlotFacts {
                confirmed_flush_lsn: Lsn(110),
                lost: false,
            }),
        }
    }

    #[test]
    fn agreeing_places_let_the_run_start() {
        let record = record();
        assert_eq!(
            check_log(GENERATION, Some(&record), last(100, 3)),
            Ok(record.clone())
        );
        assert_eq!(check_source(&record, &source()), Ok(()));
    }

    #[test]
    fn a_missing_or_foreign_log_refuses() {
        let record = record();
        assert!(matches!(
            check_log(GENERATION, None, last(100, 3)),
            Err(Refusal::NoPosition(_))
        ));
        assert!(matches!(
            check_log(Uuid::from_u128(8), Some(&record), last(100, 3)),
            Err(Refusal::OtherGeneration { .. })
        ));
        for found in [None, last(100, 2), last(100, 4), last(99, 3)] {
            assert!(matches!(
                check_log(GENERATION, Some(&record), found),
                Err(Refusal::TopicDisagrees { .. })
            ));
        }
    }

    #[test]
    fn a_generation_without_events_agrees_with_its_first_record() {
        let first = PositionRecord {
            commit_lsn: Lsn(0),
            seq: 0,
            ..record()
        };
        let started = Some(LastInTopic {
            generation: GENERATION,
            position: None,
        });
        assert!(check_log(GENERATION, Some(&first), started).is_ok());
    }

    #[test]
    fn a_source_that_cannot_continue_refuses() {
        let record = record();
        let refusal = |change: &dyn Fn(&mut SourceFacts)| {
            let mut facts = source();
            change(&mut facts);
            check_source(&record, &facts).unwrap_err()
        };
        assert!(matches!(
            refusal(&|s| s.slot = None),
            Refusal::SlotMissing(_)
        ));
        assert!(matches!(
            refusal(&|s| s.slot.as_mut().unwrap().lost = true),
            Refusal::SlotLost(_)
        ));
        assert!(matches!(
            refusal(&|s| s.slot.as_mut().unwrap().confirmed_flush_lsn = Lsn(111)),
            Refusal::SlotAhead { .. }
        ));
        assert!(matches!(
            refusal(&|s| s.system_id = "43".into()),
            Refusal::OtherSystem { .. }
        ));
        assert!(matches!(
            refusal(&|s| s.flush_lsn = Lsn(109)),
            Refusal::StorageRolledBack { .. }
        ));
        assert!(matches!(
            refusal(&|s| s.timeline = 2),
            Refusal::UnknownTimeline { .. }
        ));
        assert!(matches!(
            refusal(&|s| {
                s.timeline = 2;
                s.timeline_ends = vec![(1, Lsn(105))];
            }),
            Refusal::TimelineDiverged { .. }
        ));
    }

    #[test]
    fn a_failover_behind_the_recorded_position_goes_on() {
        let mut facts = source();
        facts.timeline = 2;
        facts.timeline_ends = vec![(1, Lsn(110))];
        assert_eq!(check_source(&record(), &facts), Ok(()));
    }
}
