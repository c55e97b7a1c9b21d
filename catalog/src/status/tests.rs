use super::*;
use crate::commands::CommandState;
use crate::mirrors::MirrorTable;
use crate::mirrors::tests::mirror;
use crate::replay::{Replay, RetainedSync, Until};
use crate::reports::{ApplyReport, CaptureReport, Failure, SyncProgress};
use crate::tables::AwaitedTable;
use bunny_postgres::TableName;
use chrono::TimeDelta;
use uuid::Uuid;

fn table() -> TableName {
    TableName::new("public", "t")
}

/// Two live workers and one table in `state`.
fn reports(state: &str) -> Reports {
    let now = DateTime::from_timestamp(1_700_000_100, 0).unwrap();
    let generation = Some(Uuid::from_u128(7));
    Reports {
        read_at: now,
        capture: RoleState {
            report: Some(CaptureReport {
                generation,
                wal_status: Some("reserved".into()),
                ..CaptureReport::default()
            }),
            reported_at: Some(now),
            failure: None,
            holder: Some("h".into()),
            heartbeat_at: Some(now),
        },
        apply: RoleState {
            report: Some(ApplyReport {
                generation,
                tables: vec![TableReport::new(table(), state)],
                ..ApplyReport::default()
            }),
            reported_at: Some(now),
            failure: None,
            holder: Some("h".into()),
            heartbeat_at: Some(now),
        },
    }
}

fn seen(mirror: &Mirror, reports: &Reports) -> (Status, Phase, Health) {
    let view = derive(mirror, reports, &[], reports.read_at);
    (view.status, view.phase, view.health)
}

fn command(kind: &str, args: serde_json::Value, reports: &Reports) -> Command {
    Command {
        id: Uuid::from_u128(1),
        mirror_id: Some(Uuid::from_u128(2)),
        mirror_name: "m".into(),
        kind: kind.into(),
        args,
        state: CommandState::Pending,
        steps: Vec::new(),
        outcome: None,
        error: None,
        requested_by: "ann".into(),
        created_at: reports.read_at,
        updated_at: reports.read_at,
        finished_at: None,
    }
}

fn trouble(fatal: bool) -> Option<Failure> {
    Some(Failure {
        lost_generation: None,
        message: "it broke".into(),
        fatal,
        count: 3,
        since: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        next_try: None,
    })
}

#[test]
fn a_mirror_goes_from_setup_over_snapshot_to_running() {
    let mut mirror = mirror("m");
    mirror.generation_ready = false;
    let setup = (Status::Setup, Phase::Setup, Health::Ok);
    assert_eq!(seen(&mirror, &reports("PENDING")), setup);
    mirror.generation_ready = true;
    assert_eq!(seen(&mirror, &reports("PENDING")), setup);
    for state in ["SYNCING", "CATCHING_UP"] {
        let expected = (Status::Snapshot, Phase::Snapshot, Health::Ok);
        assert_eq!(seen(&mirror, &reports(state)), expected);
    }
    let running = (Status::Running, Phase::Cdc, Health::Ok);
    assert_eq!(seen(&mirror, &reports("LIVE")), running);
}

#[test]
fn a_sync_that_capture_runs_is_a_snapshot_before_apply_says_so() {
    let mut reports = reports("PENDING");
    if let Some(report) = reports.capture.report.as_mut() {
        report
            .syncs
            .push(SyncProgress::new(Uuid::from_u128(9), table()));
    }
    assert_eq!(seen(&mirror("m"), &reports).0, Status::Snapshot);
}

#[test]
fn a_table_added_later_leaves_the_mirror_running() {
    let mut mirror = mirror("m");
    let mut second = mirror.tables[0].clone();
    second.source = TableName::new("public", "u");
    mirror.tables.push(second);
    let mut reports = reports("LIVE");
    if let Some(report) = reports.apply.report.as_mut() {
        report.tables[0].in_main = true;
    }
    let running = (Status::Running, Phase::Cdc, Health::Ok);
    assert_eq!(seen(&mirror, &reports), running);
    for state in ["PENDING", "SYNCING", "CATCHING_UP"] {
        if let Some(report) = reports.apply.report.as_mut() {
            report.tables.truncate(1);
            let added = TableReport::new(TableName::new("public", "u"), state);
            report.tables.push(added);
        }
        assert_eq!(seen(&mirror, &reports), running, "{state}");
    }
}

#[test]
fn what_was_said_of_another_generation_does_not_count() {
    let mut reports = reports("LIVE");
    if let Some(report) = reports.apply.report.as_mut() {
        report.generation = Some(Uuid::from_u128(6));
    }
    assert_eq!(seen(&mirror("m"), &reports).0, Status::Setup);
}

#[test]
fn a_failure_that_is_retried_degrades_and_a_fatal_one_fails() {
    let mut reports = reports("LIVE");
    reports.apply.failure = trouble(false);
    let retried = derive(&mirror("m"), &reports, &[], reports.read_at);
    assert_eq!(retried.status, Status::Running);
    assert_eq!(retried.health, Health::Degraded);
    assert_eq!(retried.error_message.as_deref(), Some("apply: it broke"));
    assert_eq!(retried.error_count, 3);
    reports.capture.failure = trouble(true);
    let failed = derive(&mirror("m"), &reports, &[], reports.read_at);
    assert_eq!(
        (failed.status, failed.health),
        (Status::Failed, Health::Down)
    );
    assert_eq!(failed.error_message.as_deref(), Some("capture: it broke"));
    assert_eq!(failed.error_count, 6);
}

#[test]
fn a_table_in_error_leaves_the_mirror_running_and_degraded() {
    let mut mirror = mirror("m");
    let mut second = mirror.tables[0].clone();
    second.source = TableName::new("public", "u");
    mirror.tables.push(second);
    let mut reports = reports("LIVE");
    if let Some(report) = reports.apply.report.as_mut() {
        let mut errored = TableReport::new(TableName::new("public", "u"), "ERRORED");
        errored.error = Some("value too long".into());
        report.tables.push(errored);
    }
    let view = derive(&mirror, &reports, &[], reports.read_at);
    assert_eq!(
        (view.status, view.health),
        (Status::Running, Health::Degraded)
    );
    let message = view.error_message.unwrap();
    assert!(message.contains("public.u") && message.contains("value too long"));
}

/// Nothing is copied any more: that it goes on copying would be waited for in vain.
#[test]
fn a_mirror_whose_tables_all_failed_to_load_does_not_copy_for_ever() {
    let mut reports = reports("ERRORED");
    if let Some(report) = reports.apply.report.as_mut() {
        report.tables[0].error = Some("no such type".into());
    }
    let view = derive(&mirror("m"), &reports, &[], reports.read_at);
    assert_eq!(
        (view.status, view.phase, view.health),
        (Status::Running, Phase::Cdc, Health::Degraded)
    );
    assert!(view.error_message.unwrap().contains("no such type"));
}

#[test]
fn a_role_that_is_silent_for_30_seconds_shows() {
    let mut reports = reports("LIVE");
    reports.apply.heartbeat_at = Some(reports.read_at - TimeDelta::seconds(29));
    assert_eq!(seen(&mirror("m"), &reports).2, Health::Ok);
    reports.apply.heartbeat_at = Some(reports.read_at - TimeDelta::seconds(31));
    let view = derive(&mirror("m"), &reports, &[], reports.read_at);
    assert_eq!(view.health, Health::Down);
    assert!(view.error_message.unwrap().contains("no apply worker"));
}

#[test]
fn a_role_that_is_alive_and_says_nothing_for_30_seconds_shows() {
    let mut mirror = mirror("m");
    let alive = reports("LIVE");
    let now = alive.read_at;
    let mut apply = alive.clone();
    let mut capture = alive.clone();
    for (age, health) in [(29, Health::Ok), (30, Health::Degraded)] {
        apply.apply.reported_at = Some(now - TimeDelta::seconds(age));
        capture.capture.reported_at = apply.apply.reported_at;
        assert_eq!(seen(&mirror, &apply).2, health);
        assert_eq!(seen(&mirror, &capture).2, health);
    }
    let view = derive(&mirror, &apply, &[], now);
    let message = view.error_message.unwrap();
    let since = "apply has not reported for 30 s (since 2023-11-14T22:14:30Z)";
    assert!(message.starts_with(since), "{message}");
    assert_eq!((view.status, view.error_count), (Status::Running, 0));

    // What shows already needs no other words.
    let mut dead = apply.clone();
    dead.apply.heartbeat_at = dead.apply.reported_at;
    let message = derive(&mirror, &dead, &[], now).error_message.unwrap();
    assert!(message.starts_with("no apply worker"), "{message}");
    let mut failing = apply.clone();
    failing.apply.failure = trouble(false);
    let message = derive(&mirror, &failing, &[], now).error_message.unwrap();
    assert_eq!(message, "apply: it broke");

    // One that is paused has other questions to wait for.
    let mut paused = mirror.clone();
    paused.desired = Desired::Paused;
    assert_eq!(seen(&paused, &apply).2, Health::Ok);
    let mut longer = apply.clone();
    longer.apply.reported_at = Some(now - TimeDelta::seconds(120));
    assert_eq!(seen(&paused, &longer).2, Health::Degraded);

    // It is not heard of before there is a history, and then not at once.
    let mut new = alive;
    new.apply.reported_at = None;
    mirror.updated_at = now - TimeDelta::seconds(29);
    assert_eq!(seen(&mirror, &new).2, Health::Ok);
    mirror.updated_at = now - TimeDelta::seconds(31);
    assert_eq!(seen(&mirror, &new).2, Health::Degraded);
    mirror.generation_ready = false;
    assert_eq!(seen(&mirror, &new).2, Health::Ok);
    new.capture.reported_at = None;
    assert_eq!(seen(&mirror, &new).2, Health::Degraded);

    // Nor while it takes part in what tells of itself.
    let adopting = [command("adopt", json!({}), &capture)];
    let health =
        |reports: &Reports, commands: &[Command]| derive(&mirror, reports, commands, now).health;
    assert_eq!(health(&capture, &adopting), Health::Ok);
    assert_eq!(health(&capture, &[]), Health::Degraded);

    // Capture's part of a deletion takes as long as apply's, which is not long.
    mirror.desired = Desired::Deleted;
    mirror.generation_ready = true;
    assert_eq!(seen(&mirror, &capture).2, Health::Ok);
    let mut delete = command("delete", json!({}), &apply);
    let health = |delete: &Command| {
        let commands = std::slice::from_ref(delete);
        derive(&mirror, &apply, commands, now).health
    };
    assert_eq!(health(&delete), Health::Degraded);
    delete.steps.push("destination_clean".to_owned());
    assert_eq!(health(&delete), Health::Ok);
}

#[test]
fn a_slot_at_risk_shows() {
    let mut reports = reports("LIVE");
    for (wal_status, health) in [("unreserved", Health::Degraded), ("lost", Health::Down)] {
        if let Some(report) = reports.capture.report.as_mut() {
            report.wal_status = Some(wal_status.into());
        }
        assert_eq!(seen(&mirror("m"), &reports).2, health);
    }
}

#[test]
fn what_the_user_wants_wins_over_what_is() {
    let mut mirror = mirror("m");
    mirror.desired = Desired::Deleted;
    let mut failed = reports("LIVE");
    failed.capture.failure = trouble(true);
    assert_eq!(seen(&mirror, &failed).0, Status::Terminating);
}

#[test]
fn a_mirror_is_paused_when_the_command_is_done() {
    let mut mirror = mirror("m");
    mirror.desired = Desired::Paused;
    let reports = reports("LIVE");
    let mut pause = command("pause", json!({}), &reports);
    let status = |command: &Command| {
        derive(
            &mirror,
            &reports,
            std::slice::from_ref(command),
            reports.read_at,
        )
        .status
    };
    assert_eq!(status(&pause), Status::Pausing);
    pause.state = CommandState::Running;
    assert_eq!(status(&pause), Status::Pausing);
    pause.state = CommandState::Done;
    assert_eq!(status(&pause), Status::Paused);
}

#[test]
fn a_resync_by_swap_is_a_phase_of_its_own() {
    let mut mirror = mirror("m");
    mirror.generation_ready = true;
    let reports = reports("LIVE");
    let mut resync = command(RESYNC, json!({ "strategy": "swap" }), &reports);
    let shown = |command: &Command| {
        let commands = std::slice::from_ref(command);
        let view = derive(&mirror, &reports, commands, reports.read_at);
        (view.status.as_str(), view.phase.as_str())
    };
    assert_eq!(shown(&resync), ("RESYNCING", "SWAP"));
    resync.args = json!({ "strategy": "truncate" });
    assert_eq!(shown(&resync), ("RESYNCING", "CDC"));
    resync.args = json!({ "strategy": "swap" });
    resync.state = CommandState::Done;
    assert_eq!(shown(&resync), ("RUNNING", "CDC"));
}

#[test]
fn a_paused_mirror_says_what_waits_for_it_to_be_resumed() {
    let mut mirror = mirror("m");
    let reports = reports("LIVE");
    let resync = command(RESYNC, json!({ "strategy": "truncate" }), &reports);
    let said = |mirror: &Mirror, reports: &Reports, commands: &[Command]| {
        derive(mirror, reports, commands, reports.read_at).messages
    };
    let commands = std::slice::from_ref(&resync);
    assert!(said(&mirror, &reports, commands).is_empty());
    mirror.desired = Desired::Paused;
    let waiting = said(&mirror, &reports, commands);
    assert_eq!(waiting.len(), 1);
    assert!(
        waiting[0].contains("resync that ann has asked for")
            && waiting[0].contains("/v1/mirrors/m/resume"),
        "{waiting:?}"
    );
    assert!(said(&mirror, &reports, &[]).is_empty());
}

#[test]
fn a_mirror_that_stands_where_a_replay_ended_says_so() {
    let mut mirror = mirror("m");
    mirror.desired = Desired::Paused;
    let mut reports = reports("CATCHING_UP");
    let request_id = Uuid::from_u128(5);
    let mut replay = Replay {
        request_id,
        of: RetainedSync {
            sync: Uuid::from_u128(4),
            attempt: 1,
            lsn: Lsn(1),
            changes_offset: 0,
            rows: 1,
            bytes: 1,
        },
        until: Some(Until::Lsn(Lsn(0x14))),
        beside: false,
        former: None,
    };
    mirror.tables[0].replay = Some(replay.clone());
    let said = |mirror: &Mirror, reports: &Reports, commands: &[Command]| {
        derive(mirror, reports, commands, reports.read_at).messages
    };
    let expected = "all tables stand where the replay was to end, before LSN 0/14: POST /v1/mirrors/m/resume lets them go on from there";
    assert_eq!(said(&mirror, &reports, &[]), [expected]);
    // While it is on its way there, somebody has paused the mirror.
    let awaited = [AwaitedTable {
        table: table(),
        request_id: Some(request_id),
    }];
    let open = command(REPLAY, json!({ "awaited": awaited }), &reports);
    let on_the_way = said(&mirror, &reports, std::slice::from_ref(&open));
    assert!(
        on_the_way.len() == 1 && on_the_way[0].starts_with("the replay that ann"),
        "{on_the_way:?}"
    );
    let second = MirrorTable {
        source: TableName::new("public", "u"),
        replay: None,
        ..mirror.tables[0].clone()
    };
    mirror.tables.push(second);
    let named = said(&mirror, &reports, &[]);
    assert!(named[0].starts_with("table public.t stands where"));
    if let Some(report) = reports.apply.report.as_mut() {
        report.tables[0].state = "ERRORED".into();
    }
    assert!(said(&mirror, &reports, &[]).is_empty());
    replay.until = None;
    mirror.tables[0].replay = Some(replay);
    assert!(said(&mirror, &reports, &[]).is_empty());
}
