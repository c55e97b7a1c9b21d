//! How far behind a mirror is. Pure: computed from what the roles reported.

use bunny_postgres::Lsn;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::reports::{ApplyReport, Behind, CaptureReport, Reports};

/// A report older than this says nothing about now.
const FRESH_SECONDS: f64 = 10.0;

/// The source's side, as capture last saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
#[schemars(rename = "SourcePositions")]
pub struct SourceView {
    /// End of WAL.
    pub current_lsn: Option<Lsn>,
    /// The slot's confirmed position.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// The oldest WAL the slot needs.
    pub restart_lsn: Option<Lsn>,
    /// WAL bytes kept for the slot.
    pub retained_wal_bytes: i64,
    /// Whether a walsender uses the slot.
    pub slot_active: bool,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: Option<String>,
}

/// Source to log.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
pub struct CaptureLag {
    /// Everything that concerns the mirror up to here is in the log.
    pub published_lsn: Option<Lsn>,
    /// WAL bytes between that and the source's end.
    pub lag_bytes: i64,
    /// Age of the oldest change not in the log.
    pub lag_seconds: f64,
}

/// Log to destination.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
pub struct ApplyLag {
    /// Everything that concerns the mirror up to here is at the destination.
    pub applied_lsn: Option<Lsn>,
    /// WAL bytes between that and what is in the log.
    pub lag_bytes: i64,
    /// Age of the oldest event not applied.
    pub lag_seconds: f64,
    /// The change topic.
    pub topic: String,
    /// The offset after the last event applied.
    pub offset: i64,
    /// The end of the topic.
    pub high_watermark: i64,
    /// Offsets between the two, 0 when nothing is outstanding.
    pub lag_events: i64,
}

/// Log to one table that does not follow it with the others.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TableLag {
    /// Commit LSN of the first change it lacks.
    pub lsn: Lsn,
    /// WAL bytes between that and the source's end.
    pub lag_bytes: i64,
    /// Age of that change.
    pub lag_seconds: f64,
    /// Offsets of the change topic from there to its end.
    pub lag_events: i64,
}

/// How far behind a mirror is, tables that do not follow the log with the others included.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LagView {
    /// Bytes of WAL that concern the mirror and are not at the destination.
    pub lag_bytes: i64,
    /// Age of the oldest change that is not at the destination; 0 when nothing
    /// is outstanding, however old the last change.
    pub lag_seconds: f64,
    /// Whether everything is known to be at the destination.
    pub caught_up: bool,
    /// Rows loaded and changed.
    pub total_rows_synced: i64,
    /// When a row was last written.
    pub last_sync_time: Option<DateTime<Utc>>,
    /// The source.
    pub source: SourceView,
    /// Source to log.
    pub capture: CaptureLag,
    /// Log to destination.
    pub apply: ApplyLag,
}

/// The lag at `now` (by the catalog's clock, [`Reports::read_at`]) of a mirror made at
/// `created_at`: of a role that has never reported, nothing younger is known.
pub fn lag(reports: &Reports, created_at: DateTime<Utc>, now: DateTime<Utc>) -> LagView {
    let no_capture = CaptureReport::default();
    let no_apply = ApplyReport::default();
    let capture = reports.capture.report.as_ref().unwrap_or(&no_capture);
    let apply = reports.apply.report.as_ref().unwrap_or(&no_apply);
    let capture_age = seconds(reports.capture.reported_at.unwrap_or(created_at), now);
    let apply_age = seconds(reports.apply.reported_at.unwrap_or(created_at), now);

    let behind = || apply.tables.iter().filter_map(|table| table.behind);

    let same_generation = capture.generation.is_some() && capture.generation == apply.generation;
    // All that stood at the source when it was last looked at is applied, whatever capture
    // knew then.
    let is_reading_applied = same_generation
        && capture
            .current_lsn
            .is_some_and(|end| end <= apply.applied.commit_lsn);
    let capture_caught_up =
        (capture.caught_up || is_reading_applied) && capture_age <= FRESH_SECONDS;
    let all_published_is_applied = same_generation && apply.applied >= capture.published;
    let main_caught_up = capture_caught_up && all_published_is_applied && !is_first_load(apply);
    let caught_up = main_caught_up && behind().next().is_none();

    let published_lsn = capture.published_lsn;
    // What capture published last may lie well below what it has looked at:
    // with that event applied, apply stands where capture stands.
    let applied_lsn = if all_published_is_applied {
        published_lsn.max(apply.applied.commit_lsn)
    } else {
        apply.applied.commit_lsn
    };
    // What is captured has been at the source, whenever that was looked at.
    let current_lsn = capture.current_lsn.unwrap_or_default().max(published_lsn);

    let capture_lag = CaptureLag {
        published_lsn: known(published_lsn),
        lag_bytes: if capture_caught_up {
            0
        } else {
            bytes_outstanding(published_lsn, current_lsn)
        },
        lag_seconds: lag_seconds(capture_caught_up, capture.lag_seconds, capture_age),
    };
    let apply_lag = ApplyLag {
        applied_lsn: known(applied_lsn),
        lag_bytes: if all_published_is_applied {
            0
        } else {
            bytes_outstanding(applied_lsn, published_lsn)
        },
        lag_seconds: lag_seconds(all_published_is_applied, apply.lag_seconds, apply_age),
        topic: apply.topic.clone(),
        offset: apply.offset,
        high_watermark: apply.high_watermark,
        // Transaction markers take offsets too, so the two numbers differ even
        // when every event is applied.
        lag_events: if apply.caught_up || all_published_is_applied {
            0
        } else {
            (apply.high_watermark - apply.offset).max(0)
        },
    };
    // Before anything is applied, what is captured is all there is to count from.
    let main_lsn = known(applied_lsn).unwrap_or(published_lsn);
    let lowest_lsn = behind().map(|behind| behind.lsn).fold(main_lsn, Lsn::min);
    let tables_seconds = behind().map(|behind| seconds(behind.since, now));
    LagView {
        lag_bytes: if caught_up {
            0
        } else {
            bytes_outstanding(lowest_lsn, current_lsn)
        },
        lag_seconds: tables_seconds
            .map(round_to_millis)
            .fold(capture_lag.lag_seconds.max(apply_lag.lag_seconds), f64::max),
        caught_up,
        total_rows_synced: apply.total_rows_synced,
        last_sync_time: apply.last_sync_time,
        source: SourceView {
            current_lsn: capture.current_lsn,
            confirmed_flush_lsn: capture.confirmed_flush_lsn,
            restart_lsn: capture.restart_lsn,
            retained_wal_bytes: capture.retained_wal_bytes,
            slot_active: capture.slot_active,
            wal_status: capture.wal_status.clone(),
        },
        capture: capture_lag,
        apply: apply_lag,
    }
}

/// The lag of a table that is `behind`, when the reports were read.
pub fn table_lag(behind: &Behind, reports: &Reports) -> TableLag {
    let capture = reports.capture.report.as_ref();
    let current_lsn = capture.and_then(|report| report.current_lsn);
    TableLag {
        lsn: behind.lsn,
        lag_bytes: bytes_outstanding(behind.lsn, current_lsn.unwrap_or(behind.lsn)),
        lag_seconds: round_to_millis(seconds(behind.since, reports.read_at)),
        lag_events: behind.events,
    }
}

/// What was reported, grown by the report's age once that is too old to trust.
fn lag_seconds(nothing_outstanding: bool, reported: f64, age: f64) -> f64 {
    if nothing_outstanding {
        return 0.0;
    }
    let grown = if age > FRESH_SECONDS { age } else { 0.0 };
    round_to_millis((reported + grown).max(0.0))
}

/// From `since` to `now`; 0 where clocks differ.
fn seconds(since: DateTime<Utc>, now: DateTime<Utc>) -> f64 {
    (now - since).num_milliseconds().max(0) as f64 / 1_000.0
}

fn round_to_millis(seconds: f64) -> f64 {
    (seconds * 1_000.0).round() / 1_000.0
}

fn known(lsn: Lsn) -> Option<Lsn> {
    (lsn != Lsn::default()).then_some(lsn)
}

/// Main has not begun: there are tables to load, and none follows the stream yet.
fn is_first_load(apply: &ApplyReport) -> bool {
    let to_load = |state: &str| ["PENDING", "SYNCING", "CATCHING_UP"].contains(&state);
    let mut tables = apply.tables.iter();
    !apply.tables.iter().any(|table| table.in_main) && tables.any(|table| to_load(&table.state))
}

/// WAL bytes from `from` to `to` of a mirror that is not known to be caught up. Nothing may be
/// known yet, or no change is missing but whole tables are: never 0 then, because 0 says that
/// all is there.
fn bytes_outstanding(from: Lsn, to: Lsn) -> i64 {
    if from == Lsn::default() {
        return 1;
    }
    i64::try_from(to.0.saturating_sub(from.0)).map_or(i64::MAX, |bytes| bytes.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::{Point, RoleState, TableReport};
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn reports(capture: CaptureReport, apply: ApplyReport) -> Reports {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        Reports {
            read_at: now,
            capture: RoleState {
                report: Some(capture),
                reported_at: Some(now - TimeDelta::seconds(1)),
                ..RoleState::default()
            },
            apply: RoleState {
                report: Some(apply),
                reported_at: Some(now - TimeDelta::seconds(1)),
                ..RoleState::default()
            },
        }
    }

    /// Of a mirror made a minute and a half ago.
    fn lag_now(reports: &Reports) -> LagView {
        let created_at = reports.read_at - TimeDelta::seconds(90);
        lag(reports, created_at, reports.read_at)
    }

    fn point(commit_lsn: u64, seq: u64) -> Point {
        Point {
            commit_lsn: Lsn(commit_lsn),
            seq,
        }
    }

    fn both(published: Point, applied: Point) -> Reports {
        let generation = Some(Uuid::from_u128(7));
        reports(
            CaptureReport {
                generation,
                current_lsn: Some(Lsn(1_000)),
                published_lsn: Lsn(900),
                published,
                caught_up: true,
                lag_seconds: 0.0,
                ..CaptureReport::default()
            },
            ApplyReport {
                generation,
                applied,
                offset: 40,
                high_watermark: 42,
                lag_seconds: 3.5,
                ..ApplyReport::default()
            },
        )
    }

    #[test]
    fn an_idle_mirror_on_a_busy_server_settles_at_zero() {
        let reports = both(point(300, 2), point(300, 2));
        let view = lag_now(&reports);
        assert!(view.caught_up);
        assert_eq!(view.lag_bytes, 0);
        assert_eq!(view.lag_seconds, 0.0);
        assert_eq!(view.apply.lag_events, 0);
        assert_eq!(view.apply.applied_lsn, Some(Lsn(900)));
        assert_eq!(view.apply.lag_bytes, 0);
    }

    #[test]
    fn an_unapplied_event_counts_from_what_is_applied() {
        let reports = both(point(300, 2), point(200, 9));
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!(view.lag_bytes, 800);
        assert_eq!(view.lag_seconds, 3.5);
        assert_eq!(view.apply.lag_events, 2);
        assert_eq!(view.apply.applied_lsn, Some(Lsn(200)));
        assert_eq!(view.apply.lag_bytes, 700);
        assert_eq!(view.capture.lag_bytes, 0);
    }

    #[test]
    fn capture_behind_counts_even_when_apply_has_all_there_is() {
        let mut reports = both(point(300, 2), point(300, 2));
        if let Some(capture) = reports.capture.report.as_mut() {
            capture.caught_up = false;
            capture.lag_seconds = 2.0;
        }
        let view = lag_now(&reports);
        assert_eq!(view.lag_bytes, 100);
        assert_eq!(view.lag_seconds, 2.0);
        assert_eq!(view.apply.lag_seconds, 0.0);
    }

    #[test]
    fn a_silent_capture_is_not_taken_for_caught_up() {
        let mut reports = both(point(300, 2), point(300, 2));
        reports.capture.reported_at = Some(reports.read_at - TimeDelta::seconds(60));
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!(view.lag_bytes, 100);
        assert_eq!(view.lag_seconds, 60.0);
    }

    #[test]
    fn positions_of_two_generations_are_not_compared() {
        let mut reports = both(point(300, 2), point(9_999, 0));
        if let Some(apply) = reports.apply.report.as_mut() {
            apply.generation = Some(Uuid::from_u128(8));
        }
        assert!(!lag_now(&reports).caught_up);
    }

    #[test]
    fn an_old_reading_of_the_source_does_not_hide_what_is_outstanding() {
        let mut reports = both(point(2_000, 2), point(1_500, 9));
        if let Some(capture) = reports.capture.report.as_mut() {
            capture.published_lsn = Lsn(2_100);
        }
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!(view.lag_bytes, 600);
    }

    /// Capture has always something in hand on a busy source, and apply reports after it.
    #[test]
    fn what_is_applied_beyond_the_last_reading_of_the_source_is_no_lag() {
        let mut reports = both(point(990, 2), point(990, 2));
        let capture_saw = |reports: &mut Reports, end: u64| {
            if let Some(capture) = reports.capture.report.as_mut() {
                capture.caught_up = false;
                capture.lag_seconds = 0.02;
                capture.current_lsn = Some(Lsn(end));
            }
        };
        capture_saw(&mut reports, 980);
        let view = lag_now(&reports);
        assert!(view.caught_up);
        assert_eq!((view.lag_bytes, view.capture.lag_bytes), (0, 0));
        assert_eq!(view.lag_seconds, 0.0);
        capture_saw(&mut reports, 1_000);
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!((view.lag_bytes, view.lag_seconds), (10, 0.02));
    }

    #[test]
    fn a_mirror_whose_tables_are_being_loaded_is_behind() {
        let mut reports = both(point(0, 0), point(0, 0));
        let named = |name: &str, state: &str| {
            let name = bunny_postgres::TableName {
                schema: "public".into(),
                name: name.into(),
            };
            TableReport::new(name, state)
        };
        let table = named("a", "SYNCING");
        if let Some(apply) = reports.apply.report.as_mut() {
            apply.tables = vec![table.clone()];
        }
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!(view.lag_bytes, 100);
        // One that is added later leaves the others' lag as it is.
        let in_main = TableReport {
            in_main: true,
            ..named("b", "LIVE")
        };
        if let Some(apply) = reports.apply.report.as_mut() {
            apply.tables = vec![table, in_main];
        }
        assert!(lag_now(&reports).caught_up);
    }

    #[test]
    fn without_reports_nothing_is_claimed() {
        let reports = Reports {
            read_at: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            capture: RoleState::default(),
            apply: RoleState::default(),
        };
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!(view.lag_bytes, 1, "0 would say that all is there");
        assert_eq!(view.lag_seconds, 90.0, "0 would say so too");
        assert_eq!(view.apply.applied_lsn, None);
    }

    /// A table set aside since `lsn` and so many seconds.
    fn set_aside(name: &str, lsn: u64, age: i64) -> TableReport {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        TableReport {
            behind: Some(Behind {
                lsn: Lsn(lsn),
                since: now - TimeDelta::seconds(age),
                events: 12,
            }),
            ..TableReport::new(bunny_postgres::TableName::new("public", name), "PARKED")
        }
    }

    #[test]
    fn a_table_that_does_not_go_with_the_others_is_lag() {
        let mut reports = both(point(300, 2), point(300, 2));
        if let Some(apply) = reports.apply.report.as_mut() {
            apply.tables = vec![set_aside("a", 150, 7_200), set_aside("b", 100, 60)];
        }
        let view = lag_now(&reports);
        assert!(!view.caught_up);
        assert_eq!((view.lag_bytes, view.lag_seconds), (900, 7_200.0));
        // The others are where they were.
        assert_eq!((view.apply.lag_bytes, view.apply.lag_seconds), (0, 0.0));
        let behind = set_aside("a", 150, 7_200).behind.unwrap();
        let table = table_lag(&behind, &reports);
        assert_eq!(
            (table.lag_bytes, table.lag_seconds, table.lag_events),
            (850, 7_200.0, 12)
        );
    }

    proptest! {
        /// Whatever was reported: 0 means that nothing is missing, anywhere, as far as is known.
        #[test]
        fn no_lag_means_that_everything_is_there(
            published in 0u64..4, applied in 0u64..4, captured in any::<bool>(), age in 0i64..20,
            reported in any::<(bool, bool)>(), ages in prop::collection::vec(1i64..100, 0..3),
        ) {
            let mut reports = both(point(published * 100, 1), point(applied * 100, 1));
            if let Some(capture) = reports.capture.report.as_mut() {
                capture.caught_up = captured;
                capture.lag_seconds = if captured { 0.0 } else { 1.0 };
            }
            if let Some(apply) = reports.apply.report.as_mut() {
                apply.tables = ages.iter().map(|age| set_aside("a", 50, *age)).collect();
            }
            reports.capture.reported_at = Some(reports.read_at - TimeDelta::seconds(age));
            if !reported.0 {
                reports.capture = RoleState::default();
            }
            if !reported.1 {
                reports.apply = RoleState::default();
            }
            let view = lag_now(&reports);
            let all_there = reported == (true, true) && captured && age <= 10
                && published <= applied && ages.is_empty();
            prop_assert_eq!(view.lag_bytes == 0, all_there);
            prop_assert_eq!(view.lag_seconds == 0.0, all_there);
            prop_assert_eq!(view.caught_up, all_there);
        }
    }
}
