//! How a mirror is shown. Pure: from the catalog's rows and the roles' reports to what is answered.

use bunny_catalog::{
    Failure, LagView, Mirror, MirrorTable, Reports, StatusView, SyncProgress, TableLag,
    TableReport, table_lag,
};

use super::shown::{
    Brief, Config, Failures, Full, Metrics, RoleFailure, Snapshot, Table, TableMode, TopicBytes,
};

/// What a mapping without its own word from apply is: waiting for its turn.
const NOT_STARTED: &str = "PENDING";

/// One line of the list of mirrors.
pub(super) fn brief(mirror: &Mirror, reports: &Reports, status: &StatusView) -> Brief {
    let total_rows_synced = reports
        .apply
        .report
        .as_ref()
        .map_or(0, |report| report.total_rows_synced);
    Brief {
        name: mirror.name.clone(),
        source_peer: mirror.source_peer.clone(),
        source_mirror: mirror.owner.as_ref().map(|owner| owner.name.clone()),
        destination_peer: mirror.destination_peer.clone(),
        status: status.status,
        current_phase: status.phase,
        health: status.health,
        error_message: status.error_message.clone(),
        error_count: status.error_count,
        table_count: mirror.tables.len(),
        total_rows_synced,
        created_at: mirror.created_at,
        updated_at: mirror.updated_at,
    }
}

/// All of a mirror.
pub(super) fn full(mirror: &Mirror, reports: &Reports, status: &StatusView) -> Full {
    let applied = reports
        .apply
        .report
        .as_ref()
        .map(|report| report.applied.commit_lsn)
        .filter(|lsn| lsn.0 > 0);
    let said = reports
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
        );
    let attached_mirrors = mirror.attached_mirrors().into_iter();
    Full {
        name: mirror.name.clone(),
        source_peer: mirror.source_peer.clone(),
        source_mirror: mirror.owner.as_ref().map(|owner| owner.name.clone()),
        destination_peer: mirror.destination_peer.clone(),
        status: status.status,
        current_phase: status.phase,
        health: status.health,
        error_message: status.error_message.clone(),
        error_count: status.error_count,
        messages: status.messages.iter().chain(said).cloned().collect(),
        attached_mirrors: attached_mirrors.map(str::to_owned).collect(),
        slot_name: mirror.slot_name.clone(),
        publication_name: mirror.publication_name.clone(),
        last_lsn: applied,
        created_at: mirror.created_at,
        updated_at: mirror.updated_at,
        topic_bytes: topic_bytes(reports),
        tables: tables(mirror, reports),
        config: config(mirror),
        failures: Failures {
            capture: reports.capture.failure.as_ref().map(failure),
            apply: reports.apply.failure.as_ref().map(failure),
        },
    }
}

fn config(mirror: &Mirror) -> Config {
    // A name the user gave is shown as the option it was.
    let is_own = mirror.owner.is_none();
    let given = |is_given: bool, name: &str| (is_own && is_given).then(|| name.to_owned());
    Config {
        options: mirror.config.clone(),
        replication_slot_name: given(mirror.slot_given, &mirror.slot_name),
        publication_name: given(mirror.publication_given, &mirror.publication_name),
    }
}

fn topic_bytes(reports: &Reports) -> TopicBytes {
    let capture = reports.capture.report.as_ref();
    let apply = reports.apply.report.as_ref();
    TopicBytes {
        changes: capture.and_then(|report| report.changes_bytes),
        snapshot: apply.and_then(|report| report.copies_bytes),
    }
}

fn failure(failure: &Failure) -> RoleFailure {
    RoleFailure {
        message: failure.message.clone(),
        fatal: failure.fatal,
        count: failure.count,
        since: failure.since,
        next_try: failure.next_try,
    }
}

/// The mappings with how far each has come.
pub(super) fn tables(mirror: &Mirror, reports: &Reports) -> Vec<Table> {
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
            let behind = applied.and_then(|applied| applied.behind);
            let behind = behind.map(|behind| table_lag(&behind, reports));
            self::table(table, applied, sync, behind, insert_only)
        })
        .collect()
}

fn table(
    table: &MirrorTable,
    applied: Option<&TableReport>,
    sync: Option<&SyncProgress>,
    behind: Option<TableLag>,
    insert_only: bool,
) -> Table {
    let not_started = TableReport::new(table.source.clone(), NOT_STARTED);
    let report = applied.unwrap_or(&not_started);
    Table {
        source_table: table.source.to_string(),
        destination_table: table.destination.to_string(),
        partition_key: table.partition_key.clone(),
        exclude_columns: table.exclude_columns.clone(),
        mode: match insert_only {
            true => TableMode::InsertOnly,
            false => TableMode::All,
        },
        status: report.state.clone(),
        rows_synced: report.rows_synced,
        rows_inserted: report.rows_inserted,
        rows_updated: report.rows_updated,
        rows_deleted: report.rows_deleted,
        snapshot: snapshot(table, report, sync),
        last_synced_at: report.last_synced_at,
        error_message: report.error.clone(),
        replay: report.replay,
        replayable_from: report.replayable_from,
        behind,
    }
}

/// None where no snapshot was asked for.
fn snapshot(
    table: &MirrorTable,
    report: &TableReport,
    sync: Option<&SyncProgress>,
) -> Option<Snapshot> {
    table.request_id?;
    let chunks_total = report
        .chunks_total
        .or_else(|| sync.and_then(|sync| sync.chunks_total.and_then(|n| i64::try_from(n).ok())));
    // What a former capture has published is known by its rows and bytes, not by its chunks; what
    // is not planned yet has not been looked at.
    let is_planned = |sync: &&SyncProgress| sync.finished || sync.chunks_total.is_some();
    let has_chunks = |sync: &&SyncProgress| !sync.finished || sync.chunks_total.is_some();
    Some(Snapshot {
        chunks_done: report.chunks_done,
        chunks_total,
        rows_done: report.rows_loaded,
        rows_estimate: sync.filter(is_planned).map(|sync| sync.rows_estimate),
        bytes_done: sync.map_or(0, |sync| sync.bytes_done),
        chunks_captured: sync.filter(has_chunks).map(|sync| sync.chunks_done),
        rows_captured: sync.map(|sync| sync.rows_done),
    })
}

/// The metrics of a mirror.
pub(super) fn metrics(mirror: &Mirror, status: &StatusView, lag: &LagView, topic: &str) -> Metrics {
    let mut apply = lag.apply.clone();
    if apply.topic.is_empty() {
        apply.topic = topic.to_owned();
    }
    Metrics {
        mirror_name: mirror.name.clone(),
        status: status.status,
        current_phase: status.phase,
        lag_bytes: lag.lag_bytes,
        lag_seconds: lag.lag_seconds,
        total_rows_synced: lag.total_rows_synced,
        last_sync_time: lag.last_sync_time,
        health: status.health,
        source: lag.source.clone(),
        capture: lag.capture.clone(),
        apply,
    }
}

#[cfg(test)]
pub(crate) mod tests;
