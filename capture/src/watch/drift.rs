//! Updates and deletes of a table of which only inserts are captured. Pure.

use serde::{Deserialize, Serialize};

/// Counters of the server's statistics, compared with where they began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Drift {
    /// Rows updated and not captured.
    pub(crate) updates: i64,
    /// Rows deleted and not captured.
    pub(crate) deletes: i64,
    /// The counters were reset meanwhile: there may have been more.
    pub(crate) was_reset: bool,
    seen_updates: i64,
    seen_deletes: i64,
}

impl Drift {
    /// What is known once the counters stand at `(updates, deletes)`.
    pub(super) fn after(before: Option<&Drift>, (updates, deletes): (i64, i64)) -> Drift {
        let Some(before) = before else {
            return Drift {
                seen_updates: updates,
                seen_deletes: deletes,
                ..Drift::default()
            };
        };
        let was_reset = updates < before.seen_updates || deletes < before.seen_deletes;
        let (from_updates, from_deletes) = if was_reset {
            (0, 0)
        } else {
            (before.seen_updates, before.seen_deletes)
        };
        Drift {
            updates: before.updates + updates - from_updates,
            deletes: before.deletes + deletes - from_deletes,
            was_reset: before.was_reset || was_reset,
            seen_updates: updates,
            seen_deletes: deletes,
        }
    }

    /// In words; None when nothing was changed behind the mirror's back.
    pub(super) fn said(&self) -> Option<String> {
        let reset = if self.was_reset {
            "; the server's statistics were reset meanwhile, so there may have been more"
        } else {
            ""
        };
        (self.updates + self.deletes > 0 || self.was_reset).then(|| {
            format!(
                "{} rows were updated and {} deleted at the source that are not captured{reset}",
                self.updates, self.deletes
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_where_it_began() {
        let first = Drift::after(None, (100, 50));
        assert_eq!(first.said(), None);
        let same = Drift::after(Some(&first), (100, 50));
        assert_eq!(same, first);
        let more = Drift::after(Some(&same), (103, 51));
        assert_eq!((more.updates, more.deletes), (3, 1));
        let reset = Drift::after(Some(&more), (2, 0));
        assert_eq!((reset.updates, reset.deletes), (5, 1));
        assert!(reset.said().unwrap().contains("reset"));
    }
}
