//! Writers that keep changing the source, through every failure of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::content::TablePair;
use crate::database::{Session, Url};

/// The tables the writers work on: every way a row can be identified.
pub const TABLES: [&str; 4] = [
    "public.accounts",
    "public.documents",
    "public.measurements",
    "public.journal",
];

/// Keyed; keyed with values big enough to be TOASTed; no key but REPLICA IDENTITY FULL,
/// with duplicates; no key at all, append-only, where a change applied twice would show.
const CREATE: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, owner text NOT NULL, balance numeric(20,2) NOT NULL DEFAULT 0,
    seen timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE INDEX accounts_owner ON accounts (lower(owner));
CREATE TABLE documents (id int PRIMARY KEY, title text, body text, revision int NOT NULL DEFAULT 0);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
CREATE TABLE measurements (sensor int, value double precision, note text);
ALTER TABLE measurements REPLICA IDENTITY FULL;
CREATE INDEX measurements_sensor ON measurements (sensor, value DESC);
CREATE TABLE journal (writer int, n bigint, entry text, at timestamptz DEFAULT clock_timestamp());
";

/// Runs `sql` in one transaction beside the load. Its transactions all begin with the journal, and
/// so does this one: tables locked in another order would be a deadlock.
pub async fn run_beside(source: &Session, sql: &str) -> anyhow::Result<()> {
    source.run(&format!("LOCK TABLE journal; {sql}")).await
}

/// Creates the tables at the source and fills them: `rows` accounts and journal
/// entries, a tenth of that in the others.
pub async fn create_tables(source: &Session, rows: u32) -> anyhow::Result<()> {
    source.run(CREATE).await?;
    source
        .run(&format!(
            "INSERT INTO accounts SELECT g, 'owner ' || g, g * 1.25, now() FROM generate_series(1, {rows}) g;
             INSERT INTO documents SELECT g, 'title ' || g, repeat(md5(g::text), 100), 0 FROM generate_series(1, {rows} / 10) g;
             INSERT INTO measurements SELECT g % 7, (g % 50) / 3.0, CASE WHEN g % 3 = 0 THEN NULL ELSE 'note ' || g % 5 END
                FROM generate_series(1, {rows} / 10) g;
             INSERT INTO journal SELECT 0, g, 'entry ' || g, now() FROM generate_series(1, {rows}) g;
             ANALYZE;"
        ))
        .await
}

/// All tables, for the oracles.
pub fn pairs() -> Vec<TablePair> {
    TablePair::all(&TABLES)
}

/// Tasks writing to the tables of [`create_tables`] until stopped.
pub struct Load {
    stop: watch::Sender<bool>,
    writers: JoinSet<()>,
    committed: Arc<AtomicU64>,
}

impl Load {
    /// `writers` sessions, each committing about `per_second` transactions a second.
    pub fn start(source: &Url, writers: u32, per_second: u32) -> Load {
        let (stop, stopping) = watch::channel(false);
        let committed = Arc::new(AtomicU64::new(0));
        let mut set = JoinSet::new();
        for writer in 1..=writers {
            let pause = Duration::from_secs(1) / per_second;
            set.spawn(write_until(
                source.clone(),
                writer,
                pause,
                stopping.clone(),
                committed.clone(),
            ));
        }
        Load {
            stop,
            writers: set,
            committed,
        }
    }

    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until that many more transactions have been committed.
    pub async fn advance(&self, transactions: u64) {
        let target = self.committed() + transactions;
        while self.committed() < target {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets every writer end its transaction; returns how many were committed.
    pub async fn stop(mut self) -> u64 {
        // Fails only if all writers are gone, which is what is wanted.
        let _ = self.stop.send(true);
        while self.writers.join_next().await.is_some() {}
        self.committed()
    }
}

async fn write_until(
    source: Url,
    writer: u32,
    pause: Duration,
    stopping: watch::Receiver<bool>,
    committed: Arc<AtomicU64>,
) {
    let mut random = StdRng::seed_from_u64(u64::from(writer));
    let mut session: Option<Session> = None;
    let mut n = 0u64;
    while !*stopping.borrow() {
        match &session {
            None => session = source.connect().await.ok(),
            Some(open) => {
                n += 1;
                match open.run(&transaction(&mut random, writer, n)).await {
                    Ok(()) => {
                        committed.fetch_add(1, Ordering::Relaxed);
                    }
                    // The server is gone, or two writers met: begin afresh either way.
                    Err(_) => session = None,
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// One transaction of a few statements, always with a journal entry.
fn transaction(random: &mut StdRng, writer: u32, n: u64) -> String {
    let mut sql = format!(
        "BEGIN; INSERT INTO journal VALUES ({writer}, {n}, 'entry {}');",
        random.random::<u32>()
    );
    for _ in 0..random.random_range(1..5) {
        sql.push_str(&statement(random, writer, n));
    }
    // One in twenty leaves no trace.
    sql.push_str(if random.random_ratio(1, 20) {
        "ROLLBACK;"
    } else {
        "COMMIT;"
    });
    sql
}

fn statement(random: &mut StdRng, writer: u32, n: u64) -> String {
    // Writers keep to rows of their own, so that they never wait for each other.
    let own = u64::from(writer) * 1_000_000_000;
    let recent = own + n.saturating_sub(random.random_range(1..40));
    let slot = random.random_range(0..20) * 10 + writer;
    let sensor = 100 + writer;
    match random.random_range(0..13) {
        0..3 => format!(
            "INSERT INTO accounts VALUES ({}, 'new', {n}.5) ON CONFLICT DO NOTHING;",
            own + n
        ),
        3 | 4 => format!(
            "UPDATE accounts SET balance = balance + 1, seen = clock_timestamp() WHERE id = {recent};"
        ),
        5 => format!("DELETE FROM accounts WHERE id = {recent};"),
        // The key itself changes.
        6 => format!(
            "UPDATE accounts SET id = -id WHERE id = {recent} AND NOT EXISTS (SELECT FROM accounts WHERE id = -{recent});"
        ),
        7 => format!("UPDATE documents SET revision = revision + 1 WHERE id = {slot};"),
        8 => format!(
            "UPDATE documents SET body = repeat(md5('{writer}.{n}'), {}) WHERE id = {slot};",
            random.random_range(1..150)
        ),
        // The key changes and the TOASTed value does not.
        9 => format!(
            "UPDATE documents SET id = id + 1000000 WHERE id = {slot}; UPDATE documents SET id = id - 1000000 WHERE id = {slot} + 1000000;"
        ),
        // Duplicates on purpose.
        10 => format!(
            "INSERT INTO measurements SELECT {sensor}, {}, NULL FROM generate_series(1, 3);",
            n % 4
        ),
        11 => format!(
            "UPDATE measurements SET value = value + 0.1, note = 'changed' WHERE ctid = (SELECT min(ctid) FROM measurements WHERE sensor = {sensor});"
        ),
        _ => format!(
            "DELETE FROM measurements WHERE ctid = (SELECT max(ctid) FROM measurements WHERE sensor = {sensor});"
        ),
    }
}
