//! How a mirror is shown. Pure: from the catalog's rows and the roles' reports to JSON.

use bunny_catalog::{
    LagView, Mirror, MirrorTable, Reports, StatusView, SyncProgress, TableReport, table_lag,
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

/// What a mapping without its own word from apply is: waiting for its turn.
const NOT_STARTED: &str = "PENDING";

/// One line of the list of mirrors.
pub(super) fn brief(mirror: &Mirror, reports: &Reports, status: &StatusView) -> Value {
    let total_rows_synced = reports
        .apply
        .report
        .as_ref()
        .map_or(0, |report| report.total_rows_synced);
    json!({
        "name": mirror.name,
        "source_peer": mirror.source_peer,
        "source_mirror": mirror.owner.as_ref().map(|owner| &owner.name),
        "destination_peer": mirror.destination_peer,
        "status": status.status.as_str(),
        "current_phase": status.phase.as_str(),
        "health": status.health.as_str(),
        "error_message": status.error_message,
        "error_count": status.error_count,
        "table_count": mirror.tables.len(),
        "total_rows_synced": total_rows_synced,
        "created_at": time(mirror.created_at),
        "updated_at": time(mirror.updated_at),
    })
}

/// All of a mirror.
pub(super) fn full(mirror: &Mirror, reports: &Reports, status: &StatusView) -> Value {
    let applied = reports
        .apply
        .report
        .as_ref()
        .map(|report| report.applied.commit_lsn)
        .filter(|lsn| lsn.0 > 0);
    let messages: Vec<&String> = reports
        .capture
        .report
        .iter()
        .flat_map(|report| &report.messages)
        .chain(
            reports
                .apply
                .report
                .iter()
                .flat_map(|report| &report.messages),
        )
        .collect();
    json!({
        "name": mirror.name,
        "source_peer": mirror.source_peer,
        "source_mirror": mirror.owner.as_ref().map(|owner| &owner.name),
        "destination_peer": mirror.destination_peer,
        "status": status.status.as_str(),
        "current_phase": status.phase.as_str(),
        "health": status.health.as_str(),
        "error_message": status.error_message,
        "error_count": status.error_count,
        "messages": messages,
        "attached_mirrors": mirror.attached_mirrors(),
        "slot_name": mirror.slot_name,
        "publication_name": mirror.publication_name,
        "last_lsn": applied.map(|lsn| lsn.to_string()),
        "created_at": time(mirror.created_at),
        "updated_at": time(mirror.updated_at),
        "topic_bytes": topic_bytes(reports),
        "tables": tables(mirror, reports),
        "config": config(mirror),
        "failures": failures(reports),
    })
}

fn config(mirror: &Mirror) -> Value {
    let mut config = serde_json::to_value(&mirror.config).unwrap_or_else(|_| json!({}));
    if let Value::Object(fields) = &mut config {
        // A name the user gave is shown as the option it was.
        let is_own = mirror.owner.is_none();
        if is_own && mirror.slot_given {
            fields.insert("replication_slot_name".into(), json!(mirror.slot_name));
        }
        if is_own && mirror.publication_given {
            fields.insert("publication_name".into(), json!(mirror.publication_name));
        }
    }
    config
}

/// What the mirror's topics hold, before compression; null while it is not known.
fn topic_bytes(reports: &Reports) -> Value {
    let capture = reports.capture.report.as_ref();
    let apply = reports.apply.report.as_ref();
    json!({
        "changes": capture.and_then(|report| report.changes_bytes),
        "snapshot": apply.and_then(|report| report.copies_bytes),
    })
}

/// What each role is stuck at, if it is.
fn failures(reports: &Reports) -> Value {
    let mut failures = Map::new();
    for (role, failure) in [
        ("capture", &reports.capture.failure),
        ("apply", &reports.apply.failure),
    ] {
        if let Some(failure) = failure {
            let shown = json!({
                "message": failure.message,
                "fatal": failure.fatal,
                "count": failure.count,
                "since": time(failure.since),
                "next_try": failure.next_try.map(time),
            });
            failures.insert(role.to_owned(), shown);
        }
    }
    Value::Object(failures)
}

/// The mappings with how far each has come.
pub(super) fn tables(mirror: &Mirror, reports: &Reports) -> Vec<Value> {
    mirror
        .tables
        .iter()
        .map(|table| {
            let applied = reports
                .apply
                .report
                .iter()
                .flat_map(|report| &report.tables)
                .find(|candidate| candidate.source == table.source);
            let sync = reports
                .capture
                .report
                .iter()
                .flat_map(|report| &report.syncs)
                .find(|sync| Some(sync.request_id) == table.request_id);
            let insert_only = reports
                .capture
                .report
                .iter()
                .flat_map(|report| &report.insert_only)
                .any(|name| name == &table.source);
            let mut shown = self::table(table, applied, sync, insert_only);
            let behind = applied.and_then(|applied| applied.behind);
            shown["behind"] = json!(behind.map(|behind| table_lag(&behind, reports)));
            shown
        })
        .collect()
}

fn table(
    table: &MirrorTable,
    applied: Option<&TableReport>,
    sync: Option<&SyncProgress>,
    insert_only: bool,
) -> Value {
    let not_started = TableReport::new(table.source.clone(), NOT_STARTED);
    let report = applied.unwrap_or(&not_started);
    json!({
        "source_table": table.source.to_string(),
        "destination_table": table.destination.to_string(),
        "partition_key": table.partition_key,
        "exclude_columns": table.exclude_columns,
        "mode": if insert_only { "insert_only" } else { "all" },
        "status": report.state,
        "rows_synced": report.rows_synced,
        "rows_inserted": report.rows_inserted,
        "rows_updated": report.rows_updated,
        "rows_deleted": report.rows_deleted,
        "snapshot": snapshot(table, report, sync),
        "last_synced_at": report.last_synced_at.map(time),
        "error_message": report.error,
        "replay": report.replay,
        "replayable_from": report.replayable_from.map(|from| {
            json!({ "lsn": from.lsn, "time": time(from.time) })
        }),
    })
}

/// Progress of a table's copy: done is what has reached the destination. Null where no snapshot was
/// asked for.
fn snapshot(table: &MirrorTable, report: &TableReport, sync: Option<&SyncProgress>) -> Value {
    if table.request_id.is_none() {
        return Value::Null;
    }
    let chunks_total = report
        .chunks_total
        .or_else(|| sync.and_then(|sync| sync.chunks_total.and_then(|n| i64::try_from(n).ok())));
    json!({
        "chunks_done": report.chunks_done,
        "chunks_total": chunks_total,
        "rows_done": report.rows_loaded,
        "rows_estimate": sync.map(|sync| sync.rows_estimate),
        "bytes_done": sync.map_or(0, |sync| sync.bytes_done),
        "chunks_captured": sync.map(|sync| sync.chunks_done),
        "rows_captured": sync.map(|sync| sync.rows_done),
    })
}

/// The metrics of a mirror.
pub(super) fn metrics(mirror: &Mirror, status: &StatusView, lag: &LagView, topic: &str) -> Value {
    let mut apply = serde_json::to_value(&lag.apply).unwrap_or_else(|_| json!({}));
    if lag.apply.topic.is_empty() {
        apply["topic"] = json!(topic);
    }
    json!({
        "mirror_name": mirror.name,
        "status": status.status.as_str(),
        "current_phase": status.phase.as_str(),
        "lag_bytes": lag.lag_bytes,
        "lag_seconds": lag.lag_seconds,
        "total_rows_synced": lag.total_rows_synced,
        "last_sync_time": lag.last_sync_time.map(time),
        "health": status.health.as_str(),
        "source": lag.source,
        "capture": lag.capture,
        "apply": apply,
    })
}

/// RFC 3339 in UTC with `Z`, as the guide shows times.
fn time(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
pub(crate) mod tests;
