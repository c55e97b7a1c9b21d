//! A part prepared while another session writes the one before it (docs/adr/0043).
//!
//! What is done ahead is what nobody else can notice: a transaction is begun, and net effects are
//! copied into staging tables that only this session has. No statement looks at anything shared,
//! so none waits for the other session or lets it wait, and none depends on what the other has
//! not committed yet. All else is done by [`Writer::write`], the fence first.

use bunny_postgres::TableName;

use super::Writer;
use super::keyed;
use super::transaction::Open;
use crate::batch::Part;
use crate::error::{Error, Result};
use crate::event::{Body, Change};
use crate::net_effect::{self, Step};

/// Whether anything of the part can be done ahead, if its tables are known: rows that are only
/// new go straight into their table.
pub(crate) fn is_worth_preparing(part: &Part) -> bool {
    part.complete
        && part.events.iter().any(|event| {
            matches!(
                &event.body,
                Body::Change {
                    change: Change::Update { .. } | Change::Delete(_),
                    ..
                }
            )
        })
}

impl Writer {
    /// Begins the part's transaction and stages what can be staged. False: nothing was done,
    /// because the part holds something else than rows of table versions that this session
    /// knows. After an error the session must not be used.
    pub async fn prepare(&mut self, part: &Part) -> Result<bool> {
        if !is_worth_preparing(part) || !self.knows(part) {
            return Ok(false);
        }
        // Without a TRUNCATE between them, rows of a table in one version are one step.
        let steps = match net_effect::steps(&part.events) {
            Ok(steps) if net_effect::by_version(&steps).len() == 1 => steps,
            _ => return Ok(false),
        };
        // Each statement is to see what was committed before it, not before the transaction.
        self.run("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        self.open = Some(Open {
            is_ahead: true,
            ..Open::at(part.first_offset)
        });
        for step in &steps {
            let Step::Rows { version, changes } = step else {
                continue;
            };
            if let Some(target) = self.targets.get_mut(&version.schema_id) {
                keyed::stage_ahead(&self.session, target, changes).await?;
            }
        }
        Ok(true)
    }

    /// Rolls back what was prepared; the part may be written like any other.
    pub async fn undo_prepared(&mut self) -> Result<()> {
        self.run("ROLLBACK").await?;
        self.open = None;
        for target in self.targets.values_mut() {
            target.staged = false;
            target.ahead = None;
        }
        Ok(())
    }

    /// Whether a part is prepared.
    pub(crate) fn is_prepared(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_ahead)
    }

    /// Whether another session may prepare the next batch while this one writes the part: a whole
    /// batch that only writes rows. What takes a stronger lock (TRUNCATE, what a new version asks
    /// for) could wait for one who waits for the other session's end, which waits for this one.
    pub(crate) fn writes_beside(&self, part: &Part) -> bool {
        let goes_on = self.open.as_ref().is_some_and(|open| !open.is_ahead);
        part.complete && !goes_on && self.knows(part)
    }

    /// Whether the part is only rows of versions that were written here before.
    fn knows(&self, part: &Part) -> bool {
        part.events.iter().all(|event| match &event.body {
            Body::Change { version, .. } => self.targets.contains_key(&version.schema_id),
            Body::Skip => true,
            Body::Truncate { .. } | Body::Gap { .. } => false,
        })
    }

    /// The versions that were met for the first time here since this was last asked.
    pub fn met(&mut self) -> Vec<(TableName, u32)> {
        std::mem::take(&mut self.met)
    }

    /// Whether this session knows one of the tables in another version: what it keeps of the
    /// table is not true any more.
    pub fn is_outdated_by(&self, met: &[(TableName, u32)]) -> bool {
        let differs = |(table, schema_id): &(TableName, u32)| {
            let mut targets = self.targets.iter();
            targets.any(|(known, target)| target.source == *table && known != schema_id)
        };
        met.iter().any(differs)
    }

    /// The first offset of the open transaction, in which the part is to be written. If one was
    /// prepared, it is this one, or what is staged would be written for another.
    pub(super) fn first_offset(&self, part: &Part) -> Result<i64> {
        let Some(open) = &self.open else {
            return Ok(part.first_offset);
        };
        if open.is_ahead && open.first_offset != part.first_offset {
            return Err(Error::Inconsistent(format!(
                "the batch at offset {} was prepared, but the one at {} is to be written",
                open.first_offset, part.first_offset
            )));
        }
        Ok(open.first_offset)
    }
}
