//! Leases: who should act for a mirror. Time is the catalog server's clock.
//!
//! A lease is advice. What keeps two workers from acting at once is fencing, at
//! Kafka for capture and in the destination for apply.

use std::fmt;
use std::time::Duration;

use sqlx::Row as _;
use uuid::Uuid;

use crate::{Catalog, Error, Result};

/// The two kinds of work for a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Source to log.
    Capture,
    /// Log to destination.
    Apply,
}

impl Role {
    /// `capture` or `apply`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Capture => "capture",
            Role::Apply => "apply",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A lease that was had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The mirror.
    pub mirror_id: Uuid,
    /// The kind of work.
    pub role: Role,
    /// The process that has it; unique to one run of one process.
    pub holder: String,
    /// Rises each time the lease changes hands.
    pub epoch: i64,
}

/// A lease that was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The mirror.
    pub mirror_id: Uuid,
    /// Rises each time the lease changes hands.
    pub epoch: i64,
    /// With what it was renewed before; None: it was not.
    pub former: Option<Uuid>,
}

impl Catalog {
    /// Takes a lease that is free or has run out.
    pub async fn acquire_lease(
        &self,
        mirror_id: Uuid,
        role: Role,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>> {
        self.acquire_lease_left_for(mirror_id, role, holder, ttl, Duration::ZERO)
            .await
    }

    /// Takes a lease that nobody has had, or wanted, for `left_for`.
    pub(crate) async fn acquire_lease_left_for(
        &self,
        mirror_id: Uuid,
        role: Role,
        holder: &str,
        ttl: Duration,
        left_for: Duration,
    ) -> Result<Option<Lease>> {
        let epoch: Option<i64> = sqlx::query_scalar(
            "INSERT INTO bunny.leases AS l (mirror_id, role, holder, epoch, expires_at, heartbeat_at)
             SELECT m.id, $2, $3, 1, clock_timestamp() + $4 * interval '1 second', clock_timestamp()
             FROM bunny.mirrors m
             WHERE m.id = $1 AND ($2 = 'apply' OR m.source_mirror IS NULL) AND m.created_at <= clock_timestamp() - $5 * interval '1 second'
             ON CONFLICT (mirror_id, role) DO UPDATE
             SET holder = excluded.holder, epoch = l.epoch + 1,
                 expires_at = clock_timestamp() + $4 * interval '1 second',
                 heartbeat_at = clock_timestamp(), renewal = NULL
             WHERE l.expires_at <= clock_timestamp() - $5 * interval '1 second'
             RETURNING epoch",
        )
        .bind(mirror_id)
        .bind(role.as_str())
        .bind(holder)
        .bind(ttl.as_secs_f64())
        .bind(left_for.as_secs_f64())
        .fetch_optional(self.pool())
        .await
        .map_err(|error| Error::database("taking a lease", error))?;
        Ok(epoch.map(|epoch| Lease {
            mirror_id,
            role,
            holder: holder.to_owned(),
            epoch,
        }))
    }

    /// The mirrors whose lease is free or has run out. One that another captures for has none of
    /// capture.
    pub(crate) async fn free_mirrors(&self, role: Role) -> Result<Vec<Uuid>> {
        sqlx::query_scalar(
            "SELECT m.id FROM bunny.mirrors m
             LEFT JOIN bunny.leases l ON l.mirror_id = m.id AND l.role = $1
             WHERE (l.mirror_id IS NULL OR l.expires_at <= clock_timestamp())
               AND ($1 = 'apply' OR m.source_mirror IS NULL)
             ORDER BY m.created_at, m.id",
        )
        .bind(role.as_str())
        .fetch_all(self.pool())
        .await
        .map_err(|error| Error::database("looking for free leases", error))
    }

    /// Says that a process shares in the work; returns how many do, it included.
    pub(crate) async fn worker_alive(
        &self,
        role: Role,
        holder: &str,
        ttl: Duration,
    ) -> Result<usize> {
        let failed = |error| Error::database("announcing a worker", error);
        sqlx::query(
            "INSERT INTO bunny.workers (holder, role, expires_at)
             VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')
             ON CONFLICT (role, holder) DO UPDATE SET expires_at = excluded.expires_at",
        )
        .bind(holder)
        .bind(role.as_str())
        .bind(ttl.as_secs_f64())
        .execute(self.pool())
        .await
        .map_err(failed)?;
        sqlx::query("DELETE FROM bunny.workers WHERE expires_at <= clock_timestamp()")
            .execute(self.pool())
            .await
            .map_err(failed)?;
        let alive: i64 = sqlx::query_scalar("SELECT count(*) FROM bunny.workers WHERE role = $1")
            .bind(role.as_str())
            .fetch_one(self.pool())
            .await
            .map_err(failed)?;
        Ok(usize::try_from(alive).unwrap_or(1).max(1))
    }

    /// Gives back every lease of a process that ends.
    pub(crate) async fn worker_gone(&self, role: Role, holder: &str) -> Result<()> {
        let failed = |error| Error::database("giving leases back", error);
        sqlx::query(
            "UPDATE bunny.leases SET expires_at = clock_timestamp(), holder = ''
             WHERE role = $1 AND holder = $2",
        )
        .bind(role.as_str())
        .bind(holder)
        .execute(self.pool())
        .await
        .map_err(failed)?;
        sqlx::query("DELETE FROM bunny.workers WHERE role = $1 AND holder = $2")
            .bind(role.as_str())
            .bind(holder)
            .execute(self.pool())
            .await
            .map_err(failed)?;
        // The next worker need not wait for its poll.
        sqlx::query("SELECT pg_notify('bunny_wake', '')")
            .execute(self.pool())
            .await
            .map(|_| ())
            .map_err(failed)
    }

    /// Renews a lease. `false`: another has it now, or the mirror is gone.
    pub async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<bool> {
        let renewed = self
            .renew_leases(lease.role, &lease.holder, ttl, Uuid::new_v4())
            .await?;
        let is_it = |renewed: &Renewed| {
            (renewed.mirror_id, renewed.epoch) == (lease.mirror_id, lease.epoch)
        };
        Ok(renewed.iter().any(is_it))
    }

    /// Renews every lease that a process has, and returns them. `renewal` is what the next
    /// renewal will find.
    pub async fn renew_leases(
        &self,
        role: Role,
        holder: &str,
        ttl: Duration,
        renewal: Uuid,
    ) -> Result<Vec<Renewed>> {
        let failed = |error| Error::database("renewing leases", error);
        let rows = sqlx::query(
            "WITH had AS (
                 SELECT mirror_id, renewal FROM bunny.leases
                 WHERE role = $1 AND holder = $2 FOR UPDATE)
             UPDATE bunny.leases l
             SET expires_at = clock_timestamp() + $3 * interval '1 second',
                 heartbeat_at = clock_timestamp(), renewal = $4
             FROM had WHERE l.mirror_id = had.mirror_id AND l.role = $1 AND l.holder = $2
             RETURNING l.mirror_id, l.epoch, had.renewal AS former",
        )
        .bind(role.as_str())
        .bind(holder)
        .bind(ttl.as_secs_f64())
        .bind(renewal)
        .fetch_all(self.pool())
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok(Renewed {
                    mirror_id: row.try_get("mirror_id").map_err(failed)?,
                    epoch: row.try_get("epoch").map_err(failed)?,
                    former: row.try_get("former").map_err(failed)?,
                })
            })
            .collect()
    }

    /// Raises a lease above an epoch that a session at the source was seen with, as long as it
    /// is this one: then that session is of a holder that this catalog, restored since, does not
    /// remember. `false`: another has the lease, and the session may be that holder's.
    pub async fn raise_lease_above(
        &self,
        mirror_id: Uuid,
        role: Role,
        epoch: i64,
        seen: i64,
    ) -> Result<bool> {
        let raised = sqlx::query(
            "UPDATE bunny.leases SET epoch = $4 + 1
             WHERE mirror_id = $1 AND role = $2 AND epoch = $3 AND expires_at > clock_timestamp()",
        )
        .bind(mirror_id)
        .bind(role.as_str())
        .bind(epoch)
        .bind(seen)
        .execute(self.pool())
        .await
        .map_err(|error| Error::database("raising a lease", error))?;
        Ok(raised.rows_affected() > 0)
    }

    /// Gives a lease back, so that another process need not wait for its end.
    pub async fn release_lease(&self, lease: &Lease) -> Result<()> {
        sqlx::query(
            "UPDATE bunny.leases SET expires_at = clock_timestamp(), holder = ''
             WHERE mirror_id = $1 AND role = $2 AND holder = $3 AND epoch = $4",
        )
        .bind(lease.mirror_id)
        .bind(lease.role.as_str())
        .bind(&lease.holder)
        .bind(lease.epoch)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("giving a lease back", error))
    }
}
