//! Roles whose worker is alive and that say nothing of a mirror.

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Health, Problem, SILENT_SECONDS, capture_of};
use crate::adopt::ADOPT;
use crate::commands::Command;
use crate::leases::Role;
use crate::mirrors::{Desired, Mirror, is_removed};
use crate::reports::{Reports, RoleState};

/// One that is paused asks Kafka and the source, each of which may take half a minute to say nothing,
/// and being away is no failure of a mirror that does nothing.
const PAUSED_SILENT_SECONDS: i64 = 120;

/// What is wrong with roles that would have reported if they got on: what they wait for shows
/// nowhere else.
pub(super) fn problems(
    mirror: &Mirror,
    reports: &Reports,
    commands: &[Command],
    now: DateTime<Utc>,
) -> Vec<Problem> {
    let mut open = commands.iter().filter(|command| command.state.is_open());
    // A role reports nothing of its part in an adoption, and nothing more when that is done.
    if open.clone().any(|command| command.kind == ADOPT) {
        return Vec::new();
    }
    let is_deleted = mirror.desired == Desired::Deleted;
    let has_gone = open.any(|command| command.kind == "delete" && is_removed(command, Role::Apply));
    // Where a mirror is deleted, capture waits for apply, which should have done its part at once.
    let capture = problem(&reports.capture, Role::Capture, mirror, now);
    let capture = capture.filter(|_| !is_deleted);
    // Before there is a history, apply has nothing to tell.
    let apply = problem(&reports.apply, Role::Apply, mirror, now);
    let apply = apply.filter(|_| mirror.generation_ready && !(is_deleted && has_gone));
    capture.into_iter().chain(apply).collect()
}

fn problem<R>(
    state: &RoleState<R>,
    role: Role,
    mirror: &Mirror,
    now: DateTime<Utc>,
) -> Option<Problem> {
    let name = match role {
        Role::Capture => capture_of(mirror),
        Role::Apply => role.as_str().to_owned(),
    };
    let silence_max = match mirror.desired_of(role) {
        Desired::Paused => PAUSED_SILENT_SECONDS,
        _ => SILENT_SECONDS,
    };
    // One that is not alive, or has failed, is told of as such.
    let is_alive = state
        .heartbeat_at
        .is_some_and(|at| (now - at).num_seconds() < SILENT_SECONDS);
    let since = last_word(state, mirror);
    let is_mute = (now - since).num_seconds() >= silence_max;
    if !is_alive || state.failure.is_some() || !is_mute {
        return None;
    }
    Some(Problem {
        health: Health::Degraded,
        message: format!(
            "{name} has not reported for {} s (since {}), though its worker is alive: it waits for something that it does not name, a lock perhaps",
            (now - since).num_seconds(),
            since.to_rfc3339_opts(SecondsFormat::Secs, true)
        ),
        count: 0,
    })
}

/// Whether the role has said nothing for so long that nobody knows what it does.
pub(crate) fn is_mute<R>(state: &RoleState<R>, mirror: &Mirror, now: DateTime<Utc>) -> bool {
    (now - last_word(state, mirror)).num_seconds() >= SILENT_SECONDS
}

/// When it last reported. Before it ever has, it is given the time since anything of the mirror
/// changed: its history may only just have begun.
fn last_word<R>(state: &RoleState<R>, mirror: &Mirror) -> DateTime<Utc> {
    state.reported_at.unwrap_or(mirror.updated_at)
}
