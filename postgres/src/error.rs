//! The one error type of this crate.

use crate::pgoutput::DecodeError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while talking to Postgres.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No session could be opened. `to` is `host:port/database`, never a password.
    #[error("cannot connect to {to} as {user}: {}", describe(source))]
    Connect {
        /// `host:port/database`.
        to: String,
        /// The role that tried to log in.
        user: String,
        /// What the driver said.
        #[source]
        source: tokio_postgres::Error,
    },

    /// A statement failed, or the session broke while it ran.
    #[error("{doing}: {}", describe(source))]
    Sql {
        /// What was being done, to what.
        doing: String,
        /// What the driver said.
        #[source]
        source: tokio_postgres::Error,
    },

    /// The replication session failed.
    #[error("{doing}: {message}")]
    Replication {
        /// What was being done, to what.
        doing: String,
        /// What the server or the transport said.
        message: String,
        /// The server's SQLSTATE, when the server said it.
        sqlstate: Option<String>,
        /// The connection was lost or could not be made: trying again may help.
        connection_lost: bool,
    },

    /// Nothing was heard within the time allowed.
    #[error("{doing}: no answer within {seconds} s")]
    Timeout {
        /// What was being done, to what.
        doing: String,
        /// The limit.
        seconds: u64,
    },

    /// A `pgoutput` message could not be read.
    #[error("cannot decode a pgoutput message: {0}")]
    Decode(#[from] DecodeError),

    /// TLS could not be set up: a bad certificate or no usable trust store.
    #[error("TLS: {0}")]
    Tls(String),

    /// What was asked for cannot be done; the text says why and what to do.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether the same call may succeed later with nothing changed by a person:
    /// a lost or refused connection, a server starting or stopping, a deadlock, a
    /// lock timeout, resources that ran out.
    pub fn is_transient(&self) -> bool {
        if let Some(code) = self.sqlstate() {
            let is_connecting = matches!(self, Error::Connect { .. });
            return is_transient_sqlstate(code) || (is_connecting && ails_the_server(code));
        }
        match self {
            Error::Connect { source, .. } | Error::Sql { source, .. } => lost_connection(source),
            Error::Replication {
                connection_lost, ..
            } => *connection_lost,
            Error::Timeout { .. } => true,
            Error::Decode(_) | Error::Tls(_) | Error::Invalid(_) => false,
        }
    }

    /// The server's five-character error code, when the server itself refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Connect { source, .. } | Error::Sql { source, .. } => {
                source.code().map(|state| state.code())
            }
            Error::Replication { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    /// For places where the statement says it all; prefer [`ResultExt::doing`].
    fn from(source: tokio_postgres::Error) -> Self {
        Error::Sql {
            doing: "running SQL".to_owned(),
            source,
        }
    }
}

/// Adds to a driver error what was being done.
pub trait ResultExt<T> {
    /// `doing` is a phrase such as `reading the columns of "public"."users"`.
    fn doing(self, doing: impl Into<String>) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T, tokio_postgres::Error> {
    fn doing(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Sql {
            doing: doing.into(),
            source,
        })
    }
}

/// A driver error as one line. The driver's own text for a server error is just
/// "db error"; this gives the message, code, detail and hint.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} ({})", db.message(), db.code().code());
        if let Some(detail) = db.detail() {
            text.push_str("; ");
            text.push_str(detail);
        }
        if let Some(hint) = db.hint() {
            text.push_str("; hint: ");
            text.push_str(hint);
        }
        return text;
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Codes from appendix A of the Postgres manual that go away by waiting.
pub(crate) fn is_transient_sqlstate(code: &str) -> bool {
    let class_passes = matches!(code.get(..2), Some("08" | "53"));
    class_passes
        || matches!(
            code,
            "40001" // serialization_failure
                | "40P01" // deadlock_detected
                | "55P03" // lock_not_available
                | "55006" // object_in_use: a slot whose former owner is still leaving
                | "57P01" // admin_shutdown
                | "57P02" // crash_shutdown
                | "57P03" // cannot_connect_now
                | "57P05" // idle_session_timeout
                | "58030" // io_error
                | "25P03" // idle_in_transaction_session_timeout
        )
}

/// Codes with which a server lets no session begin because it is ill itself: with a full disk a
/// backend that cannot write its cache of the catalog says XX000 ("could not write init file").
/// Or because the database is closed for a while, as for an upgrade: 55000 says that of
/// ALTER DATABASE … ALLOW_CONNECTIONS false (postinit.c).
fn ails_the_server(code: &str) -> bool {
    matches!(code.get(..2), Some("58" | "XX")) || code == "55000"
}

fn lost_connection(error: &tokio_postgres::Error) -> bool {
    if error.is_closed() {
        return true;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            // A certificate that does not verify arrives as an I/O error too, and
            // does not get better by itself.
            return io.kind() != std::io::ErrorKind::InvalidData;
        }
        cause = inner.source();
    }
    let text = error.to_string();
    text.starts_with("timeout waiting") || text.starts_with("error connecting")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_pass_by_waiting() {
        for code in [
            "08006", "40001", "40P01", "53100", "53300", "55P03", "55006", "57P01", "57P02",
            "57P03",
        ] {
            assert!(is_transient_sqlstate(code), "{code}");
        }
        for code in [
            "23505", "42P01", "28P01", "57014", "22P02", "58P01", "", "x",
        ] {
            assert!(!is_transient_sqlstate(code), "{code}");
        }
    }

    #[test]
    fn a_server_that_is_ill_lets_in_later_whom_it_lets_in_at_all() {
        for code in ["XX000", "58P01", "55000"] {
            assert!(
                ails_the_server(code) && !is_transient_sqlstate(code),
                "{code}"
            );
        }
        for code in ["28P01", "3D000", "42501", ""] {
            assert!(!ails_the_server(code), "{code}");
        }
    }

    #[test]
    fn an_error_says_what_it_knows() {
        let lost = Error::Replication {
            doing: "streaming slot \"s\"".to_owned(),
            message: "connection reset".to_owned(),
            sqlstate: None,
            connection_lost: true,
        };
        assert!(lost.is_transient());
        assert_eq!(lost.sqlstate(), None);
        assert_eq!(lost.to_string(), "streaming slot \"s\": connection reset");

        let refused = Error::Replication {
            doing: "streaming slot \"s\"".to_owned(),
            message: "slot is gone".to_owned(),
            sqlstate: Some("42704".to_owned()),
            connection_lost: false,
        };
        assert!(!refused.is_transient());
        assert_eq!(refused.sqlstate(), Some("42704"));
        assert!(!Error::Invalid("no".to_owned()).is_transient());
    }
}
