//! Where the destination differed from what the stream implies. It is resolved towards
//! the source, counted and said.

use super::target::Target;

/// Rows that differed, by mirror table and kind.
pub(super) const DRIFT_TOTAL: &str = "bunny_apply_drift_rows_total";

#[derive(Clone, Copy, Debug)]
pub(super) enum Drift {
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
    fn as_str(self) -> &'static str {
        match self {
            Drift::InsertOverwrote => "insert_overwrote",
            Drift::UpdateInserted => "update_inserted",
            Drift::DeleteMissed => "delete_missed",
            Drift::UpdateNotOurs => "update_not_ours",
        }
    }
}

pub(super) fn report(target: &Target, drift: Drift, rows: u64) {
    if rows == 0 {
        return;
    }
    metrics::counter!(DRIFT_TOTAL, "table" => target.source.to_string(), "kind" => drift.as_str())
        .increment(rows);
    tracing::warn!(
        table = %target.source,
        destination = %target.destination,
        kind = drift.as_str(),
        rows,
        "the destination's rows were not as expected"
    );
}
