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

impl Catalog {
    /// Takes a lease that is free or has run out.
    pub async fn acquire_lease(
        &self,
        mirror_id: Uuid,
        role: Role,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>> {
        let epoch: Option<i64> = sqlx::query_scalar(
            "INSERT INTO bunny.leases AS l (mirror_id, role, holder, epoch, expires_at, heartbeat_at)
             SELECT m.id, $2, $3, 1, clock_timestamp() + $4 * interval '1 second', clock_timestamp()
             FROM bunny.mirrors m WHERE m.id = $1
             ON CONFLICT (mirror_id, role) DO UPDATE
             SET holder = excluded.holder, epoch = l.epoch + 1,
                 expires_at = clock_timestamp() + $4 * interval '1 second',
                 heartbeat_at = clock_timestamp()
             WHERE l.expires_at <= clock_timestamp()
             RETURNING epoch",
        )
        .bind(mirror_id)
        .bind(role.as_str())
        .bind(holder)
        .bind(ttl.as_secs_f64())
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

    /// Renews a lease. `false`: another has it now, or the mirror is gone.
    pub async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<bool> {
        let renewed = self.renew_leases(lease.role, &lease.holder, ttl).await?;
        Ok(renewed.contains(&(lease.mirror_id, lease.epoch)))
    }

    /// Renews every lease of a process; returns the (mirror, epoch) that it has.
    pub async fn renew_leases(
        &self,
        role: Role,
        holder: &str,
        ttl: Duration,
    ) -> Result<Vec<(Uuid, i64)>> {
        let failed = |error| Error::database("renewing leases", error);
        let rows = sqlx::query(
            "UPDATE bunny.leases
             SET expires_at = clock_timestamp() + $3 * interval '1 second',
                 heartbeat_at = clock_timestamp()
             WHERE role = $1 AND holder = $2
             RETURNING mirror_id, epoch",
        )
        .bind(role.as_str())
        .bind(holder)
        .bind(ttl.as_secs_f64())
        .fetch_all(self.pool())
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok((
                    row.try_get("mirror_id").map_err(failed)?,
                    row.try_get("epoch").map_err(failed)?,
                ))
            })
            .collect()
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
