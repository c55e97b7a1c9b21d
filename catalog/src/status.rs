//! The status of a mirror: a pure function of what is wanted, what the roles
//! said and when. Nothing of it is stored.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::commands::Command;
use crate::mirrors::Mirror;
use crate::reports::Reports;

/// Where a mirror stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
    /// A person must act.
    Failed,
    /// Being deleted.
    Terminating,
}

impl Status {
    /// As the REST API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Setup => "SETUP",
            Status::Snapshot => "SNAPSHOT",
            Status::Running => "RUNNING",
            Status::Pausing => "PAUSING",
            Status::Paused => "PAUSED",
            Status::Failed => "FAILED",
            Status::Terminating => "TERMINATING",
        }
    }
}

/// What a mirror is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Slot, publications and topics are being made.
    Setup,
    /// Tables are being copied.
    Snapshot,
    /// Changes are followed.
    Cdc,
}

impl Phase {
    /// As the REST API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Setup => "SETUP",
            Phase::Snapshot => "SNAPSHOT",
            Phase::Cdc => "CDC",
        }
    }
}

/// How a mirror fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
}

/// The status at `now` (by the catalog's clock, [`Reports::read_at`]).
/// `commands` are the unfinished ones of the mirror.
pub fn derive(
    mirror: &Mirror,
    reports: &Reports,
    commands: &[Command],
    now: DateTime<Utc>,
) -> StatusView {
    let _ = (mirror, reports, commands, now);
    StatusView {
        status: Status::Setup,
        phase: Phase::Setup,
        health: Health::Ok,
        error_message: None,
        error_count: 0,
    }
}
