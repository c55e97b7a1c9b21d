//! Which part of a round an error ends: one table, or all of it.

use crate::error::Error;

/// Why a table's sync did not finish although the round went on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The table is not what the snapshot saw: rewritten, truncated, dropped or altered
    /// since. Only a new consistent point helps.
    #[error("{0} since the snapshot was taken")]
    Rewritten(String),
    /// May pass by itself: a lost connection, a lock that others hold.
    #[error("{0}")]
    Transient(String),
    /// The same would happen again; a person has to act.
    #[error("{0}")]
    Refused(String),
}

/// An error on its way up from the work on one table.
#[derive(Debug)]
pub(super) enum Trouble {
    Table(Cause),
    Round(Error),
}

impl From<Cause> for Trouble {
    fn from(cause: Cause) -> Self {
        Self::Table(cause)
    }
}

/// Kafka, the publisher and the keeper serve all tables.
impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Round(error)
    }
}

impl From<bunny_schemas::Error> for Trouble {
    fn from(error: bunny_schemas::Error) -> Self {
        Self::Round(error.into())
    }
}

/// What a worker's session says concerns the table it works on.
impl From<bunny_postgres::Error> for Trouble {
    fn from(error: bunny_postgres::Error) -> Self {
        Self::Table(cause(&error))
    }
}

fn cause(error: &bunny_postgres::Error) -> Cause {
    match error.sqlstate() {
        // Undefined table, column, object or schema: the snapshot sees it, the server's
        // present catalog doesn't.
        Some("42P01" | "42703" | "42704" | "3F000") => {
            Cause::Rewritten(format!("its definition changed ({error})"))
        }
        _ if error.is_transient() => Cause::Transient(error.to_string()),
        _ => Cause::Refused(error.to_string()),
    }
}
