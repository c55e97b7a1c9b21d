//! Where an event stands in the stream of its generation.

use std::fmt;

use bunny_postgres::Lsn;
use serde::{Deserialize, Serialize};

/// Place of an event: the commit LSN of its source transaction (`Begin`'s
/// `final_lsn`) and its number in that transaction. Strictly increasing within a
/// generation; not comparable across generations.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// Commit LSN of the source transaction.
    pub commit_lsn: Lsn,
    /// Number of the row message in the transaction, counted before any filter.
    pub seq: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.commit_lsn, self.seq)
    }
}
