//! Amounts that are moved between two tables and never made: their sum is the same in every
//! state that the source ever had, so a reader of the destination sees no other (invariant I4).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::database::{Session, Url};

/// The tables that the amounts are in.
pub const TABLES: [&str; 2] = ["public.purses", "public.vaults"];

/// Rows of each table that stay, and what is in each at first.
const ROWS: i64 = 2_000;
const AMOUNT: i64 = 1_000;
const SUM: i64 = 2 * ROWS * AMOUNT;

/// So that others have a turn on a small machine.
const READ_PAUSE: Duration = Duration::from_millis(3);

/// One statement has one snapshot.
const READ: &str = "SELECT coalesce(sum(amount), 0)::int8, coalesce(sum(amount) FILTER (WHERE is_purse), 0)::int8
    FROM (SELECT true AS is_purse, amount FROM purses UNION ALL SELECT false, amount FROM vaults) AS everything";

/// Creates the tables at the source and fills them.
pub async fn create_tables(source: &Session) -> anyhow::Result<()> {
    source
        .run(&format!(
            "CREATE TABLE purses (id bigint PRIMARY KEY, amount bigint NOT NULL);
             CREATE TABLE vaults (id bigint PRIMARY KEY, amount bigint NOT NULL);
             INSERT INTO purses SELECT g, {AMOUNT} FROM generate_series(1, {ROWS}) g;
             INSERT INTO vaults SELECT g, {AMOUNT} FROM generate_series(1, {ROWS}) g;"
        ))
        .await
}

/// Transfers never meet.
const ALONE: &str = "BEGIN; SELECT pg_advisory_xact_lock(4);";

/// One transaction that takes from every row of the one table and changes every row of the other.
pub async fn move_everywhere(source: &Session) -> anyhow::Result<()> {
    source
        .run(&format!(
            "{ALONE} WITH taken AS (UPDATE purses SET amount = amount - 1 RETURNING 1)
                UPDATE vaults SET amount = amount + CASE id WHEN 1 THEN (SELECT count(*) FROM taken) ELSE 0 END;
             COMMIT;"
        ))
        .await
}

/// A session that moves amounts until it is stopped.
pub struct Transfers {
    stop: watch::Sender<bool>,
    committed: Arc<AtomicU64>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Transfers {
    /// About `per_second` transactions a second.
    pub fn start(source: &Url, per_second: u32) -> Transfers {
        let (stop, stopping) = watch::channel(false);
        let committed = Arc::new(AtomicU64::new(0));
        let pause = Duration::from_secs(1) / per_second;
        let task = tokio::spawn(transfer(source.clone(), pause, stopping, committed.clone()));
        Transfers {
            stop,
            committed,
            task,
        }
    }

    /// Waits until that many more transactions have been committed.
    pub async fn advance(&self, transactions: u64) -> anyhow::Result<()> {
        let target = self.committed.load(Ordering::Relaxed) + transactions;
        while self.committed.load(Ordering::Relaxed) < target {
            ensure!(!self.task.is_finished(), "nothing is transferred any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends with a whole transaction.
    pub async fn stop(self) -> anyhow::Result<()> {
        // Fails only if the task is gone, which says why.
        let _ = self.stop.send(true);
        self.task.await?
    }
}

async fn transfer(
    source: Url,
    pause: Duration,
    stopping: watch::Receiver<bool>,
    committed: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let session = source.connect().await?;
    let mut random = StdRng::seed_from_u64(4);
    let mut next_id = ROWS;
    while !*stopping.borrow() {
        session.run(&transaction(&mut random, &mut next_id)).await?;
        committed.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// A few transfers from table to table in one transaction: rows are changed, deleted and inserted.
fn transaction(random: &mut StdRng, next_id: &mut i64) -> String {
    let mut sql = ALONE.to_owned();
    for _ in 0..random.random_range(1..6) {
        let (from, to) = if random.random() {
            ("purses", "vaults")
        } else {
            ("vaults", "purses")
        };
        let (row, other) = (random.random_range(1..=ROWS), random.random_range(1..=ROWS));
        let moved = random.random_range(1..50);
        let statements = match random.random_range(0..3) {
            0 => format!(
                "UPDATE {from} SET amount = amount - {moved} WHERE id = {row}; UPDATE {to} SET amount = amount + {moved} WHERE id = {other};"
            ),
            1 => {
                *next_id += 1;
                format!(
                    "INSERT INTO {to} VALUES ({next_id}, {moved}); UPDATE {from} SET amount = amount - {moved} WHERE id = {row};"
                )
            }
            _ => format!(
                "WITH gone AS (DELETE FROM {from} WHERE id = (SELECT max(id) FROM {from} WHERE id > {ROWS}) RETURNING amount)
                 UPDATE {to} SET amount = amount + coalesce((SELECT amount FROM gone), 0) WHERE id = {other};"
            ),
        };
        sql.push_str(&statements);
    }
    sql.push_str("COMMIT;");
    sql
}

/// A reader of the destination that never stops looking.
pub struct Reader {
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<Seen>>,
}

/// What a reader saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub reads: usize,
    /// Different distributions over the two tables.
    pub states: usize,
}

impl Reader {
    /// Of tables that are there.
    pub async fn start(destination: &Url) -> anyhow::Result<Reader> {
        let session = destination.connect().await?;
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(read(session, stopping));
        Ok(Reader { stop, task })
    }

    /// What it has seen; an error if that was ever a state that the source did not have.
    pub async fn stop(self) -> anyhow::Result<Seen> {
        // Fails only if the task is gone, which says why.
        let _ = self.stop.send(true);
        self.task.await.context("the reader")?
    }
}

async fn read(session: Session, stopping: watch::Receiver<bool>) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let mut states = HashSet::new();
    while !*stopping.borrow() {
        let row = session.query_one(READ, &[]).await?;
        let (sum, purses): (i64, i64) = (row.get(0), row.get(1));
        ensure!(
            sum == SUM,
            "a reader of the destination saw {sum} in all after {} reads of {SUM} ({purses} of it in purses): no state of the source",
            seen.reads
        );
        seen.reads += 1;
        states.insert(purses);
        seen.states = states.len();
        tokio::time::sleep(READ_PAUSE).await;
    }
    Ok(seen)
}
