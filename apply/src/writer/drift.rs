//! Where the destination differed from what the stream implies. It is resolved towards
//! the source, counted and said, once what was written is committed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bunny_postgres::TableName;

use super::target::Target;
use crate::context::MirrorRun;

/// Rows that differed, by mirror table and kind.
const DRIFT_TOTAL: &str = "bunny_apply_drift_rows_total";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Drift {
    /// An insert met a row and overwrote it.
    InsertOverwrote,
    /// An update found no row and inserted it.
    UpdateInserted,
    /// A delete found no row.
    DeleteMissed,
    /// An update of a row that was never here (no initial snapshot) was left out.
    UpdateNotOurs,
}

impl Drift {
    const ALL: [Drift; 4] = [
        Drift::InsertOverwrote,
        Drift::UpdateInserted,
        Drift::DeleteMissed,
        Drift::UpdateNotOurs,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Drift::InsertOverwrote => "insert_overwrote",
            Drift::UpdateInserted => "update_inserted",
            Drift::DeleteMissed => "delete_missed",
            Drift::UpdateNotOurs => "update_not_ours",
        }
    }
}

/// Rows that differed, by source table and kind.
pub(crate) type Drifts = BTreeMap<(TableName, Drift), u64>;

/// What a target has met in the savepoint that is open; by [`Drift`].
#[derive(Debug, Default)]
pub(super) struct Met([AtomicU64; Drift::ALL.len()]);

impl Met {
    pub(super) fn rows(&self) -> [u64; Drift::ALL.len()] {
        Drift::ALL.map(|drift| self.0[drift as usize].load(Ordering::Relaxed))
    }

    /// What has come since is void: a savepoint was rolled back.
    pub(super) fn put_back(&self, rows: [u64; Drift::ALL.len()]) {
        for (met, rows) in self.0.iter().zip(rows) {
            met.store(rows, Ordering::Relaxed);
        }
    }

    /// Hands it over to what the transaction has met.
    pub(super) fn hand_over(&self, source: &TableName, to: &mut Drifts) {
        for drift in Drift::ALL {
            let rows = self.0[drift as usize].swap(0, Ordering::Relaxed);
            if rows > 0 {
                *to.entry((source.clone(), drift)).or_default() += rows;
            }
        }
    }
}

pub(super) fn note(target: &Target, drift: Drift, rows: u64) {
    target.met.0[drift as usize].fetch_add(rows, Ordering::Relaxed);
}

/// Tells of what committed transactions have met: in the metrics, and in the mirror's log.
pub(crate) fn tell(run: &MirrorRun, drifts: &Drifts) {
    let mirror = &run.mirror.name;
    for ((table, drift), rows) in drifts {
        let kind = drift.as_str();
        metrics::counter!(
            DRIFT_TOTAL,
            "mirror" => mirror.clone(),
            "table" => table.to_string(),
            "kind" => kind
        )
        .increment(*rows);
        tracing::warn!(%mirror, %table, kind, rows, "the destination's rows were not as expected");
        run.reporter.drifted(table, kind, *rows);
    }
}
