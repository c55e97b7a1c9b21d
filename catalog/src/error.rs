//! The one error type of the catalog.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with control-plane state. `Display` is fit to be shown to
/// a user, except for [`Error::Internal`], whose text belongs in the log only.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The named thing does not exist.
    #[error("{what} \"{name}\" does not exist")]
    NotFound {
        /// The kind of thing, as `mirror` or `peer`.
        what: &'static str,
        /// The name or id that was asked for.
        name: String,
    },
    /// The request conflicts with what is there now.
    #[error("{message}")]
    Conflict {
        /// What conflicts, and what to do.
        message: String,
    },
    /// The thing cannot go because others rely on it.
    #[error("{what} \"{name}\" is used by {}", .users.join(", "))]
    InUse {
        /// The kind of thing, as `peer`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Who uses it, by name.
        users: Vec<String>,
    },
    /// The input is wrong and would be wrong again.
    #[error("{0}")]
    Invalid(String),
    /// The catalog database cannot be reached, or refuses for now.
    #[error("the catalog is not available: {0}")]
    Unavailable(String),
    /// Something that should not happen: SQL that fails, data that cannot be
    /// read back. Not for users.
    #[error("catalog: {doing}: {cause}")]
    Internal {
        /// What was being done.
        doing: String,
        /// The underlying cause.
        cause: String,
    },
}

impl Error {
    /// Whether trying the same again later may succeed without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }

    pub(crate) fn not_found(what: &'static str, name: impl ToString) -> Error {
        Error::NotFound {
            what,
            name: name.to_string(),
        }
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Error {
        Error::Conflict {
            message: message.into(),
        }
    }

    pub(crate) fn internal(doing: impl Into<String>, cause: impl ToString) -> Error {
        Error::Internal {
            doing: doing.into(),
            cause: cause.to_string(),
        }
    }

    /// Sorts a database error by what the caller can do about it.
    pub(crate) fn database(doing: &str, error: sqlx::Error) -> Error {
        if let sqlx::Error::Database(database) = &error
            && is_refusal(database.code().as_deref().unwrap_or_default())
        {
            return Error::Invalid(format!(
                "the catalog database refuses the connection: {}",
                database.message()
            ));
        }
        if matches!(error, sqlx::Error::PoolTimedOut) {
            return Error::Unavailable(format!("{doing}: no connection to its database in time"));
        }
        if is_away(&error) {
            return Error::Unavailable(format!("{doing}: {error}"));
        }
        Error::internal(doing, error)
    }
}

/// Wrong user, password or database: another setting is needed, not time.
fn is_refusal(code: &str) -> bool {
    code.starts_with("28") || code == "3D000"
}

/// Whether the database is away (or starting, stopping, full), rather than the
/// statement wrong. Classes by
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            let code = code.as_ref();
            // Connection trouble, no resources, operator intervention,
            // serialization failure and deadlock, lock timeout; and a schema
            // that is not there yet, because `migrate` has still to run.
            ["08", "53", "57", "40"]
                .iter()
                .any(|class| code.starts_with(class))
                || ["55P03", "3F000", "42P01"].contains(&code)
        }),
        _ => false,
    }
}
