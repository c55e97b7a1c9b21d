//! The start order of a run, up to the position from which the slot may be read.
//!
//! A generation is one unbroken slot and topic history. Starting one is a step of a
//! command, never of a plain start: only a mirror whose catalog row still says
//! `generation_ready = false` may drop and create a slot.

use std::time::{Duration, Instant};

use bunny_catalog::{Catalog, Mirror};
use bunny_postgres::replication::{Replication, SystemId};
use bunny_postgres::{Lsn, Session};
use bunny_schemas::control::{GenerationStarted, PositionRecord, SchemaKind, TableRecord};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::reader;
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;

use super::start::{LastInTopic, SlotFacts, SourceFacts, check_log, check_source};
use super::waiting;
use crate::crash_points::{GENERATION_RECORDED, SLOT_CREATED, crash_point};
use crate::error::{Error, Result};
use crate::publisher::Publisher;

/// How long a former owner of the slot, whose session was just ended, may take to let go.
const SLOT_RELEASE_PATIENCE: Duration = Duration::from_secs(10);
const SLOT_RELEASE_POLL: Duration = Duration::from_millis(50);

/// A broker that has just become leader, or is one no more, may answer with less than it
/// has for so long.
const STALE_PATIENCE: Duration = Duration::from_secs(10);
const STALE_PAUSE: Duration = Duration::from_millis(700);

/// What [`prepare`] needs to reach.
pub(crate) struct Places<'a> {
    pub(crate) mirror: &'a Mirror,
    pub(crate) catalog: &'a Catalog,
    pub(crate) kafka: &'a KafkaConfig,
    pub(crate) topics: &'a Topics,
    pub(crate) registry: &'a Registry,
    pub(crate) source: &'a Session,
    /// What is known of the tables as a generation starts.
    pub(crate) tables: Vec<TableRecord>,
    /// Told which transactions the slot's creation waits for, in words.
    pub(crate) waits_for: &'a (dyn Fn(Option<String>) + Sync),
}

/// Brings the mirror to where its slot may be read, and says from which position.
///
/// # Errors
/// [`Error::Refused`] when log, slot and source do not belong together.
pub(crate) async fn prepare(
    places: &Places<'_>,
    publisher: &mut Publisher,
    replication: &mut Replication,
    positions: Option<PositionRecord>,
) -> Result<PositionRecord> {
    let mirror = places.mirror;
    let system = replication.identify_system().await?;
    let record = if mirror.generation_ready {
        agreed_in_time(places, replication, positions).await?
    } else {
        begun(places, publisher, replication, &system, positions).await?
    };
    if !mirror.generation_ready {
        places
            .catalog
            .set_generation_ready(mirror.id, mirror.generation)
            .await?;
    }
    wait_released(places.source, &mirror.slot_name).await?;
    Ok(record)
}

/// Begins the generation, or finds that it has begun, and reads it back: topics that were about to
/// be deleted take what was written to them along. Nobody has read it then, and it begins once more.
async fn begun(
    places: &Places<'_>,
    publisher: &mut Publisher,
    replication: &mut Replication,
    system: &SystemId,
    positions: Option<PositionRecord>,
) -> Result<PositionRecord> {
    let mirror = places.mirror;
    let recorded = positions.filter(|record| record.generation == mirror.generation);
    if recorded.is_none() {
        start_generation(places, publisher, replication, system).await?;
    }
    crash_point(GENERATION_RECORDED);
    let found = reader::last_position(places.kafka, places.topics, &mirror.slug).await?;
    match agreed_in_time(places, replication, found).await {
        Err(Error::Refused(refusal)) if refusal.may_be_stale() => {
            tracing::warn!(mirror = %mirror.name, %refusal, "the generation is not in the log, and begins once more");
            start_generation(places, publisher, replication, system).await?;
            let found = reader::last_position(places.kafka, places.topics, &mirror.slug).await?;
            agreed_in_time(places, replication, found).await
        }
        answer => answer,
    }
}

/// The record, if log, slot and source belong together, or do after a while.
async fn agreed_in_time(
    places: &Places<'_>,
    replication: &mut Replication,
    mut found: Option<PositionRecord>,
) -> Result<PositionRecord> {
    let mirror = places.mirror;
    let patience = Patience::until(Instant::now() + STALE_PATIENCE);
    loop {
        match agreed(places, replication, found).await {
            Err(error) if patience.has_left_for(&error) => {
                tracing::info!(mirror = %mirror.name, %error, "log and slot disagree, reading again");
                tokio::time::sleep(STALE_PAUSE).await;
            }
            answer => return answer,
        }
        found = reader::last_position(places.kafka, places.topics, &mirror.slug).await?;
    }
}

/// The record, if log, slot and source belong together.
async fn agreed(
    places: &Places<'_>,
    replication: &mut Replication,
    record: Option<PositionRecord>,
) -> Result<PositionRecord> {
    let mirror = places.mirror;
    let last = reader::last_change(places.kafka, places.registry, places.topics, &mirror.slug)
        .await?
        .map(|event| LastInTopic {
            generation: event.generation,
            position: event.position,
        });
    let mut record = check_log(mirror.generation, record.as_ref(), last)?;
    // Asked now: a slot just created stands beyond what an earlier answer knew.
    let system = replication.identify_system().await?;
    let facts = source_facts(places, replication, &system).await?;
    check_source(&record, &facts)?;
    record.timeline = facts.timeline;
    Ok(record)
}

/// How long a refusal that may come from a stale answer is asked about again.
struct Patience {
    deadline: Instant,
}

impl Patience {
    fn until(deadline: Instant) -> Patience {
        Patience { deadline }
    }

    /// Only a disagreement that lasts is one; what no broker can be wrong about is at once.
    fn has_left_for(&self, error: &Error) -> bool {
        matches!(error, Error::Refused(refusal) if refusal.may_be_stale())
            && Instant::now() < self.deadline
    }
}

/// True when the source holds a slot of the mirror's own name that the user did not bring.
pub(crate) async fn exists_foreign(source: &Session, mirror: &Mirror) -> Result<bool> {
    Ok(!mirror.slot_given && slot_facts(source, &mirror.slot_name).await?.is_some())
}

/// Drops the mirror's own slot; one that the user brought stays.
pub(crate) async fn drop_slot(source: &Session, mirror: &Mirror) -> Result<()> {
    if mirror.slot_given {
        return Ok(());
    }
    wait_released(source, &mirror.slot_name).await?;
    source
        .execute(
            "SELECT pg_drop_replication_slot(slot_name)
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&mirror.slot_name],
        )
        .await
        .map_err(|error| Error::Query {
            doing: "dropping the replication slot",
            error,
        })?;
    Ok(())
}

async fn start_generation(
    places: &Places<'_>,
    publisher: &mut Publisher,
    replication: &mut Replication,
    system: &SystemId,
) -> Result<PositionRecord> {
    let mirror = places.mirror;
    let start_lsn = if mirror.slot_given {
        slot_facts(places.source, &mirror.slot_name)
            .await?
            .ok_or_else(|| {
                Error::fatal(format!(
                    "replication slot {}, which this mirror was told to use, does not exist; create it with plugin pgoutput",
                    mirror.slot_name
                ))
            })?
            .confirmed_flush_lsn
    } else {
        drop_slot(places.source, mirror).await?;
        let pid = replication.backend_pid();
        let creation = replication.create_slot(&mirror.slot_name);
        let mut creation = std::pin::pin!(creation);
        let lsn = loop {
            match tokio::time::timeout(waiting::LOOK_INTERVAL, &mut creation).await {
                Ok(created) => break created?,
                Err(_) => {
                    let blockers = waiting::blockers(places.source, pid).await;
                    (places.waits_for)(blockers.ok().flatten());
                }
            }
        };
        (places.waits_for)(None);
        crash_point(SLOT_CREATED);
        lsn
    };
    let event = GenerationStarted {
        generation: mirror.generation,
        mirror: mirror.name.clone(),
        system_id: system.system_id.clone(),
        timeline: system.timeline,
        start_lsn,
    };
    let schema_id = places
        .registry
        .register_control(SchemaKind::GenerationStarted)
        .await?;
    publisher.send_event(None, &event.encode(schema_id)).await?;
    let record = PositionRecord {
        generation: mirror.generation,
        system_id: system.system_id.clone(),
        timeline: system.timeline,
        commit_lsn: Lsn::ZERO,
        seq: 0,
        confirm_lsn: start_lsn,
    };
    let tables: Vec<_> = places
        .tables
        .iter()
        .map(|record| (record.table.clone(), Some(record.clone())))
        .collect();
    publisher.begin_commit(&record, &[], &tables).await?;
    publisher.answered().await?;
    tracing::info!(mirror = %mirror.name, generation = %mirror.generation, %start_lsn, "generation started");
    Ok(record)
}

async fn source_facts(
    places: &Places<'_>,
    replication: &mut Replication,
    system: &SystemId,
) -> Result<SourceFacts> {
    let timeline_ends = if system.timeline > 1 {
        replication
            .timeline_history(system.timeline)
            .await?
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok(SourceFacts {
        system_id: system.system_id.clone(),
        timeline: system.timeline,
        flush_lsn: system.flush_lsn,
        timeline_ends,
        slot: slot_facts(places.source, &places.mirror.slot_name).await?,
    })
}

async fn slot_facts(source: &Session, slot: &str) -> Result<Option<SlotFacts>> {
    let row = source
        .query_opt(
            "SELECT confirmed_flush_lsn::text, coalesce(wal_status, '') = 'lost'
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(|error| Error::Query {
            doing: "looking at the replication slot",
            error,
        })?;
    let Some(row) = row else { return Ok(None) };
    let confirmed: Option<String> = row.get(0);
    Ok(Some(SlotFacts {
        confirmed_flush_lsn: match confirmed {
            Some(text) => text
                .parse()
                .map_err(|_| Error::transient(format!("unreadable slot position {text}")))?,
            None => Lsn::ZERO,
        },
        lost: row.get(1),
    }))
}

/// Waits until no session holds the slot. Former captures of this mirror have been ended
/// before; a session that is not ours is left alone and named.
async fn wait_released(source: &Session, slot: &str) -> Result<()> {
    let deadline = Instant::now() + SLOT_RELEASE_PATIENCE;
    loop {
        let row = source
            .query_opt(
                "SELECT s.active_pid, coalesce(a.application_name, '')
                 FROM pg_replication_slots s
                 LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
                 WHERE s.slot_name = $1 AND s.active",
                &[&slot],
            )
            .await?;
        let Some(row) = row else { return Ok(()) };
        if Instant::now() >= deadline {
            let pid: Option<i32> = row.get(0);
            let application: String = row.get(1);
            return Err(Error::transient(format!(
                "replication slot {slot} is in use by pid {} ({application:?}); end that session if it should not be there",
                pid.unwrap_or_default()
            )));
        }
        tokio::time::sleep(SLOT_RELEASE_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::slot::Refusal;

    #[test]
    fn only_what_a_stale_answer_explains_is_asked_again_and_not_for_ever() {
        let stale = Error::from(Refusal::NoPosition(Uuid::nil()));
        let sure = Error::from(Refusal::SlotLost(Lsn(1)));
        let transient = Error::transient("the broker is away");
        let some = Patience::until(Instant::now() + STALE_PATIENCE);
        assert!(some.has_left_for(&stale));
        assert!(!some.has_left_for(&sure) && !some.has_left_for(&transient));
        let none = Patience::until(Instant::now());
        assert!(!none.has_left_for(&stale));
    }
}
