//! What can go wrong while capturing, and whether trying again can help.

use crate::slot::{Refusal, SequenceError};

pub type Result<T> = std::result::Result<T, Error>;

/// Every error ends the run of its mirror; the next run begins at the top (see
/// docs/invariants.md). Only [`Error::is_fatal`] ones wait for an operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("source: {0}")]
    Source(#[from] bunny_postgres::Error),
    #[error("source, {doing}: {error}")]
    Query {
        doing: &'static str,
        error: tokio_postgres::Error,
    },
    #[error("event contract: {0}")]
    Schemas(bunny_schemas::Error),
    #[error("{0}; capture tries again until it answers, and the source keeps WAL meanwhile")]
    RegistryAway(bunny_schemas::Error),
    #[error("{0}; until then capture stands still and the source keeps WAL")]
    RegistryRefused(bunny_schemas::Error),
    #[error("catalog: {0}")]
    Catalog(#[from] bunny_catalog::Error),
    #[error("Kafka, {doing}: {error}")]
    Kafka {
        doing: &'static str,
        error: rdkafka::error::KafkaError,
    },
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("replication stream: {0}")]
    Sequence(#[from] SequenceError),
    #[error("another capture has taken this mirror over")]
    Superseded,
    #[error("{0}")]
    Fatal(String),
    #[error("{0}")]
    Transient(String),
}

impl Error {
    /// An error that no retry can mend; `message` says cause and way out.
    pub(crate) fn fatal(message: impl Into<String>) -> Self {
        Self::Fatal(message.into())
    }

    pub(crate) fn transient(message: impl Into<String>) -> Self {
        Self::Transient(message.into())
    }

    /// True when the mirror must wait for an operator: going on could lose changes, or the
    /// same would happen again.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::RegistryRefused(_) | Self::Fatal(_)
        )
    }

    /// True when another capture of the mirror has taken over.
    pub fn is_fenced(&self) -> bool {
        use rdkafka::types::RDKafkaErrorCode as Code;
        let superseded = matches!(self, Self::Superseded);
        superseded
            || matches!(
                self,
                Self::Kafka { error, .. } if matches!(
                    error.rdkafka_error_code(),
                    Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
                )
            )
    }

    /// True when a statement did not get its lock in time.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        /// `lock_not_available` (PostgreSQL manual, appendix A).
        const LOCK_NOT_AVAILABLE: &str = "55P03";
        matches!(self, Self::Source(error) if error.sqlstate() == Some(LOCK_NOT_AVAILABLE))
    }

    /// True when the source's user lacks a right.
    pub(crate) fn is_denied(&self) -> bool {
        /// `insufficient_privilege`.
        const INSUFFICIENT_PRIVILEGE: &str = "42501";
        matches!(self, Self::Source(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE))
    }

    /// True when the same attempt may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        !self.is_fatal()
    }
}

impl From<bunny_schemas::Error> for Error {
    fn from(error: bunny_schemas::Error) -> Self {
        use bunny_schemas::Error as Schemas;
        match error {
            Schemas::RegistryAway { .. } => Self::RegistryAway(error),
            Schemas::RegistryRefused { .. } | Schemas::IdsClash(_) => Self::RegistryRefused(error),
            Schemas::IdLost(why) => Self::Refused(Refusal::IdLost(why)),
            error => Self::Schemas(error),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Query {
            doing: "query",
            error,
        }
    }
}
