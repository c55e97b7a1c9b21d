//! One mirror in the hands of a supervisor: a state machine without I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::task::{FailureKind, Finished, Outcome};
use crate::leases::Role;
use crate::mirrors::Mirror;
use crate::peers::Peer;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long a cancelled task may take before it is aborted.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);

/// What a task is started for. As long as it stays the same the task runs on; when it
/// changes, the task is stopped and started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    /// [`Mirror::version_of`] the role.
    pub version: i64,
    /// When the database that the role works at was last described anew: another host or
    /// password needs other connections.
    pub peer_changed_at: Option<DateTime<Utc>>,
}

impl Stand {
    /// What `role` of `mirror` is to be started for, with its peer as far as it is known.
    pub(super) fn of(mirror: &Mirror, role: Role, peers: &HashMap<String, Peer>) -> Stand {
        let peer = match role {
            Role::Capture => &mirror.source_peer,
            Role::Apply => &mirror.destination_peer,
        };
        Stand {
            version: mirror.version_of(role),
            peer_changed_at: peers.get(peer).map(|peer| peer.updated_at),
        }
    }
}

/// Where the mirror's task stands.
#[derive(Debug, Clone, PartialEq)]
enum State {
    /// To be started.
    Ready,
    /// Started for that.
    Running { stand: Stand },
    /// Cancelled; aborted at the deadline.
    Stopping { deadline: Instant },
    /// Failed; started again at `until`.
    Waiting {
        until: Instant,
        failed_at: Instant,
        fenced: bool,
        stand: Stand,
    },
    /// Ended (idle, or for good) until something else is wanted.
    Held { stand: Stand },
    /// This role's side is gone; `recorded` once the catalog knows.
    Deleted { recorded: bool },
}

/// What the shell has to do for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Start the task.
    Start,
    /// Cancel it.
    Stop,
    /// Abort it.
    Abort,
    /// Drop the entry: no task runs and the lease is not ours.
    Forget,
}

/// A failure as it stands after the latest end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trouble {
    pub message: String,
    pub fatal: bool,
    /// The generation that only another one can follow.
    pub lost_generation: Option<Uuid>,
    pub count: u32,
    /// Until the next try.
    pub delay: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub mirror: Arc<Mirror>,
    pub stand: Stand,
    pub epoch: i64,
    state: State,
    failures: u32,
    lost: bool,
    lease_confirmed_at: Instant,
}

impl Entry {
    pub(super) fn new(mirror: Arc<Mirror>, stand: Stand, epoch: i64, now: Instant) -> Entry {
        Entry {
            mirror,
            stand,
            epoch,
            state: State::Ready,
            failures: 0,
            lost: false,
            lease_confirmed_at: now,
        }
    }

    /// The catalog says that the lease is ours.
    pub(super) fn lease_confirmed(&mut self, now: Instant) {
        self.lease_confirmed_at = now;
    }

    /// The catalog says that the lease is another's, or the mirror is gone.
    pub(super) fn lease_lost(&mut self) {
        self.lost = true;
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// The task has shown that it works.
    pub(super) fn recovered(&mut self) {
        self.failures = 0;
    }

    /// Whether the catalog has still to be told that this role's side is gone.
    pub(super) fn is_deletion_unrecorded(&self) -> bool {
        self.state == State::Deleted { recorded: false }
    }

    /// The catalog has recorded that this role's side is gone.
    pub(super) fn deletion_recorded(&mut self) {
        self.state = State::Deleted { recorded: true };
    }

    /// What is to be done now. `Start`, `Stop` and `Abort` are taken as done.
    pub(super) fn next(&mut self, now: Instant) -> Action {
        let stand = self.stand;
        match self.state {
            State::Running { stand: started } if self.lost || started != stand => {
                self.state = State::Stopping {
                    deadline: now + STOP_GRACE,
                };
                Action::Stop
            }
            State::Stopping { deadline } if now >= deadline => Action::Abort,
            State::Running { .. } | State::Stopping { .. } => Action::None,
            _ if self.lost => Action::Forget,
            State::Ready => self.start(),
            State::Held { stand: held } if held != stand => self.start(),
            State::Waiting {
                until,
                failed_at,
                fenced,
                stand: failed,
            } => {
                let ours = !fenced || self.lease_confirmed_at > failed_at;
                if ours && (now >= until || failed != stand) {
                    self.start()
                } else {
                    Action::None
                }
            }
            State::Held { .. } | State::Deleted { .. } => Action::None,
        }
    }

    fn start(&mut self) -> Action {
        self.state = State::Running { stand: self.stand };
        Action::Start
    }

    /// The task has ended. Returns the failure to be shown, if it is one: a task
    /// that was told to stop is not blamed for how it ends.
    pub(super) fn ended(&mut self, outcome: Outcome, now: Instant) -> Option<Trouble> {
        let started = match self.state {
            State::Running { stand } => stand,
            _ => {
                self.state = match outcome {
                    Ok(Finished::Deleted) => State::Deleted { recorded: false },
                    _ => State::Ready,
                };
                return None;
            }
        };
        let failure = match outcome {
            Ok(Finished::Idle) => {
                self.state = State::Held { stand: started };
                return None;
            }
            Ok(Finished::Deleted) => {
                self.state = State::Deleted { recorded: false };
                return None;
            }
            Err(failure) => failure,
        };
        self.failures = self.failures.saturating_add(1);
        let lost_generation = match failure.kind {
            FailureKind::HistoryLost { generation } => Some(generation),
            _ => None,
        };
        if failure.kind == FailureKind::Fatal || lost_generation.is_some() {
            self.state = State::Held { stand: started };
            return Some(Trouble {
                message: failure.message,
                fatal: true,
                lost_generation,
                count: self.failures,
                delay: None,
            });
        }
        let delay = backoff(self.failures);
        self.state = State::Waiting {
            until: now + delay,
            failed_at: now,
            fenced: failure.kind == FailureKind::Fenced,
            stand: started,
        };
        Some(Trouble {
            message: failure.message,
            fatal: false,
            lost_generation: None,
            count: self.failures,
            delay: Some(delay),
        })
    }
}

/// 1, 2, 4 ... 60 seconds for failure 1, 2, 3 ...
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(6);
    (BACKOFF_MIN * 2_u32.pow(doublings)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirrors::tests::mirror;
    use crate::supervise::task::TaskFailure;

    fn entry() -> (Entry, Instant) {
        let now = Instant::now();
        let mirror = Arc::new(mirror("m"));
        let stand = Stand::of(&mirror, Role::Apply, &HashMap::new());
        let mut entry = Entry::new(mirror, stand, 1, now);
        assert_eq!(entry.next(now), Action::Start);
        (entry, now)
    }

    fn at_version(entry: &mut Entry, version: i64) {
        entry.stand.version = version;
    }

    #[test]
    fn a_peer_described_anew_starts_the_task_anew() {
        let (mut entry, now) = entry();
        entry.stand.peer_changed_at = Some(Utc::now());
        assert_eq!(entry.next(now), Action::Stop);
    }

    #[test]
    fn backoff_grows_from_one_to_sixty_seconds() {
        let seconds: Vec<u64> = (1..=8).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn a_transient_failure_waits_and_counts_until_recovery() {
        let (mut entry, now) = entry();
        let trouble = entry.ended(Err(TaskFailure::transient("a")), now).unwrap();
        assert_eq!((trouble.count, trouble.delay.unwrap().as_secs()), (1, 1));
        assert_eq!(entry.next(now), Action::None);
        let later = now + Duration::from_secs(1);
        assert_eq!(entry.next(later), Action::Start);
        let trouble = entry
            .ended(Err(TaskFailure::transient("b")), later)
            .unwrap();
        assert_eq!((trouble.count, trouble.delay.unwrap().as_secs()), (2, 2));
        assert_eq!(entry.next(later + Duration::from_secs(2)), Action::Start);
        entry.recovered();
        let trouble = entry
            .ended(Err(TaskFailure::transient("c")), later)
            .unwrap();
        assert_eq!(trouble.count, 1);
    }

    #[test]
    fn a_fatal_failure_holds_until_the_row_changes() {
        let (mut entry, now) = entry();
        let trouble = entry
            .ended(Err(TaskFailure::fatal("slot lost")), now)
            .unwrap();
        assert!(trouble.fatal && trouble.delay.is_none());
        assert_eq!(entry.next(now + Duration::from_secs(3_600)), Action::None);
        at_version(&mut entry, 2);
        assert_eq!(entry.next(now), Action::Start);
    }

    #[test]
    fn a_changed_row_stops_and_starts_the_task() {
        let (mut entry, now) = entry();
        at_version(&mut entry, 2);
        assert_eq!(entry.next(now), Action::Stop);
        assert_eq!(entry.next(now), Action::None);
        assert_eq!(entry.ended(Ok(Finished::Idle), now), None);
        assert_eq!(entry.next(now), Action::Start);
    }

    #[test]
    fn a_row_that_changes_while_the_task_ends_starts_it_again() {
        let (mut entry, now) = entry();
        at_version(&mut entry, 2);
        assert_eq!(entry.ended(Ok(Finished::Idle), now), None);
        assert_eq!(entry.next(now), Action::Start);
    }

    #[test]
    fn a_task_that_does_not_stop_is_aborted() {
        let (mut entry, now) = entry();
        at_version(&mut entry, 2);
        assert_eq!(entry.next(now), Action::Stop);
        assert_eq!(entry.next(now + STOP_GRACE), Action::Abort);
    }

    #[test]
    fn a_lost_lease_stops_the_task_and_forgets_the_mirror() {
        let (mut entry, now) = entry();
        entry.lease_lost();
        assert_eq!(entry.next(now), Action::Stop);
        assert_eq!(entry.ended(Err(TaskFailure::transient("x")), now), None);
        assert_eq!(entry.next(now), Action::Forget);
    }

    #[test]
    fn a_fenced_task_waits_for_the_catalog_to_confirm_the_lease() {
        let (mut entry, now) = entry();
        entry.ended(Err(TaskFailure::fenced("taken over")), now);
        let later = now + Duration::from_secs(5);
        assert_eq!(entry.next(later), Action::None);
        entry.lease_confirmed(later);
        assert_eq!(entry.next(later), Action::Start);
    }

    #[test]
    fn a_deleted_side_is_recorded_once_and_never_started_again() {
        let (mut entry, now) = entry();
        assert_eq!(entry.ended(Ok(Finished::Deleted), now), None);
        assert!(entry.is_deletion_unrecorded());
        entry.deletion_recorded();
        assert!(!entry.is_deletion_unrecorded());
        at_version(&mut entry, 9);
        assert_eq!(entry.next(now), Action::None);
        entry.lease_lost();
        assert_eq!(entry.next(now), Action::Forget);
    }
}
