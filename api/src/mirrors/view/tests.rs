use bunny_catalog::{
    ApplyReport, Behind, CaptureReport, Desired, Health, MirrorConfig, Phase, Point, RoleState,
    Status, lag,
};
use bunny_postgres::{Lsn, TableName};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

fn moment() -> DateTime<Utc> {
    "2026-01-24T10:30:00Z".parse().unwrap()
}

pub(crate) fn mirror() -> Mirror {
    let users = TableName::new("public", "users");
    Mirror {
        id: Uuid::nil(),
        name: "prod_to_staging".into(),
        slug: "prod_to_staging".into(),
        owner: None,
        attached: Vec::new(),
        source_peer: "source_db".into(),
        destination_peer: "dest_db".into(),
        slot_name: "bunny_prod_to_staging".into(),
        slot_given: false,
        publication_name: "bunny_pub_prod_to_staging".into(),
        publication_given: false,
        publication_ins_name: "bunny_pub_prod_to_staging_ins".into(),
        config: MirrorConfig::default(),
        generation: Uuid::nil(),
        generation_ready: true,
        desired: Desired::Running,
        pause_scope: bunny_catalog::PauseScope::Apply,
        keep_topics: false,
        version: 1,
        capture_version: 0,
        apply_version: 0,
        created_at: moment(),
        updated_at: moment(),
        tables: vec![MirrorTable {
            source: users.clone(),
            destination: users,
            partition_key: Some("id".into()),
            exclude_columns: Vec::new(),
            identity: None,
            request_id: Some(Uuid::nil()),
            retry_id: None,
            replay: None,
            since_request: None,
            checkpoint_id: None,
            beside: false,
        }],
    }
}

pub(crate) fn status() -> StatusView {
    StatusView {
        status: Status::Running,
        phase: Phase::Cdc,
        health: Health::Ok,
        error_message: None,
        error_count: 0,
        messages: Vec::new(),
    }
}

pub(crate) fn silent() -> Reports {
    Reports {
        read_at: moment(),
        capture: RoleState::default(),
        apply: RoleState::default(),
    }
}

fn reporting() -> Reports {
    let mut users = TableReport::new(TableName::new("public", "users"), "LIVE");
    users.rows_synced = 1_500_000;
    users.chunks_done = 6;
    users.chunks_total = Some(6);
    let mut reports = silent();
    reports.apply.report = Some(ApplyReport {
        generation: Some(Uuid::nil()),
        applied: Point::from((Lsn(0x10), 3)),
        total_rows_synced: 1_500_000,
        last_sync_time: Some(moment()),
        tables: vec![users],
        ..ApplyReport::default()
    });
    reports.apply.reported_at = Some(moment());
    reports.capture.report = Some(CaptureReport {
        generation: Some(Uuid::nil()),
        current_lsn: Some(Lsn(0x20)),
        published_lsn: Lsn(0x20),
        published: Point::from((Lsn(0x10), 3)),
        caught_up: true,
        insert_only: vec![TableName::new("public", "users")],
        ..CaptureReport::default()
    });
    reports.capture.reported_at = Some(moment());
    reports
}

/// Every field of the guide's answer is there with its type and value.
fn holds(answer: &Value, guide: &Value, path: &str) {
    match guide {
        Value::Object(fields) => {
            for (name, value) in fields {
                holds(&answer[name], value, &format!("{path}.{name}"));
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                holds(&answer[index], item, &format!("{path}[{index}]"));
            }
        }
        other => assert_eq!(answer, other, "{path}"),
    }
}

#[test]
fn a_mirror_is_shown_as_in_the_guide() {
    let guide = json!({
        "name": "prod_to_staging", "source_peer": "source_db", "destination_peer": "dest_db",
        "status": "RUNNING", "current_phase": "CDC",
        "tables": [{"source_table": "public.users", "destination_table": "public.users",
                    "partition_key": "id", "exclude_columns": []}],
        "config": {"do_initial_snapshot": true, "max_batch_size": 1000, "idle_timeout_seconds": 60}
    });
    let shown = json!(full(&mirror(), &reporting(), &status()));
    holds(&shown, &guide, "mirror");
    assert_eq!(shown["last_lsn"], "0/10");
    assert_eq!(shown["created_at"], "2026-01-24T10:30:00Z");
    let table = &shown["tables"][0];
    assert_eq!(
        (&table["status"], &table["mode"]),
        (&json!("LIVE"), &json!("insert_only"))
    );
    assert_eq!(table["snapshot"]["chunks_total"], 6);
}

#[test]
fn metrics_are_shown_as_in_the_guide() {
    let reports = reporting();
    let lag = lag(&reports, moment(), reports.read_at);
    let shown = json!(metrics(
        &mirror(),
        &status(),
        &lag,
        "bunny.prod_to_staging.changes"
    ));
    let guide = json!({
        "mirror_name": "prod_to_staging", "status": "RUNNING", "current_phase": "CDC",
        "lag_bytes": 0, "lag_seconds": 0.0, "total_rows_synced": 1_500_000,
        "last_sync_time": "2026-01-24T10:30:00Z"
    });
    holds(&shown, &guide, "metrics");
    for (part, fields) in [
        (
            "source",
            vec![
                "current_lsn",
                "confirmed_flush_lsn",
                "restart_lsn",
                "retained_wal_bytes",
                "slot_active",
                "wal_status",
            ],
        ),
        ("capture", vec!["published_lsn", "lag_bytes", "lag_seconds"]),
        (
            "apply",
            vec![
                "applied_lsn",
                "lag_bytes",
                "lag_seconds",
                "topic",
                "offset",
                "high_watermark",
                "lag_events",
            ],
        ),
    ] {
        for field in fields {
            assert!(
                shown[part].get(field).is_some(),
                "{part}.{field} is missing"
            );
        }
    }
    assert_eq!(shown["apply"]["topic"], "bunny.prod_to_staging.changes");
}

#[test]
fn a_table_shows_how_far_it_is_behind_the_others() {
    let mut reports = reporting();
    let shown = json!(full(&mirror(), &reports, &status()));
    assert_eq!(shown["tables"][0]["behind"], Value::Null);
    if let Some(report) = reports.apply.report.as_mut() {
        report.tables[0].behind = Some(Behind {
            lsn: Lsn(0x8),
            since: moment() - TimeDelta::hours(2),
            events: 7,
        });
    }
    let shown = json!(full(&mirror(), &reports, &status()));
    let behind = json!({"lsn": "0/8", "lag_bytes": 0x18, "lag_seconds": 7200.0, "lag_events": 7});
    assert_eq!(shown["tables"][0]["behind"], behind);
    let lag = lag(&reports, moment(), reports.read_at);
    let shown = json!(metrics(&mirror(), &status(), &lag, "t"));
    assert_eq!(shown["lag_seconds"], 7200.0);
}

#[test]
fn a_mirror_nobody_has_reported_on_is_shown_too() {
    let shown = json!(full(&mirror(), &silent(), &status()));
    assert_eq!(shown["tables"][0]["status"], "PENDING");
    assert_eq!(shown["tables"][0]["snapshot"]["chunks_done"], 0);
    assert_eq!(shown["last_lsn"], Value::Null);
    assert_eq!(shown["failures"], json!({}));
}

#[test]
fn what_is_not_known_of_a_copy_is_null() {
    let mut reports = reporting();
    let mut shown_of = |change: &dyn Fn(&mut SyncProgress)| {
        let mut sync = SyncProgress::new(Uuid::nil(), TableName::new("public", "users"));
        change(&mut sync);
        if let Some(report) = reports.capture.report.as_mut() {
            report.syncs = vec![sync];
        }
        json!(full(&mirror(), &reports, &status()))["tables"][0]["snapshot"].clone()
    };
    let not_planned = shown_of(&|_| {});
    assert_eq!(not_planned["rows_estimate"], Value::Null);
    assert_eq!(not_planned["chunks_captured"], 0);
    // As after a replay, or a restart of capture.
    let of_before = shown_of(&|sync| {
        sync.finished = true;
        sync.rows_done = 5;
        sync.rows_estimate = 5;
    });
    assert_eq!(of_before["chunks_captured"], Value::Null);
    assert_eq!(
        (&of_before["rows_captured"], &of_before["rows_estimate"]),
        (&json!(5), &json!(5))
    );
    let copied = shown_of(&|sync| {
        sync.finished = true;
        sync.chunks_total = Some(2);
        sync.chunks_done = 2;
    });
    assert_eq!(copied["chunks_captured"], 2);
}
