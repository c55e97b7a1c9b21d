//! What a run's tasks try again because it may pass by itself: said among the mirror's
//! messages until it has passed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::context::MirrorRun;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// The load of the mirror's tables.
    Load,
    /// The load of what comes beside them.
    LoadBeside,
    /// The catch-up reader of the mirror's tables.
    CatchUp,
    /// That of what is loaded beside them.
    CatchUpBeside,
    /// The exchange of a table's rows for those beside it.
    Exchange,
    /// The drop of what is wanted beside a table no more.
    Tidy,
}

/// What the tasks of one run wait for; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Waits(Arc<Mutex<BTreeMap<Task, String>>>);

impl Waits {
    /// The task has met `cause` and tries again; what it was said to wait for is forgotten.
    pub(crate) fn met(&self, task: Task, cause: &dyn std::fmt::Display) {
        let message = format!("{}: {cause}", task.tries_again());
        self.with(|waits| waits.insert(task, message));
    }

    /// The task has got on.
    pub(crate) fn over(&self, task: Task) {
        self.with(|waits| waits.remove(&task));
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.with(|waits| waits.values().cloned().collect())
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<Task, String>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Task {
    pub(crate) fn load_of(run: &MirrorRun) -> Task {
        match run.is_beside() {
            true => Task::LoadBeside,
            false => Task::Load,
        }
    }

    pub(crate) fn catch_up_of(run: &MirrorRun) -> Task {
        match run.is_beside() {
            true => Task::CatchUpBeside,
            false => Task::CatchUp,
        }
    }

    fn tries_again(self) -> &'static str {
        match self {
            Task::Load => "loading tables was interrupted and is tried again",
            Task::LoadBeside => {
                "loading a resync beside its table was interrupted and is tried again"
            }
            Task::CatchUp => "catching up was interrupted and is tried again",
            Task::CatchUpBeside => {
                "a resync beside its table was interrupted while it caught up, and is tried again"
            }
            Task::Exchange => {
                "rows could not be exchanged for those of a resync, which is tried again; the table goes on with those it has"
            }
            Task::Tidy => {
                "a table that was filled for a resync could not be dropped, which is tried again"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_says_what_it_met_last_until_it_gets_on() {
        let waits = Waits::default();
        waits.met(Task::Load, &"a lock on a");
        waits.met(Task::Load, &"a lock on b");
        waits.clone().met(Task::Exchange, &"no room");
        let said = waits.messages();
        assert_eq!(said.len(), 2);
        assert!(said[0].ends_with("tried again: a lock on b"), "{said:?}");
        waits.over(Task::Load);
        waits.over(Task::CatchUp);
        assert_eq!(waits.messages(), said[1..]);
    }
}
