//! What there is more and more of, and the changes that are written for it.

use std::fmt;

use anyhow::Result;
use bunny_tests::database::Session;
use serde::Serialize;

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Of one mirror; the changes are spread over them.
    Tables,
    /// In one process of each role, of the same table; what arrives is spread over them.
    Mirrors,
    /// In the backlog of one table.
    Events,
}

impl Axis {
    /// Which of several sizes the others are compared with. A backlog's smallest costs
    /// little else than the start of a stream, whatever a row costs.
    pub fn base(self, sizes: usize) -> usize {
        match self {
            Axis::Tables | Axis::Mirrors => 0,
            Axis::Events => sizes / 2,
        }
    }
}

/// So much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub axis: Axis,
    pub count: u64,
    pub tables: u64,
    pub mirrors: u64,
    /// Of [`CHANGES`] each, to every table.
    transactions: u64,
}

/// Changed rows at scale 1, over all tables and mirrors: enough that sixteen starts of a
/// stream do not count for much.
const ROWS: f64 = 2_000_000.0;

/// Of a transaction, all to one table. Rows that are updated or deleted were there before
/// the backlog, so that none of them folds into another within a batch, of whatever size
/// that is.
const INSERTED: u64 = 60;
const UPDATED: u64 = 20;
const DELETED: u64 = 20;
const CHANGES: u64 = INSERTED + UPDATED + DELETED;

/// Narrow, so that what a row costs beside its values weighs more. No per cent sign: it is
/// formatted.
const ROW: &str = "g, 'name ' || g, g / 7.0, timestamptz '2026-01-01' + g * interval '1 second', \
                   repeat('note ', 4) || g";

impl Size {
    /// The same changes over more and more tables.
    pub fn of_tables(count: u64, scale: f64) -> Size {
        Size::new(Axis::Tables, count, (count, 1), ROWS * scale)
    }

    /// The same changes, all mirrors taken together.
    pub fn of_mirrors(count: u64, scale: f64) -> Size {
        Size::new(Axis::Mirrors, count, (1, count), ROWS * scale)
    }

    /// More and more changes.
    pub fn of_events(count: u64, scale: f64) -> Size {
        let mut size = Size::new(Axis::Events, count, (1, 1), count as f64 * scale);
        size.count = size.rows();
        size
    }

    /// In whole transactions, one to each table at least.
    fn new(axis: Axis, count: u64, (tables, mirrors): (u64, u64), rows: f64) -> Size {
        let transactions = rows / (CHANGES * tables * mirrors) as f64;
        Size {
            axis,
            count,
            tables,
            mirrors,
            transactions: (transactions.round() as u64).max(1),
        }
    }

    /// Changed rows that arrive, all mirrors taken together.
    pub fn rows(&self) -> u64 {
        self.written() * self.mirrors
    }

    fn written(&self) -> u64 {
        self.transactions * self.tables * CHANGES
    }

    /// `"schema.table"` each.
    pub fn table_names(&self) -> Vec<String> {
        (1..=self.tables)
            .map(|table| format!("public.growth_{table}"))
            .collect()
    }

    /// Creates the tables with the rows that will be updated and deleted: those below 0.
    pub async fn create_tables(&self, source: &Session) -> Result<()> {
        let rows = self.transactions * (UPDATED + DELETED);
        for table in self.table_names() {
            source
                .run(&format!(
                    "CREATE TABLE {table} (id bigint PRIMARY KEY, name text NOT NULL,
                         amount numeric(14,2), at timestamptz, note text);
                     INSERT INTO {table} SELECT {ROW} FROM generate_series(-{rows}, -1) g;
                     ANALYZE {table}"
                ))
                .await?;
        }
        Ok(())
    }

    /// Writes the backlog, to the tables in turn.
    ///
    /// # Errors
    /// Also if a change met another number of rows than it should: what is divided by would
    /// be wrong.
    pub async fn write(&self, source: &Session) -> Result<()> {
        let old = UPDATED + DELETED;
        let changes = [
            format!(
                "INSERT INTO public.growth_%s SELECT {ROW}
                 FROM generate_series($1 * {INSERTED} + 1, ($1 + 1) * {INSERTED}) g"
            ),
            format!(
                "UPDATE public.growth_%s SET amount = amount + 1, note = 'changed ' || id
                 WHERE id < -$1 * {old} AND id >= -$1 * {old} - {UPDATED}"
            ),
            format!(
                "DELETE FROM public.growth_%s
                 WHERE id < -$1 * {old} - {UPDATED} AND id >= -($1 + 1) * {old}"
            ),
        ];
        let changes = changes.map(|change| {
            format!(
                "EXECUTE format($sql${change}$sql$, t) USING i;
                 GET DIAGNOSTICS met = ROW_COUNT;
                 changed := changed + met;"
            )
        });
        // Writing is not measured: nobody waits for its disk.
        source.run("SET synchronous_commit = off").await?;
        source
            .run(&format!(
                "DO $$ DECLARE met bigint; changed bigint := 0; BEGIN
                   FOR i IN 0..{last} LOOP FOR t IN 1..{tables} LOOP
                     {changes}
                     COMMIT;
                   END LOOP; END LOOP;
                   IF changed <> {written} THEN
                     RAISE EXCEPTION 'changed % rows instead of {written}', changed;
                   END IF;
                 END $$",
                last = self.transactions - 1,
                tables = self.tables,
                changes = changes.concat(),
                written = self.written(),
            ))
            .await?;
        // Written out, so that nobody measured pays for it.
        source.run("SET synchronous_commit = on; CHECKPOINT").await
    }

    /// Asks a destination whether the last transaction is there, and with it all before.
    pub fn arrived(&self) -> String {
        format!(
            "SELECT true FROM public.growth_{} WHERE id = {}",
            self.tables,
            self.transactions * INSERTED
        )
    }

    /// Removes the tables.
    pub async fn drop_tables(&self, source: &Session) -> Result<()> {
        let tables = self.table_names().join(", ");
        source.run(&format!("DROP TABLE {tables}")).await
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = match self.axis {
            Axis::Tables => "table",
            Axis::Mirrors => "mirror",
            Axis::Events => "event",
        };
        let plural = if self.count == 1 { "" } else { "s" };
        write!(out, "{} {one}{plural}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_size_is_the_same_rows_over_all_counts() {
        for count in [1, 10, 100] {
            assert_eq!(Size::of_tables(count, 1.0).rows(), 2_000_000);
        }
        for count in [1, 4, 16] {
            assert_eq!(Size::of_mirrors(count, 1.0).rows(), 2_000_000);
        }
        for count in [1_000, 100_000, 10_000_000] {
            assert_eq!(Size::of_events(count, 1.0).rows(), count);
        }
    }

    #[test]
    fn a_small_size_is_at_least_a_transaction_of_every_table() {
        assert_eq!(Size::of_tables(100, 0.001).rows(), 10_000);
        assert_eq!(Size::of_mirrors(16, 0.001).rows(), 1_600);
        let events = Size::of_events(1_000, 0.001);
        assert_eq!((events.rows(), events.count), (100, 100));
    }
}
