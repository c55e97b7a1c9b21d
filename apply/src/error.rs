//! The one error type of this crate.
//!
//! Every error of a mirror's run travels up to the supervisor by one path: the run
//! ends, its destination transaction rolls back, its connections drop. What happens
//! next is decided by [`Error::is_transient`] (start again from the progress row) and
//! by [`Error::Table`] (one table is set aside, the rest flows).

use bunny_catalog::Owner;
use bunny_postgres::TableName;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio_postgres::error::DbError;
use uuid::Uuid;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another worker raised the owner epoch in the destination; nothing of ours may
    /// be written any more (invariant I7).
    #[error(
        "another apply worker has taken over: the owner epoch at the destination is {found}, ours is {ours}"
    )]
    Fenced { ours: i64, found: i64 },

    #[error(transparent)]
    Postgres(#[from] bunny_postgres::Error),

    #[error(transparent)]
    Catalog(#[from] bunny_catalog::Error),

    #[error(transparent)]
    Schemas(#[from] bunny_schemas::Error),

    #[error("{doing}: {source}")]
    Kafka {
        doing: String,
        #[source]
        source: KafkaError,
    },

    /// What was read from the log, or found at the destination, cannot be right. The
    /// text says what was found, and what to do.
    #[error("{0}")]
    Inconsistent(String),

    /// The log does not go on from what has been applied: only another generation does.
    #[error("{0}")]
    History(String),

    /// Something is not there yet that another role provides; trying again helps.
    #[error("{0}")]
    NotYet(String),

    /// A setting or permission that someone has to change first.
    #[error("{0}")]
    Refused(String),

    /// The writes of one table failed for good: it is quarantined, not the mirror.
    #[error("table {table}: {reason}")]
    Table {
        table: TableName,
        reason: String,
        /// The change-topic offset from which the table's changes are missing.
        restart_offset: Option<i64>,
    },

    /// Somebody has kept the table locked for too long: it is parked, the others go on.
    #[error("table {table}: {source}")]
    Locked {
        table: TableName,
        /// The change-topic offset from which the table's changes are missing.
        restart_offset: Option<i64>,
        source: Box<Error>,
    },

    /// Enums at the destination lack labels that the next rows of `table` hold. They have to
    /// be added, and committed, before the batch is written; see `schema_change::labels`.
    #[error("table {table}: its enums have new labels, which are added first")]
    Labels {
        table: TableName,
        /// In order, each for a transaction of its own; running one again does no harm.
        statements: Vec<String>,
    },

    /// The rest of a large source transaction is not in the log yet.
    #[error(
        "the log holds only the beginning of a transaction (up to offset {end_offset}); waiting for its end"
    )]
    Unfinished { end_offset: i64 },

    /// The run was asked to stop.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    /// For `map_err` after a statement: says what was being done.
    pub fn sql(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Postgres(bunny_postgres::Error::Sql { doing, source })
    }

    /// For `map_err` after a Kafka call: says what was being done.
    pub fn kafka(doing: impl Into<String>) -> impl FnOnce(KafkaError) -> Error {
        let doing = doing.into();
        move |source| Error::Kafka { doing, source }
    }

    /// True when the same work may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Fenced { .. }
            | Error::Locked { .. }
            | Error::NotYet(_)
            | Error::Unfinished { .. }
            | Error::Labels { .. }
            | Error::Cancelled => true,
            Error::Postgres(error) => {
                error.is_transient() || error.sqlstate().is_some_and(passes_at_destination)
            }
            Error::Catalog(error) => error.is_transient(),
            Error::Schemas(error) => error.is_transient(),
            Error::Kafka { source, .. } => kafka_is_transient(source),
            Error::Inconsistent(_)
            | Error::History(_)
            | Error::Refused(_)
            | Error::Table { .. } => false,
        }
    }

    /// True when only another generation of the mirror goes on.
    pub(crate) fn loses_history(&self) -> bool {
        matches!(
            self,
            Error::History(_) | Error::Schemas(bunny_schemas::Error::IdLost(_))
        )
    }

    /// The SQLSTATE the destination answered with, if this error is such an answer.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Postgres(error) => error.sqlstate(),
            Error::Locked { source, .. } => source.sqlstate(),
            _ => None,
        }
    }

    /// The destination's answer in full: it names the table of a violated constraint.
    pub fn db_error(&self) -> Option<&DbError> {
        match self {
            Error::Postgres(bunny_postgres::Error::Sql { source, .. }) => source.as_db_error(),
            _ => None,
        }
    }
}

/// Answers that say nothing about the data, beyond those that pass everywhere: rolled
/// back or interrupted by someone else (classes 40 and 57), or the destination is a
/// standby right now (25006). PostgreSQL manual, appendix A.
fn passes_at_destination(code: &str) -> bool {
    matches!(code.get(..2), Some("40" | "57")) || code == "25006"
}

fn kafka_is_transient(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::InvalidArgument
        )
    )
}

/// What helps a mirror whose log does not go on from what is applied. `owner`: whose log it is, if
/// not its own. Pure.
pub(crate) fn way_out(owner: Option<&Owner>) -> String {
    match owner {
        None => "resync the mirror to start a new generation".to_owned(),
        Some(owner) => format!(
            "the log is that of mirror \"{}\": if that one is FAILED too, what helps it helps both; else delete this mirror and attach it again (docs/operations.md)",
            owner.name
        ),
    }
}

/// The owner row of a mirror is gone: it was deleted at the destination meanwhile.
pub(crate) fn owner_missing(mirror_id: Uuid) -> Error {
    Error::Inconsistent(format!(
        "the destination has no owner row for mirror {mirror_id} in _bunny.owner: it was removed while this worker ran"
    ))
}
