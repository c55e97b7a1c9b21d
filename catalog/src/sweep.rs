//! What the catalog forgets: old entries of logs, ended commands that nobody asks for any more, and
//! who did what long ago.
//!
//! Every process sweeps, one at a time. Nothing that is written waits for it, and it only removes
//! what nobody reads (docs/adr/0061), so that it may end anywhere.

use std::convert::Infallible;
use std::time::Duration;

use crate::adopt::ADOPT;
use crate::checkpoints::CHECKPOINT;
use crate::replay::REPLAY;
use crate::tables::{RESYNC, TABLES};
use crate::{Catalog, Error, Result};

/// Log entries kept of a mirror.
const LOGS_MAX: i64 = 10_000;
/// Ended commands kept of a mirror, and beyond them what is needed.
const COMMANDS_MAX: i64 = 1_000;
/// Ended commands kept of all mirrors that are gone.
const COMMANDS_OF_GONE_MAX: i64 = 10_000;
/// For so many days a destination may be restored that remembers a command which decided what is
/// copied; longer where topics reach back further.
const WISH_DAYS: i32 = 90;
/// How long entries of who did what stay unless it is set otherwise.
pub const AUDIT_DAYS: u32 = 400;
/// Rows removed at once: a statement ends in time however much has piled up.
const ROWS_AT_ONCE: i64 = 20_000;
const EVERY: Duration = Duration::from_secs(60);
/// After so many failures in a row it is said.
const FAILURES_SAID: u32 = 3;
/// Whoever holds it sweeps. Any number will do that nobody else uses.
const SWEEP_LOCK: i64 = 0x6275_6e6e_7973_7765;

/// Entries beyond the newest of each mirror.
const LOGS: &str = "
    DELETE FROM bunny.logs WHERE id IN (
        SELECT l.id FROM bunny.mirrors m
        CROSS JOIN LATERAL (
            SELECT id FROM bunny.logs WHERE mirror_id = m.id ORDER BY id DESC OFFSET $2) l
        LIMIT $1)";

/// Ended commands beyond the newest of each mirror, but for what somebody may still ask for:
/// * the newest of each kind, and how the mirror was made;
/// * what decided what is copied, while a topic or a backup of the destination may name it, or a
///   mapping does;
/// * which tables were ever taken out, of each table the last time.
const COMMANDS: &str = "
    WITH many AS (
        SELECT c.mirror_id FROM bunny.commands c JOIN bunny.mirrors m ON m.id = c.mirror_id
        GROUP BY c.mirror_id HAVING count(*) > $2),
    ranked AS (
        SELECT c.id, c.mirror_id, c.kind, c.state, c.created_at, c.finished_at,
               row_number() OVER (PARTITION BY c.mirror_id ORDER BY c.created_at DESC, c.id) AS nth,
               row_number() OVER (PARTITION BY c.mirror_id, c.kind ORDER BY c.created_at DESC, c.id) AS nth_of_kind
        FROM bunny.commands c JOIN many USING (mirror_id)),
    named AS (
        SELECT unnest(ARRAY[request_id, since_request, checkpoint_id, (replay ->> 'request_id')::uuid, (replay ->> 'sync')::uuid]) AS id
        FROM bunny.mirror_tables),
    taken_out AS (
        SELECT DISTINCT ON (r.mirror_id, removed.name) r.id
        FROM ranked r JOIN bunny.commands c ON c.id = r.id, jsonb_array_elements_text(c.args -> 'removed') AS removed (name)
        WHERE r.kind = 'tables'
        ORDER BY r.mirror_id, removed.name, r.created_at DESC, r.id),
    reach AS (
        SELECT greatest(make_interval(days => $3),
            make_interval(hours => 2 * max((config ->> 'topic_retention_hours')::int))) AS back
        FROM bunny.mirrors)
    DELETE FROM bunny.commands WHERE id IN (
        SELECT r.id FROM ranked r, reach
        WHERE r.nth > $2 AND r.nth_of_kind > 1 AND r.kind <> 'create'
          AND r.state IN ('done', 'failed')
          AND NOT (r.kind = ANY ($4) AND (
              r.finished_at > clock_timestamp() - reach.back
              OR EXISTS (
                  SELECT FROM bunny.commands c, jsonb_array_elements(coalesce(c.args -> 'awaited', '[]')) AS awaited (sync)
                  JOIN named ON named.id = (awaited.sync ->> 'request_id')::uuid
                  WHERE c.id = r.id)))
          AND r.id NOT IN (SELECT id FROM taken_out)
        LIMIT $1)";

const COMMANDS_OF_GONE: &str = "
    DELETE FROM bunny.commands WHERE id IN (
        SELECT c.id FROM bunny.commands c
        WHERE NOT EXISTS (SELECT FROM bunny.mirrors m WHERE m.id = c.mirror_id)
          AND c.state IN ('done', 'failed')
        ORDER BY c.created_at DESC, c.id OFFSET $2 LIMIT $1)";

const AUDIT: &str = "
    DELETE FROM bunny.audit WHERE id IN (
        SELECT id FROM bunny.audit
        WHERE created_at < clock_timestamp() - make_interval(days => $2) LIMIT $1)";

/// How many rows were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Of the mirrors' logs.
    pub logs: u64,
    /// Commands.
    pub commands: u64,
    /// Of who did what.
    pub audit: u64,
}

/// What is swept by itself, in a transaction of its own.
#[derive(Debug, Clone, Copy)]
enum Heap {
    Logs,
    Commands,
    CommandsOfGone,
    Audit,
}

impl Catalog {
    /// Removes what is kept no longer; nothing while another process does so.
    ///
    /// # Errors
    /// The first one. What it is about is left, the rest is swept.
    pub async fn sweep(&self, audit_days: u32) -> Result<Swept> {
        let of_living = self.sweep_all(Heap::Commands, audit_days).await;
        let of_gone = self.sweep_all(Heap::CommandsOfGone, audit_days).await;
        let logs = self.sweep_all(Heap::Logs, audit_days).await;
        let audit = self.sweep_all(Heap::Audit, audit_days).await;
        Ok(Swept {
            commands: of_living? + of_gone?,
            logs: logs?,
            audit: audit?,
        })
    }

    /// Sweeps now and from time to time. A catalog that is away is swept later.
    pub async fn sweep_forever(&self, audit_days: u32) -> Infallible {
        let mut failures = 0_u32;
        loop {
            match self.sweep(audit_days).await {
                Ok(swept) => {
                    failures = 0;
                    tracing::debug!(?swept, "the catalog was swept");
                }
                Err(error) => {
                    failures += 1;
                    if failures >= FAILURES_SAID {
                        tracing::warn!(%error, failures, "old entries of the catalog cannot be removed, it grows");
                    } else {
                        tracing::debug!(%error, "the catalog could not be swept");
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn sweep_all(&self, heap: Heap, audit_days: u32) -> Result<u64> {
        let mut removed = 0;
        loop {
            match self.sweep_some(heap, audit_days).await? {
                0 => return Ok(removed),
                some => removed += some,
            }
        }
    }

    async fn sweep_some(&self, heap: Heap, audit_days: u32) -> Result<u64> {
        let failed = |error| Error::database("removing old entries", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(SWEEP_LOCK)
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
        if !ours {
            return Ok(0);
        }
        let removal = |sql| sqlx::query(sql).bind(ROWS_AT_ONCE);
        let removal = match heap {
            Heap::Logs => removal(LOGS).bind(LOGS_MAX),
            Heap::Commands => removal(COMMANDS)
                .bind(COMMANDS_MAX)
                .bind(WISH_DAYS)
                .bind(&[ADOPT, TABLES, RESYNC, REPLAY, CHECKPOINT][..]),
            Heap::CommandsOfGone => removal(COMMANDS_OF_GONE).bind(COMMANDS_OF_GONE_MAX),
            Heap::Audit => removal(AUDIT).bind(i32::try_from(audit_days).unwrap_or(i32::MAX)),
        };
        let done = removal.execute(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(done.rows_affected())
    }
}
