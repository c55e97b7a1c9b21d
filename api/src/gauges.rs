//! Mirrors in the metrics of the process: what the REST API says of each, as gauges.
//!
//! They are set from the catalog every few seconds, however often they are scraped, and asking
//! neither source nor destination nor Kafka. A gauge that is not set any more goes away by
//! itself (the process's exporter sees to that): those of a mirror that is deleted, and all of
//! them while the catalog is away, when nobody knows how things are. docs/metrics.md describes
//! each of them.

use std::convert::Infallible;
use std::time::Duration;

use bunny_catalog::{
    Catalog, Health, LagView, Mirror, Reports, Result, Role, Status, StatusView, TABLE_STATES,
    TableReport, lag,
};
use chrono::{DateTime, TimeDelta, Utc};
use metrics::Label;

use crate::mirrors::{Seen, see};

const EVERY: Duration = Duration::from_secs(5);
/// Longer than any answer takes: the gauges are of one moment, or of none.
const READING_MAX: Duration = Duration::from_secs(15);

const CATALOG_UP: &str = "bunny_catalog_up";
const STATUS: &str = "bunny_mirror_status";
const HEALTH: &str = "bunny_mirror_health";
const ERRORS: &str = "bunny_mirror_errors";
const TABLES: &str = "bunny_mirror_tables";
const ROWS_SYNCED: &str = "bunny_mirror_rows_synced";
const LAG_BYTES: &str = "bunny_mirror_lag_bytes";
const LAG_SECONDS: &str = "bunny_mirror_lag_seconds";
const CAPTURE_LAG_BYTES: &str = "bunny_capture_lag_bytes";
const CAPTURE_LAG_SECONDS: &str = "bunny_capture_lag_seconds";
const APPLY_LAG_BYTES: &str = "bunny_apply_lag_bytes";
const APPLY_LAG_SECONDS: &str = "bunny_apply_lag_seconds";
const APPLY_LAG_EVENTS: &str = "bunny_apply_lag_events";
const ROLE_SILENT_SECONDS: &str = "bunny_role_silent_seconds";
const ROLE_FAILURES: &str = "bunny_role_failures";
const RETAINED_WAL_BYTES: &str = "bunny_source_retained_wal_bytes";
const SLOT_ACTIVE: &str = "bunny_source_slot_active";
const SLOT_WAL_STATUS: &str = "bunny_source_slot_wal_status";
const TOPIC_BYTES: &str = "bunny_topic_bytes";
const REPLAY_WINDOW_SECONDS: &str = "bunny_mirror_replay_window_seconds";
const REPLAY_LEFT_SECONDS: &str = "bunny_mirror_replay_left_seconds";

/// What each says, for whoever scrapes.
const DESCRIPTIONS: [(&str, &str); 21] = [
    (CATALOG_UP, "Whether the catalog could be read"),
    (STATUS, "1 for the status that the mirror has"),
    (HEALTH, "1 for the health that the mirror has"),
    (ERRORS, "Failures in a row and tables in error"),
    (TABLES, "Tables in each state"),
    (ROWS_SYNCED, "Rows loaded and changed at the destination"),
    (LAG_BYTES, "WAL that is not at the destination"),
    (LAG_SECONDS, "Age of what is not at the destination"),
    (CAPTURE_LAG_BYTES, "WAL that is not in the log"),
    (CAPTURE_LAG_SECONDS, "Age of what is not in the log"),
    (APPLY_LAG_BYTES, "WAL in the log and not applied"),
    (
        APPLY_LAG_SECONDS,
        "Age of what is in the log and not applied",
    ),
    (APPLY_LAG_EVENTS, "Offsets of the log that are not applied"),
    (ROLE_SILENT_SECONDS, "Since a worker was last heard of"),
    (ROLE_FAILURES, "Failures in a row"),
    (RETAINED_WAL_BYTES, "WAL that the source keeps for the slot"),
    (SLOT_ACTIVE, "Whether a walsender uses the slot"),
    (SLOT_WAL_STATUS, "1 for the slot's wal_status"),
    (TOPIC_BYTES, "What a topic holds, before compression"),
    (
        REPLAY_WINDOW_SECONDS,
        "How far back every table can be rebuilt from the topics",
    ),
    (
        REPLAY_LEFT_SECONDS,
        "Until the newest copy of some table is too old to be kept",
    ),
];

/// `pg_replication_slots.wal_status`.
const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// One number of one mirror.
struct Gauge {
    name: &'static str,
    labels: Vec<Label>,
    value: f64,
}

/// Shows every mirror of the catalog until it is dropped.
pub async fn show_gauges(catalog: &Catalog) -> Infallible {
    describe();
    loop {
        let read = tokio::time::timeout(READING_MAX, read(catalog)).await;
        let up = match read {
            Ok(Ok(mirrors)) => {
                for mirror in &mirrors {
                    show(mirror);
                }
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the mirrors' gauges are set later");
                false
            }
            Err(_) => false,
        };
        metrics::gauge!(CATALOG_UP).set(is(up));
        tokio::time::sleep(EVERY).await;
    }
}

fn describe() {
    for (name, says) in DESCRIPTIONS {
        metrics::describe_gauge!(name, says);
    }
}

async fn read(catalog: &Catalog) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for mirror in catalog.list_mirrors().await? {
        match see(catalog, mirror).await {
            Ok(mirror) => seen.push(mirror),
            // Deleted since.
            Err(bunny_catalog::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

fn show(seen: &Seen) {
    let now = seen.reports.read_at;
    let lag = lag(&seen.reports, seen.mirror.created_at, now);
    for gauge in gauges(&seen.mirror, &seen.reports, &seen.status, &lag, now) {
        metrics::gauge!(gauge.name, gauge.labels).set(gauge.value);
    }
}

/// All that is said of a mirror. Nothing that is not known. Pure.
fn gauges(
    mirror: &Mirror,
    reports: &Reports,
    status: &StatusView,
    lag: &LagView,
    now: DateTime<Utc>,
) -> Vec<Gauge> {
    let mut said = Said {
        mirror: &mirror.name,
        gauges: Vec::new(),
    };
    said.one_of(
        STATUS,
        "status",
        Status::ALL.map(Status::as_str),
        status.status.as_str(),
    );
    said.one_of(
        HEALTH,
        "health",
        Health::ALL.map(Health::as_str),
        status.health.as_str(),
    );
    said.plain(ERRORS, status.error_count as f64);
    said.plain(LAG_BYTES, lag.lag_bytes as f64);
    said.plain(LAG_SECONDS, lag.lag_seconds);
    said.plain(CAPTURE_LAG_BYTES, lag.capture.lag_bytes as f64);
    said.plain(CAPTURE_LAG_SECONDS, lag.capture.lag_seconds);
    said.plain(APPLY_LAG_BYTES, lag.apply.lag_bytes as f64);
    said.plain(APPLY_LAG_SECONDS, lag.apply.lag_seconds);
    said.plain(APPLY_LAG_EVENTS, lag.apply.lag_events as f64);
    said.roles(mirror, reports, now);
    said.source(reports, lag);
    said.tables(mirror, reports, now);
    said.gauges
}

struct Said<'a> {
    mirror: &'a str,
    gauges: Vec<Gauge>,
}

impl Said<'_> {
    fn plain(&mut self, name: &'static str, value: f64) {
        self.push(name, Vec::new(), value);
    }

    fn by(&mut self, name: &'static str, label: &'static str, of: &str, value: f64) {
        self.push(name, vec![Label::new(label, of.to_owned())], value);
    }

    fn push(&mut self, name: &'static str, mut labels: Vec<Label>, value: f64) {
        labels.insert(0, Label::new("mirror", self.mirror.to_owned()));
        self.gauges.push(Gauge {
            name,
            labels,
            value,
        });
    }

    /// 1 for what it is, 0 for what it is not: an alert needs both.
    fn one_of<const N: usize>(
        &mut self,
        name: &'static str,
        label: &'static str,
        all: [&str; N],
        present: &str,
    ) {
        for each in all {
            self.by(name, label, each, is(each == present));
        }
    }

    fn roles(&mut self, mirror: &Mirror, reports: &Reports, now: DateTime<Utc>) {
        let roles = [
            (
                Role::Capture,
                reports.capture.heartbeat_at,
                &reports.capture.failure,
            ),
            (
                Role::Apply,
                reports.apply.heartbeat_at,
                &reports.apply.failure,
            ),
        ];
        for (role, heartbeat_at, failure) in roles {
            let silent = now - heartbeat_at.unwrap_or(mirror.created_at);
            let failures = failure.as_ref().map_or(0, |failure| failure.count);
            self.by(ROLE_SILENT_SECONDS, "role", role.as_str(), seconds(silent));
            self.by(ROLE_FAILURES, "role", role.as_str(), f64::from(failures));
        }
    }

    fn source(&mut self, reports: &Reports, lag: &LagView) {
        let Some(report) = &reports.capture.report else {
            return;
        };
        let source = &lag.source;
        self.plain(RETAINED_WAL_BYTES, source.retained_wal_bytes as f64);
        self.plain(SLOT_ACTIVE, is(source.slot_active));
        if let Some(present) = &source.wal_status {
            self.one_of(SLOT_WAL_STATUS, "wal_status", WAL_STATUSES, present);
        }
        if let Some(bytes) = report.changes_bytes {
            self.by(TOPIC_BYTES, "topic", "changes", bytes as f64);
        }
    }

    fn tables(&mut self, mirror: &Mirror, reports: &Reports, now: DateTime<Utc>) {
        let report = reports.apply.report.as_ref();
        let found: Vec<_> = mirror
            .tables
            .iter()
            .map(|table| {
                let mut reported = report.into_iter().flat_map(|report| &report.tables);
                reported.find(|reported| reported.source == table.source)
            })
            .collect();
        for state in TABLE_STATES {
            // One that apply has not spoken of waits for its turn.
            let is_so = |table: &Option<&TableReport>| {
                table.map_or(TABLE_STATES[0], |table| table.state.as_str()) == state
            };
            let count = found.iter().filter(|table| is_so(table)).count();
            self.by(TABLES, "state", state, count as f64);
        }
        let Some(report) = report else {
            return;
        };
        self.plain(ROWS_SYNCED, report.total_rows_synced as f64);
        let Some(bytes) = report.copies_bytes else {
            // Apply has not read what the topics hold.
            return;
        };
        self.by(TOPIC_BYTES, "topic", "snapshot", bytes as f64);
        // The table that reaches back least; one without a copy cannot be rebuilt at all.
        let window = |table: &Option<&TableReport>| {
            let from = table.and_then(|table| table.replayable_from);
            from.map_or(0.0, |from| seconds(now - from.time))
        };
        let shortest = found.iter().map(window).reduce(f64::min);
        self.plain(REPLAY_WINDOW_SECONDS, shortest.unwrap_or(0.0));
        let hours = mirror.config.topic_retention_hours;
        // Without a copy at the beginning there may never be one, as it was asked for.
        let wants_copies = mirror.config.do_initial_snapshot;
        let left = found
            .iter()
            .flatten()
            .filter(|table| wants_copies || table.newest_copy_at.is_some())
            .filter_map(|table| left(table, hours, now));
        if let Some(least) = left.reduce(f64::min) {
            self.plain(REPLAY_LEFT_SECONDS, least);
        }
    }
}

/// Seconds until the newest copy of a table is older than `topic_retention_hours`; 0 if it has none.
/// None where nothing comes to an end: no window is asked for, or the first copy is on its way. Pure.
fn left(table: &TableReport, hours: u32, now: DateTime<Utc>) -> Option<f64> {
    let is_loading = ["PENDING", "SYNCING"].contains(&table.state.as_str());
    match table.newest_copy_at {
        _ if hours == 0 => None,
        // An apply that does not say yet when it was taken.
        None if is_loading || table.replayable_from.is_some() => None,
        None => Some(0.0),
        Some(taken) => Some(seconds(taken + TimeDelta::hours(hours.into()) - now)),
    }
}

fn is(so: bool) -> f64 {
    if so { 1.0 } else { 0.0 }
}

fn seconds(span: TimeDelta) -> f64 {
    (span.num_milliseconds() as f64 / 1_000.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use bunny_catalog::{ApplyReport, CaptureReport, ReplayableFrom};
    use bunny_postgres::Lsn;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::mirrors::testing::{mirror, silent, status};

    fn rendered(seen: &Seen) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            show(seen);
        });
        recorder.handle().render()
    }

    fn seen(reports: Reports) -> Seen {
        Seen {
            mirror: mirror(),
            reports,
            status: status(),
        }
    }

    #[test]
    fn a_mirror_is_rendered_with_what_is_known_of_it() {
        let mut reports = silent();
        let now = reports.read_at;
        reports.capture.reported_at = Some(now);
        reports.capture.heartbeat_at = Some(now - TimeDelta::milliseconds(1500));
        reports.capture.report = Some(CaptureReport {
            retained_wal_bytes: 4096,
            slot_active: true,
            wal_status: Some("extended".into()),
            current_lsn: Some(Lsn(300)),
            published_lsn: Lsn(200),
            lag_seconds: 2.5,
            changes_bytes: Some(77),
            ..CaptureReport::default()
        });
        let mut table = TableReport::new(mirror().tables[0].source.clone(), "ERRORED");
        table.replayable_from = Some(ReplayableFrom {
            lsn: Lsn(1),
            time: now - TimeDelta::hours(2),
        });
        table.newest_copy_at = Some(now - TimeDelta::hours(1));
        reports.apply.report = Some(ApplyReport {
            tables: vec![table],
            total_rows_synced: 5,
            copies_bytes: Some(88),
            ..ApplyReport::default()
        });
        let text = rendered(&seen(reports));
        for line in [
            "# HELP bunny_mirror_lag_bytes WAL that is not at the destination",
            "# TYPE bunny_mirror_lag_bytes gauge",
            r#"bunny_mirror_status{mirror="prod_to_staging",status="RUNNING"} 1"#,
            r#"bunny_mirror_status{mirror="prod_to_staging",status="FAILED"} 0"#,
            r#"bunny_mirror_health{mirror="prod_to_staging",health="OK"} 1"#,
            r#"bunny_mirror_health{mirror="prod_to_staging",health="DOWN"} 0"#,
            r#"bunny_mirror_errors{mirror="prod_to_staging"} 0"#,
            r#"bunny_mirror_tables{mirror="prod_to_staging",state="ERRORED"} 1"#,
            r#"bunny_mirror_tables{mirror="prod_to_staging",state="LIVE"} 0"#,
            r#"bunny_mirror_rows_synced{mirror="prod_to_staging"} 5"#,
            r#"bunny_capture_lag_bytes{mirror="prod_to_staging"} 100"#,
            r#"bunny_capture_lag_seconds{mirror="prod_to_staging"} 2.5"#,
            r#"bunny_apply_lag_events{mirror="prod_to_staging"} 0"#,
            r#"bunny_role_silent_seconds{mirror="prod_to_staging",role="capture"} 1.5"#,
            r#"bunny_role_failures{mirror="prod_to_staging",role="apply"} 0"#,
            r#"bunny_source_retained_wal_bytes{mirror="prod_to_staging"} 4096"#,
            r#"bunny_source_slot_active{mirror="prod_to_staging"} 1"#,
            r#"bunny_source_slot_wal_status{mirror="prod_to_staging",wal_status="extended"} 1"#,
            r#"bunny_source_slot_wal_status{mirror="prod_to_staging",wal_status="lost"} 0"#,
            r#"bunny_topic_bytes{mirror="prod_to_staging",topic="changes"} 77"#,
            r#"bunny_topic_bytes{mirror="prod_to_staging",topic="snapshot"} 88"#,
            r#"bunny_mirror_replay_window_seconds{mirror="prod_to_staging"} 7200"#,
            r#"bunny_mirror_replay_left_seconds{mirror="prod_to_staging"} 601200"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn nothing_is_said_that_is_not_known() {
        let text = rendered(&seen(silent()));
        for name in [RETAINED_WAL_BYTES, SLOT_ACTIVE, TOPIC_BYTES, ROWS_SYNCED] {
            assert!(!text.contains(&format!("{name}{{")), "{name}\n{text}");
        }
        let waits = r#"bunny_mirror_tables{mirror="prod_to_staging",state="PENDING"} 1"#;
        assert!(text.contains(waits), "{text}");
    }

    #[test]
    fn what_is_left_falls_until_the_newest_copy_is_too_old() {
        let now = silent().read_at;
        let mut table = TableReport::new(mirror().tables[0].source.clone(), "SYNCING");
        assert_eq!(left(&table, 10, now), None, "it is being copied");
        table.state = "LIVE".into();
        assert_eq!(left(&table, 10, now), Some(0.0));
        table.newest_copy_at = Some(now - TimeDelta::hours(9));
        assert_eq!(left(&table, 10, now), Some(3600.0));
        assert_eq!(left(&table, 9, now), Some(0.0));
        assert_eq!(left(&table, 0, now), None, "nobody wants a window");
        let mirror = mirror();
        let mut reports = silent();
        reports.apply.report = Some(ApplyReport {
            tables: vec![TableReport::new(mirror.tables[0].source.clone(), "LIVE")],
            ..ApplyReport::default()
        });
        let text = rendered(&seen(reports));
        for name in [REPLAY_WINDOW_SECONDS, REPLAY_LEFT_SECONDS] {
            assert!(
                !text.contains(&format!("{name}{{")),
                "the topics are not read yet: {text}"
            );
        }
    }

    #[test]
    fn every_gauge_is_documented() {
        let page = include_str!("../../docs/metrics.md");
        for (name, _) in DESCRIPTIONS {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
}
