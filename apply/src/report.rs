//! Tells the catalog, about once a second and when something happens, how far a mirror is
//! applied. A cache for people to look at: the truth is in `_bunny`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bunny_catalog::{ApplyReport, Point, TableReport};
use bunny_postgres::Session;
use bunny_schemas::Position;
use tokio::time::Instant;
use uuid::Uuid;

use crate::behind;
use crate::bookkeeping::{self, MissingObject, State, TableState};
use crate::commands::Commands;
use crate::context::MirrorRun;
use crate::error::Result;
use crate::replay::{Ends, Pace};
use crate::retention::Held;
use crate::stats::{Moment, Stats};
use crate::swap;
use crate::table_sync::{Loads, TableProgress};

const EVERY: Duration = Duration::from_secs(1);

/// The shortest pause: many tables that come to life one after another are not a report each.
const EVERY_MIN: Duration = Duration::from_millis(100);

/// Reports until it is dropped. Trouble with the destination is the run's to tell.
pub(crate) async fn report_forever(run: &MirrorRun, stats: &Stats, loads: &Loads, held: &Held) {
    let mut session: Option<Session> = None;
    let mut known: Option<Known> = None;
    let mut commands: Option<Commands> = None;
    let (mut pace, mut ends) = (Pace::default(), Ends::default());
    let mut behind = behind::Answers::default();
    loop {
        match read_tables(run, session.take()).await {
            Ok((still_good, read)) => {
                session = Some(still_good);
                known = Some(read);
            }
            Err(error) => {
                tracing::debug!(mirror = %run.mirror.name, %error, "no table states for the report")
            }
        }
        // A report without tables would say that nothing has been copied yet: the former
        // one is nearer to the truth.
        let Some(known) = &known else {
            pause(stats).await;
            continue;
        };
        if let Err(error) = settle(run, &mut commands, known.all()).await {
            tracing::debug!(mirror = %run.mirror.name, %error, "commands are ended later");
        }
        let topic = run.topics.changes(run.mirror.topics_slug());
        let loading = loads.tables();
        let name = &run.mirror.name;
        let mut report = report(
            name,
            &stats.moment(),
            known,
            &loading,
            topic,
            SystemTime::now(),
        );
        report.messages.extend(run.waits.messages());
        held.show(&run.mirror, &mut report);
        let tables: Vec<TableState> = known.all().cloned().collect();
        ends.learn(run, &tables);
        let now = Instant::now();
        pace.show(&run.mirror, &tables, &loading, &ends, &mut report, now);
        behind.show(run, known.tables(), &mut report).await;
        run.reporter.report(&report);
        pause(stats).await;
    }
}

/// Until the next report.
async fn pause(stats: &Stats) {
    tokio::time::sleep(EVERY_MIN).await;
    stats.news_or(EVERY - EVERY_MIN).await;
}

async fn settle(
    run: &MirrorRun,
    commands: &mut Option<Commands>,
    tables: impl Iterator<Item = &TableState>,
) -> Result<()> {
    let mut known = match commands.take() {
        Some(known) => known,
        None => Commands::open(run).await?,
    };
    let tables: Vec<TableState> = tables.cloned().collect();
    known.settle(run, &tables).await?;
    *commands = Some(known);
    Ok(())
}

/// What the destination says about the mirror's tables.
#[derive(Debug, Default)]
pub(crate) struct Known {
    tables: Vec<TableState>,
    /// Of what is loaded beside them.
    beside: Vec<TableState>,
    missing: Vec<MissingObject>,
}

impl Known {
    pub(crate) async fn read(client: &tokio_postgres::Client, mirror_id: Uuid) -> Result<Known> {
        // In this order: what has been exchanged in between is seen as the table's own.
        let beside = bookkeeping::tables(client, swap::ledger_of(mirror_id)).await?;
        Ok(Known {
            beside,
            tables: bookkeeping::tables(client, mirror_id).await?,
            missing: bookkeeping::missing_objects(client, mirror_id).await?,
        })
    }

    /// Those of the mirror.
    pub(crate) fn tables(&self) -> &[TableState] {
        &self.tables
    }

    fn all(&self) -> impl Iterator<Item = &TableState> {
        self.tables.iter().chain(&self.beside)
    }
}

async fn read_tables(run: &MirrorRun, session: Option<Session>) -> Result<(Session, Known)> {
    let session = match session.filter(|session| !session.is_closed()) {
        Some(session) => session,
        None => run.connect().await?,
    };
    let client: &tokio_postgres::Client = &session;
    let known = Known::read(client, run.mirror_id()).await?;
    Ok((session, known))
}

/// The report of one moment. Pure.
pub(crate) fn report(
    mirror: &str,
    moment: &Moment,
    known: &Known,
    loading: &[TableProgress],
    topic: String,
    now: SystemTime,
) -> ApplyReport {
    let tables = &known.tables;
    // Before main has begun, the tables tell which generation they are of.
    let generation = moment
        .generation
        .or_else(|| tables.iter().find_map(|table| table.generation));
    let reports: Vec<TableReport> = tables
        .iter()
        .map(|table| {
            let progress = loading
                .iter()
                .find(|progress| Some(progress.request_id) == table.request_id);
            TableReport {
                error: way_back(mirror, table, generation),
                ..table_report(table, progress)
            }
        })
        .collect();
    let is_caught_up = moment.is_caught_up();
    let missing = known.missing.iter().map(|missing| {
        format!(
            "{} \"{}\" of table {} is missing at the destination: {}",
            missing.kind, missing.name, missing.source, missing.reason
        )
    });
    let messages = reports
        .iter()
        .filter_map(|table| {
            let error = table.error.as_ref()?;
            Some(format!(
                "table {} is {}: {error}",
                table.source, table.state
            ))
        })
        .chain(missing)
        .collect();
    ApplyReport {
        phase: moment.phase.clone(),
        generation,
        applied: applied(moment.applied, tables),
        // Transaction markers stand behind the last event: nothing waits in them.
        offset: if is_caught_up {
            moment.next_offset.max(moment.end_offset)
        } else {
            moment.next_offset
        },
        high_watermark: moment.end_offset.max(moment.next_offset),
        topic,
        lag_seconds: match moment.oldest_waiting_us {
            Some(commit_ts_us) if !is_caught_up => seconds_since(commit_ts_us, now),
            _ => 0.0,
        },
        caught_up: is_caught_up,
        last_sync_time: reports
            .iter()
            .filter_map(|table| table.last_synced_at)
            .max(),
        total_rows_synced: reports.iter().map(|table| table.rows_synced).sum(),
        tables: reports,
        copies_bytes: None,
        messages,
    }
}

/// Before main has applied anything: what the tables held already when it took them over.
fn applied(main: Position, tables: &[TableState]) -> Point {
    let loaded = tables.iter().filter(|table| table.in_main);
    let at = match main == Position::default() {
        true => loaded.filter_map(|table| table.lsn).min(),
        false => None,
    };
    match at {
        Some(lsn) => Point::from((lsn, 0)),
        None => Point::from((main.commit_lsn, main.seq)),
    }
}

fn table_report(table: &TableState, progress: Option<&TableProgress>) -> TableReport {
    // The loader knows more than the table's row until that says the load is over.
    let progress = progress.filter(|_| matches!(table.state, State::Pending | State::Syncing));
    let rows_loaded = progress.map_or(table.rows_synced, |progress| progress.rows_done);
    let chunks_total = table.chunks_total.map(i64::from);
    TableReport {
        state: table.state.as_str().to_owned(),
        in_main: table.in_main,
        rows_synced: rows_loaded + table.rows_inserted + table.rows_updated + table.rows_deleted,
        rows_inserted: table.rows_inserted,
        rows_updated: table.rows_updated,
        rows_deleted: table.rows_deleted,
        chunks_done: match progress {
            Some(progress) => i64::from(progress.chunks_done),
            None => chunks_total.unwrap_or(0),
        },
        chunks_total: match progress {
            Some(progress) => progress.chunks_total.map(i64::from),
            None => chunks_total,
        },
        rows_loaded,
        last_synced_at: table.last_synced_at,
        ..TableReport::new(table.source.clone(), table.state.as_str())
    }
}

/// Why a table is set aside, and how one that does not come back by itself does. One of another
/// generation cannot: its reason says what is left.
fn way_back(mirror: &str, table: &TableState, generation: Option<Uuid>) -> Option<String> {
    let error = table.error.as_ref()?;
    let is_of_another = table.generation.is_some() && table.generation != generation;
    if table.state != State::Errored || is_of_another {
        return Some(error.clone());
    }
    let is_loaded = table.live.is_some() || table.request_id.is_none();
    let then = match table.restart_offset.filter(|_| is_loaded) {
        Some(offset) => format!("goes on from offset {offset} of the change topic"),
        None => "is loaded again".to_owned(),
    };
    Some(format!(
        "{error}; when the cause is removed, POST /v1/mirrors/{mirror}/retry: the table then {then}"
    ))
}

fn seconds_since(commit_ts_us: i64, now: SystemTime) -> f64 {
    let now_us = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros());
    let waited_us = i128::try_from(now_us).unwrap_or(i128::MAX) - i128::from(commit_ts_us);
    (waited_us.max(0) as f64) / 1e6
}

#[cfg(test)]
mod tests {
    use bunny_postgres::{Lsn, TableName};
    use bunny_schemas::Position;

    use super::*;

    fn at(commit_lsn: u64) -> Position {
        Position {
            commit_lsn: Lsn(commit_lsn),
            seq: 1,
        }
    }

    fn moment() -> Moment {
        Moment {
            applied: at(5),
            received: Some(at(5)),
            next_offset: 10,
            at_end: true,
            end_offset: 11,
            ..Moment::default()
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(100)
    }

    #[test]
    fn at_the_end_nothing_is_outstanding() {
        let report = report("m", &moment(), &Known::default(), &[], "t".into(), now());
        assert!(report.caught_up);
        assert_eq!(
            (report.offset, report.high_watermark, report.lag_seconds),
            (11, 11, 0.0)
        );
    }

    #[test]
    fn what_waits_is_lag() {
        let waiting = Moment {
            received: Some(at(6)),
            oldest_waiting_us: Some(98_500_000),
            ..moment()
        };
        let report = report("m", &waiting, &Known::default(), &[], "t".into(), now());
        assert!(!report.caught_up);
        assert_eq!(
            (report.offset, report.high_watermark, report.lag_seconds),
            (10, 11, 1.5)
        );
    }

    #[test]
    fn rows_are_those_loaded_and_those_changed() {
        let table = TableState {
            state: State::Live,
            rows_synced: 100,
            rows_inserted: 3,
            rows_deleted: 2,
            error: Some("why".into()),
            ..TableState::wanted(
                TableName {
                    schema: "public".into(),
                    name: "t".into(),
                },
                TableName {
                    schema: "public".into(),
                    name: "t".into(),
                },
                None,
            )
        };
        let missing = MissingObject {
            source: table.source.clone(),
            kind: "index".into(),
            name: "by_a".into(),
            reason: "no such operator class".into(),
        };
        let known = Known {
            beside: Vec::new(),
            tables: vec![table],
            missing: vec![missing],
        };
        let report = report("m", &moment(), &known, &[], "t".into(), now());
        assert_eq!(
            report.messages[1],
            "index \"by_a\" of table public.t is missing at the destination: no such operator class"
        );
        assert_eq!(report.total_rows_synced, 105);
        assert_eq!(report.tables[0].rows_loaded, 100);
        assert!(report.messages[0].contains("why"));
    }

    #[test]
    fn a_table_in_error_says_how_it_comes_back_and_from_where() {
        let name = TableName::new("public", "t");
        let errored = TableState {
            state: State::Errored,
            error: Some("violates check constraint \"nope\" (23514)".into()),
            live: Some(at(3)),
            restart_offset: Some(17),
            generation: Some(Uuid::from_u128(7)),
            ..TableState::wanted(name.clone(), name, Some(Uuid::from_u128(1)))
        };
        let said = |table: &TableState, generation| {
            way_back("m", table, Some(Uuid::from_u128(generation))).unwrap()
        };
        assert_eq!(
            said(&errored, 7),
            "violates check constraint \"nope\" (23514); when the cause is removed, POST /v1/mirrors/m/retry: the table then goes on from offset 17 of the change topic"
        );
        let not_loaded = TableState {
            live: None,
            ..errored.clone()
        };
        assert!(said(&not_loaded, 7).ends_with("is loaded again"));
        let parked = TableState {
            state: State::Parked,
            ..errored.clone()
        };
        for (table, generation) in [(&parked, 7), (&errored, 8)] {
            assert!(said(table, generation).ends_with("(23514)"));
        }
    }
}
