//! The log of a mirror: what its user should be able to read later.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::{Catalog, Error, Result};

/// How much an entry matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// For those who look for a cause.
    Debug,
    /// What happens.
    Info,
    /// What should be looked at.
    Warn,
    /// What went wrong.
    Error,
}

impl LogLevel {
    /// The text the catalog holds.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LogEntry {
    /// Rises with time.
    pub id: i64,
    /// `debug`, `info`, `warn` or `error`.
    #[schemars(with = "LogLevel")]
    pub level: String,
    /// A sentence.
    pub message: String,
    /// An object.
    #[schemars(with = "Map<String, Value>")]
    pub details: Value,
    /// By the catalog's clock.
    pub created_at: DateTime<Utc>,
}

/// Which entries are asked for, newest first.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// At most so many.
    pub limit: i64,
    /// After skipping so many.
    pub offset: i64,
    /// Only those whose message or details hold this text, in any case.
    pub search: Option<String>,
    /// Only those of this level.
    pub level: Option<LogLevel>,
}

/// Adds an entry inside the transaction of what it tells of.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    level: LogLevel,
    message: &str,
    details: Value,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO bunny.logs (mirror_id, level, message, details) VALUES ($1, $2, $3, $4)",
    )
    .bind(mirror_id)
    .bind(level.as_str())
    .bind(message)
    .bind(details)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("writing a mirror's log", error))
}

impl Catalog {
    /// Adds an entry. The oldest go in time ([`Catalog::sweep`]).
    pub async fn log(
        &self,
        mirror_id: Uuid,
        level: LogLevel,
        message: &str,
        details: Value,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO bunny.logs (mirror_id, level, message, details)
             SELECT m.id, $2, $3, $4 FROM bunny.mirrors m WHERE m.id = $1",
        )
        .bind(mirror_id)
        .bind(level.as_str())
        .bind(message)
        .bind(details)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("writing a mirror's log", error))
    }

    /// Entries that match, and how many match in all.
    pub async fn list_logs(
        &self,
        mirror_id: Uuid,
        query: &LogQuery,
    ) -> Result<(Vec<LogEntry>, i64)> {
        let failed = |error| Error::database("reading a mirror's log", error);
        let level = query.level.map(LogLevel::as_str);
        let rows = sqlx::query(
            "SELECT id, level, message, details, created_at FROM bunny.logs
             WHERE mirror_id = $1 AND ($2::text IS NULL OR level = $2)
               AND ($3::text IS NULL OR strpos(lower(message), lower($3)) > 0
                    OR strpos(lower(details::text), lower($3)) > 0)
             ORDER BY id DESC LIMIT $4 OFFSET $5",
        )
        .bind(mirror_id)
        .bind(level)
        .bind(&query.search)
        .bind(query.limit)
        .bind(query.offset)
        .fetch_all(self.pool())
        .await
        .map_err(failed)?;
        let total: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM bunny.logs
             WHERE mirror_id = $1 AND ($2::text IS NULL OR level = $2)
               AND ($3::text IS NULL OR strpos(lower(message), lower($3)) > 0
                    OR strpos(lower(details::text), lower($3)) > 0)",
        )
        .bind(mirror_id)
        .bind(level)
        .bind(&query.search)
        .fetch_one(self.pool())
        .await
        .map_err(failed)?;
        let entries: Result<Vec<LogEntry>> = rows.iter().map(entry_from).collect();
        Ok((entries?, total))
    }
}

fn entry_from(row: &PgRow) -> Result<LogEntry> {
    let read = |error| Error::database("reading a log entry", error);
    Ok(LogEntry {
        id: row.try_get("id").map_err(read)?,
        level: row.try_get("level").map_err(read)?,
        message: row.try_get("message").map_err(read)?,
        details: row.try_get("details").map_err(read)?,
        created_at: row.try_get("created_at").map_err(read)?,
    })
}
