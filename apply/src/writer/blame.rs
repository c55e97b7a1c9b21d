//! Whose error it is: one table's, which is set aside or parked, or everybody's.

use bunny_postgres::TableName;
use tokio_postgres::error::SqlState;

use crate::catch_up::LOCK_NOT_AVAILABLE;
use crate::error::Error;

/// The transaction that begins at `first_offset` is rolled back: what is the error's table
/// lacks its changes from there on.
pub(super) fn missing_from(first_offset: i64, error: Error) -> Error {
    match error {
        Error::Table {
            table,
            reason,
            restart_offset: None,
        } => Error::Table {
            table,
            reason,
            restart_offset: Some(first_offset),
        },
        Error::Locked { table, source, .. } => Error::Locked {
            table,
            restart_offset: Some(first_offset),
            source,
        },
        other => other,
    }
}

/// Somebody's lock on the table is the table's, too.
pub(super) fn of_lock(table: &TableName, error: Error) -> Error {
    if error.sqlstate() != Some(LOCK_NOT_AVAILABLE) || matches!(error, Error::Locked { .. }) {
        return error;
    }
    Error::Locked {
        table: table.clone(),
        restart_offset: None,
        source: Box::new(error),
    }
}

/// An error that trying again cannot cure is the table's.
pub(crate) fn of_table(table: &TableName, error: Error) -> Error {
    let error = of_lock(table, error);
    if error.is_transient() || matches!(error, Error::Table { .. }) {
        return error;
    }
    Error::Table {
        table: table.clone(),
        reason: format!("{error}{}", cure_of_label(&error)),
        restart_offset: None,
    }
}

/// A row of before a label was renamed finds it renamed already where another table of the
/// same type was ahead: the log holds the row under its former label for good.
fn cure_of_label(error: &Error) -> &'static str {
    let is_of_enum = |message: &str| message.contains(" enum ");
    match error.db_error() {
        Some(db)
            if *db.code() == SqlState::INVALID_TEXT_REPRESENTATION && is_of_enum(db.message()) =>
        {
            "; if the label was renamed since, sync the table again: trying again meets the same row"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_leaves_always_knows_from_where_on_it_lacks_changes() {
        let offset_of = |error: Error| match missing_from(7, error) {
            Error::Table { restart_offset, .. } | Error::Locked { restart_offset, .. } => {
                restart_offset
            }
            other => panic!("{other}"),
        };
        let refused = |restart_offset| Error::Table {
            table: TableName::new("public", "t"),
            reason: "refused".into(),
            restart_offset,
        };
        assert_eq!(offset_of(refused(None)), Some(7));
        assert_eq!(offset_of(refused(Some(5))), Some(5));
        let locked = Error::Locked {
            table: TableName::new("public", "t"),
            restart_offset: None,
            source: Box::new(Error::NotYet("a lock".into())),
        };
        assert_eq!(offset_of(locked), Some(7));
    }
}
