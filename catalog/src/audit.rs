//! Who changed users, peers and the key, and failed logins. What was asked of mirrors stands in their commands.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::{PgConnection, Row as _};

use crate::{Catalog, Error, Result};

/// Failed logins of one user within so many minutes are one entry: whoever guesses writes few.
const GUESSES_MINUTES: i32 = 10;
/// Whose name nobody has: what was given may be anything, a password too.
const UNKNOWN: &str = "(unknown)";

/// One deed.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AuditEntry {
    /// Rises with time.
    pub id: i64,
    /// Who did it.
    pub username: String,
    /// `create user`, `update peer`, `failed login`, ...
    pub action: String,
    /// The user or peer it was done to.
    pub subject: String,
    /// An object; never a secret.
    #[schemars(with = "Map<String, Value>")]
    pub details: Value,
    /// By the catalog's clock.
    pub created_at: DateTime<Utc>,
}

/// Records a deed inside the transaction that does it, and in the process's log.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    username: &str,
    action: &str,
    subject: &str,
    details: &Value,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO bunny.audit (username, action, subject, details) VALUES ($1, $2, $3, $4)",
    )
    .bind(username)
    .bind(action)
    .bind(subject)
    .bind(details)
    .execute(connection)
    .await
    .map_err(|error| Error::database("recording who did what", error))?;
    tracing::info!(target: "bunny::audit", username, action, subject, %details, "{username}: {action} {subject}");
    Ok(())
}

impl Catalog {
    /// Records that a login failed: an entry, or one more of the entry of a few minutes ago.
    pub async fn login_failed(&self, username: &str, address: &str) -> Result<()> {
        sqlx::query(
            "WITH meant AS (
                 SELECT coalesce((SELECT username FROM bunny.users WHERE username = $1), $2) AS subject),
             more AS (
                 UPDATE bunny.audit a
                 SET details = jsonb_build_object('times', (a.details ->> 'times')::bigint + 1, 'last_address', $3::text)
                 FROM meant WHERE a.id = (
                     SELECT max(id) FROM bunny.audit
                     WHERE action = 'failed login' AND subject = meant.subject
                       AND created_at > clock_timestamp() - make_interval(mins => $4))
                 RETURNING a.id)
             INSERT INTO bunny.audit (username, action, subject, details)
             SELECT $2, 'failed login', meant.subject, jsonb_build_object('times', 1, 'last_address', $3::text)
             FROM meant WHERE NOT EXISTS (SELECT FROM more)",
        )
        .bind(username)
        .bind(UNKNOWN)
        .bind(address)
        .bind(GUESSES_MINUTES)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("recording a failed login", error))
    }

    /// The newest entries after skipping `offset`, and how many there are in all.
    pub async fn list_audit(&self, limit: i64, offset: i64) -> Result<(Vec<AuditEntry>, i64)> {
        let failed = |error| Error::database("reading who did what", error);
        let rows = sqlx::query("SELECT * FROM bunny.audit ORDER BY id DESC LIMIT $1 OFFSET $2")
            .bind(limit)
            .bind(offset)
            .fetch_all(self.pool())
            .await
            .map_err(failed)?;
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM bunny.audit")
            .fetch_one(self.pool())
            .await
            .map_err(failed)?;
        let entries: Result<Vec<AuditEntry>> = rows
            .iter()
            .map(|row| {
                Ok(AuditEntry {
                    id: row.try_get("id").map_err(failed)?,
                    username: row.try_get("username").map_err(failed)?,
                    action: row.try_get("action").map_err(failed)?,
                    subject: row.try_get("subject").map_err(failed)?,
                    details: row.try_get("details").map_err(failed)?,
                    created_at: row.try_get("created_at").map_err(failed)?,
                })
            })
            .collect();
        Ok((entries?, total))
    }
}
