//! What is written at the source.

use anyhow::Result;
use bunny_tests::database::{Session, Url};
use bunny_tests::pgbench;
use clap::ValueEnum;
use serde::Serialize;

/// Tables of the drains; pgbench's besides.
pub const TABLES: [&str; 5] = [
    "public.mixed",
    "public.hot",
    "public.bench_marker",
    "public.pgbench_accounts",
    "public.pgbench_history",
];

/// Twelve columns of the kinds that business tables have, about 350 bytes a row as text.
pub const CREATE_MIXED: &str =
    "CREATE TABLE mixed (id bigint PRIMARY KEY, title text, code varchar(40),
    amount numeric(14,4), at timestamptz, day date, attributes jsonb, token uuid, tags text[],
    payload bytea, active boolean, score double precision)";

/// The rest of the drains' tables.
pub const CREATE_OTHERS: &str =
    "CREATE TABLE hot (id int PRIMARY KEY, n bigint NOT NULL, note text);
    CREATE TABLE bench_marker (n bigint PRIMARY KEY)";

/// Keys of the hot table.
pub const HOT_KEYS: u64 = 1_000;

/// Rows of [`CREATE_MIXED`], for `g` from `generate_series`.
pub const MIXED_ROW: &str = "g, 'title of row ' || g || repeat(' and so on', 6), 'C-' || md5(g::text),
    (g % 1000000) / 7.0, timestamptz '2026-01-01' + g * interval '1 second', date '2020-01-01' + (g % 2000)::int,
    jsonb_build_object('n', g, 'name', md5(g::text), 'even', g % 2 = 0), md5(g::text)::uuid,
    ARRAY['a' || g % 10, 'b' || g % 100], decode(md5(g || 'x') || md5(g || 'y'), 'hex'), g % 3 = 0, g * 1.5";

/// One backlog that is written while the streams stand, then drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// pgbench's simple update: one update, one insert a transaction.
    SmallTransactions,
    /// Rows of the mixed table, 10,000 a transaction.
    Inserts,
    /// By key, 5,000 a transaction.
    Updates,
    /// By key, 5,000 a transaction.
    Deletes,
    /// Two inserts, two updates, one delete a transaction.
    Mixed,
    /// All rows in one transaction.
    OneTransaction,
    /// Few keys again and again, 100 a transaction.
    HotRows,
}

impl Workload {
    /// In the order in which they build on each other within a round.
    pub const ALL: [Workload; 7] = [
        Workload::SmallTransactions,
        Workload::Inserts,
        Workload::Updates,
        Workload::Deletes,
        Workload::Mixed,
        Workload::OneTransaction,
        Workload::HotRows,
    ];

    /// Changed rows at scale 1.
    fn rows(self) -> u64 {
        match self {
            Workload::SmallTransactions => 400_000,
            Workload::Inserts | Workload::HotRows => 1_000_000,
            Workload::Updates | Workload::Deletes | Workload::OneTransaction => 500_000,
            Workload::Mixed => 485_000,
        }
    }

    /// Changed rows in whole transactions at `scale`.
    pub fn rows_at(self, scale: f64) -> u64 {
        let transaction = self.rows_per_transaction(scale);
        let transactions = (self.rows() as f64 * scale / transaction as f64).round();
        transaction * (transactions as u64).max(1)
    }

    fn rows_per_transaction(self, scale: f64) -> u64 {
        match self {
            // Four clients, two rows a transaction.
            Workload::SmallTransactions => 8,
            Workload::Inserts => 10_000,
            Workload::Updates | Workload::Deletes => 5_000,
            Workload::Mixed => 5,
            Workload::OneTransaction => ((500_000.0 * scale) as u64).max(1),
            Workload::HotRows => 100,
        }
    }

    /// Writes it; returns the rows changed.
    pub async fn write(self, source: &Session, url: &Url, scale: f64) -> Result<u64> {
        let rows = self.rows_at(scale);
        let transaction = self.rows_per_transaction(scale);
        let last = rows / transaction - 1;
        // Updates and deletes meet the first half of what was inserted, the mixed changes
        // the second.
        let middle = Workload::Updates.rows_at(scale);
        let beyond = 2 * Workload::Inserts.rows_at(scale);
        let statements = match self {
            Workload::SmallTransactions => {
                pgbench::simple_updates(url, 4, rows / 2).await?;
                return Ok(rows);
            }
            Workload::Inserts | Workload::OneTransaction => {
                let base = if self == Workload::Inserts { 0 } else { 2 * beyond };
                format!(
                    "INSERT INTO mixed SELECT {MIXED_ROW}
                     FROM generate_series({base} + i * {transaction} + 1, {base} + (i + 1) * {transaction}) g;"
                )
            }
            Workload::Updates => format!(
                "UPDATE mixed SET amount = amount + 1, title = 'changed ' || id
                 WHERE id > i * {transaction} AND id <= (i + 1) * {transaction};"
            ),
            Workload::Deletes => format!(
                "DELETE FROM mixed WHERE id > i * {transaction} AND id <= (i + 1) * {transaction};"
            ),
            Workload::Mixed => format!(
                "INSERT INTO mixed SELECT {MIXED_ROW} FROM generate_series({beyond} + i * 2, {beyond} + i * 2 + 1) g;
                 UPDATE mixed SET score = score + 1 WHERE id IN ({middle} + i + 1, {beyond} + i);
                 DELETE FROM mixed WHERE id = {middle} + {last} + i + 2;"
            ),
            Workload::HotRows => format!(
                "UPDATE hot SET n = n + 1, note = 'seen in ' || i
                 WHERE id > i * {transaction} % {HOT_KEYS} AND id <= i * {transaction} % {HOT_KEYS} + {transaction};"
            ),
        };
        // Writing is not measured: nobody waits for its disk. Plans of the loop are made for
        // its values, so that keys are found by their index from the start.
        source
            .run(
                "SET synchronous_commit = off; SET plan_cache_mode = force_custom_plan;
                 ANALYZE mixed, hot;",
            )
            .await?;
        source
            .run(&format!(
                "DO $$ BEGIN FOR i IN 0..{last} LOOP {statements} COMMIT; END LOOP; END $$"
            ))
            .await?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_size_is_whole_transactions() {
        for workload in Workload::ALL {
            assert_eq!(workload.rows_at(1.0), workload.rows());
        }
    }

    #[test]
    fn a_hundredth_is_at_least_one_transaction() {
        assert_eq!(Workload::Inserts.rows_at(0.001), 10_000);
        assert_eq!(Workload::OneTransaction.rows_at(0.01), 5_000);
        assert_eq!(Workload::Mixed.rows_at(0.01), 4_850);
    }
}
