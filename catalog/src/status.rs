//! The status of a mirror: a pure function of what is wanted, what the roles
//! said and when. Nothing of it is stored.

mod mute;
mod paused;

pub(crate) use mute::is_mute;

use bunny_postgres::Lsn;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::commands::Command;
use crate::leases::Role;
use crate::mirrors::{Desired, Mirror, ResyncStrategy};
use crate::replay::REPLAY;
use crate::reports::{ApplyReport, Reports, RoleState, TableReport};
use crate::schema_sync::SYNC_SCHEMA;
use crate::tables::RESYNC;

/// Where a mirror stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Slot, publications and topics are being made.
    Setup,
    /// Tables are being copied.
    Snapshot,
    /// Changes are followed.
    Running,
    /// About to be paused.
    Pausing,
    /// Captured, not applied.
    Paused,
    /// Tables are being synced anew.
    Resyncing,
    /// The destination is being brought to the source's present schema.
    SyncingSchema,
    /// A person must act.
    Failed,
    /// Being deleted.
    Terminating,
}

impl Status {
    /// Every status there is.
    pub const ALL: [Status; 9] = [
        Status::Setup,
        Status::Snapshot,
        Status::Running,
        Status::Pausing,
        Status::Paused,
        Status::Resyncing,
        Status::SyncingSchema,
        Status::Failed,
        Status::Terminating,
    ];

    /// As the REST API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Setup => "SETUP",
            Status::Snapshot => "SNAPSHOT",
            Status::Running => "RUNNING",
            Status::Pausing => "PAUSING",
            Status::Paused => "PAUSED",
            Status::Resyncing => "RESYNCING",
            Status::SyncingSchema => "SYNCING_SCHEMA",
            Status::Failed => "FAILED",
            Status::Terminating => "TERMINATING",
        }
    }
}

/// What a mirror is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Slot, publications and topics are being made.
    Setup,
    /// Tables are being copied.
    Snapshot,
    /// Changes are followed.
    Cdc,
    /// Tables are loaded anew beside themselves and then exchanged, while changes are followed.
    Swap,
    /// Tables are rebuilt from the topics.
    Replay,
    /// The destination is being brought to the source's present schema.
    SchemaSync,
}

impl Phase {
    /// As the REST API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Setup => "SETUP",
            Phase::Snapshot => "SNAPSHOT",
            Phase::Cdc => "CDC",
            Phase::Swap => "SWAP",
            Phase::Replay => "REPLAY",
            Phase::SchemaSync => "SCHEMA_SYNC",
        }
    }
}

/// How a mirror fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It works, but something needs attention or is being retried.
    Degraded,
    /// It does not work.
    Down,
}

impl Health {
    /// From the best to the worst.
    pub const ALL: [Health; 3] = [Health::Ok, Health::Degraded, Health::Down];

    /// As the REST API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Ok => "OK",
            Health::Degraded => "DEGRADED",
            Health::Down => "DOWN",
        }
    }
}

/// What is shown of a mirror's state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    /// Where it stands.
    pub status: Status,
    /// What it is doing.
    pub phase: Phase,
    /// How it fares.
    pub health: Health,
    /// The worst that is wrong now.
    pub error_message: Option<String>,
    /// Failures in a row of both roles, and tables in error.
    pub error_count: i64,
    /// What waits for the mirror to be resumed, a sentence each.
    pub messages: Vec<String>,
}

/// After so long without a sign of life a role counts as gone.
const SILENT_SECONDS: i64 = 30;

/// The status at `now` (by the catalog's clock, [`Reports::read_at`]).
/// `commands` are the unfinished ones of the mirror.
pub fn derive(
    mirror: &Mirror,
    reports: &Reports,
    commands: &[Command],
    now: DateTime<Utc>,
) -> StatusView {
    let mut problems = problems(mirror, reports, now);
    problems.extend(mute::problems(mirror, reports, commands, now));
    // An owner's capture that has failed is for the owner to be mended.
    let capture = reports.capture.failure.as_ref();
    let fatal = capture
        .filter(|_| mirror.owner.is_none())
        .into_iter()
        .chain(&reports.apply.failure)
        .any(|failure| failure.fatal);
    let is_open = |kind: &str| commands.iter().any(|c| c.kind == kind && c.state.is_open());
    let phase = match phase(mirror, reports) {
        Phase::Cdc | Phase::Snapshot if is_open(REPLAY) => Phase::Replay,
        Phase::Cdc if is_open(SYNC_SCHEMA) => Phase::SchemaSync,
        Phase::Cdc if commands.iter().any(is_open_swap) => Phase::Swap,
        phase => phase,
    };
    let deleting = commands
        .iter()
        .any(|command| command.kind == "delete" && command.state.is_open());
    let resyncing = commands
        .iter()
        .any(|command| command.kind == RESYNC && command.state.is_open());
    let status = if mirror.desired == Desired::Deleted || deleting {
        Status::Terminating
    } else if fatal {
        Status::Failed
    } else if mirror.desired == Desired::Paused {
        // PAUSED is said by the worker that has stopped, by ending the command.
        let pausing = commands
            .iter()
            .any(|command| command.kind == "pause" && command.state.is_open());
        if pausing {
            Status::Pausing
        } else {
            Status::Paused
        }
    } else {
        match phase {
            Phase::Setup => Status::Setup,
            Phase::Snapshot => Status::Snapshot,
            Phase::SchemaSync => Status::SyncingSchema,
            Phase::Cdc if resyncing => Status::Resyncing,
            Phase::Replay | Phase::Swap => Status::Resyncing,
            Phase::Cdc => Status::Running,
        }
    };
    let health = problems
        .iter()
        .map(|problem| problem.health)
        .max()
        .unwrap_or(Health::Ok);
    let worst = problems
        .iter()
        .find(|problem| problem.health == health)
        .map(|problem| problem.message.clone());
    StatusView {
        status,
        phase,
        health,
        error_message: worst,
        error_count: problems.iter().map(|problem| problem.count).sum(),
        messages: match mirror.desired {
            Desired::Paused => paused::messages(mirror, reports, commands),
            _ => Vec::new(),
        },
    }
}

fn is_open_swap(command: &Command) -> bool {
    let is_swap = command.args["strategy"] == json!(ResyncStrategy::Swap);
    command.kind == RESYNC && command.state.is_open() && is_swap
}

/// How far the mirror has come. A table in error or set aside does not hold the
/// others back; it shows in the health.
fn phase(mirror: &Mirror, reports: &Reports) -> Phase {
    if !mirror.generation_ready {
        return Phase::Setup;
    }
    let no_tables = Vec::new();
    let tables = match &reports.apply.report {
        Some(report) if report.generation == Some(mirror.generation) => &report.tables,
        _ => &no_tables,
    };
    let state_of = |source| {
        tables
            .iter()
            .find(|table| table.source == source)
            .map_or("PENDING", |table| table.state.as_str())
    };
    let states: Vec<&str> = mirror
        .tables
        .iter()
        .map(|table| state_of(table.source.clone()))
        .collect();
    if let Some(report) = &reports.apply.report
        && main_has_begun(report, mirror)
    {
        // Tables that are not in main, or not any more, do not change what the mirror does.
        let catching_up = |table: &TableReport| table.in_main && table.state == "CATCHING_UP";
        return if tables.iter().any(catching_up) {
            Phase::Snapshot
        } else {
            Phase::Cdc
        };
    }
    let settled = |state: &&str| ["LIVE", "ERRORED", "PARKED"].contains(state);
    if !states.is_empty() && states.iter().all(settled) {
        return Phase::Cdc;
    }
    let capture_syncs = reports
        .capture
        .report
        .as_ref()
        .is_some_and(|report| !report.syncs.is_empty());
    if capture_syncs || states.iter().any(|state| *state != "PENDING") {
        return Phase::Snapshot;
    }
    Phase::Setup
}

/// Whether changes are followed already: tables that come later do so beside that.
fn main_has_begun(report: &ApplyReport, mirror: &Mirror) -> bool {
    report.generation == Some(mirror.generation)
        && (report.applied.commit_lsn > Lsn(0) || report.tables.iter().any(|table| table.in_main))
}

struct Problem {
    health: Health,
    message: String,
    count: i64,
}

/// Everything that is wrong, what explains most first.
fn problems(mirror: &Mirror, reports: &Reports, now: DateTime<Utc>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(failure(&reports.capture, &capture_of(mirror)));
    problems.extend(failure(&reports.apply, Role::Apply.as_str()));
    problems.extend(slot_at_risk(reports));
    problems.extend(capture_paused(mirror));
    problems.extend(silence(mirror, &reports.capture, Role::Capture, now));
    problems.extend(silence(mirror, &reports.apply, Role::Apply, now));
    problems.extend(tables_in_error(reports));
    problems
}

/// Whose capture it is, in words.
fn capture_of(mirror: &Mirror) -> String {
    match &mirror.owner {
        None => Role::Capture.as_str().to_owned(),
        Some(owner) => format!("capture of mirror \"{}\", which feeds this one", owner.name),
    }
}

fn capture_paused(mirror: &Mirror) -> Option<Problem> {
    let owner = mirror.owner.as_ref().filter(|owner| owner.capture_paused)?;
    Some(Problem {
        health: Health::Degraded,
        message: format!("capture paused by {}", owner.name),
        count: 0,
    })
}

fn failure<R>(state: &RoleState<R>, role: &str) -> Option<Problem> {
    let failure = state.failure.as_ref()?;
    Some(Problem {
        health: if failure.fatal {
            Health::Down
        } else {
            Health::Degraded
        },
        message: format!("{role}: {}", failure.message),
        count: i64::from(failure.count),
    })
}

fn slot_at_risk(reports: &Reports) -> Option<Problem> {
    let report = reports.capture.report.as_ref()?;
    let (health, what) = match report.wal_status.as_deref() {
        Some("lost") => (Health::Down, "has lost WAL that the mirror needs"),
        Some("unreserved") => (
            Health::Degraded,
            "is about to lose WAL that the mirror needs: raise max_slot_wal_keep_size",
        ),
        _ => return None,
    };
    Some(Problem {
        health,
        message: format!("the replication slot {what}"),
        count: 1,
    })
}

/// A role that nobody does: no worker has renewed its lease for a while.
fn silence<R>(
    mirror: &Mirror,
    state: &RoleState<R>,
    role: Role,
    now: DateTime<Utc>,
) -> Option<Problem> {
    let last_sign = state.heartbeat_at.unwrap_or(mirror.created_at);
    let silent_seconds = (now - last_sign).num_seconds();
    if silent_seconds < SILENT_SECONDS {
        return None;
    }
    Some(Problem {
        health: Health::Down,
        message: format!(
            "no {role} worker has been heard of for {silent_seconds} s: is \"bunny {role}\" running?"
        ),
        count: 0,
    })
}

fn tables_in_error(reports: &Reports) -> Vec<Problem> {
    let Some(report) = &reports.apply.report else {
        return Vec::new();
    };
    let in_error = |table: &&TableReport| ["ERRORED", "PARKED"].contains(&table.state.as_str());
    report
        .tables
        .iter()
        .filter(in_error)
        .map(|table| Problem {
            health: Health::Degraded,
            message: format!(
                "table {} is {}: {}",
                table.source,
                table.state,
                table.error.as_deref().unwrap_or("no reason is known")
            ),
            count: 1,
        })
        .collect()
}

#[cfg(test)]
mod tests;
