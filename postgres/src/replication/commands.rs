//! The text of replication commands and of their answers. No I/O.

use std::str::FromStr;

use pgwire_replication::{PgWireError, QueryRow};

use crate::{Error, Lsn, Result, quote_ident};

/// PostgreSQL manual, appendix A.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// What becomes of the snapshot of a new slot's consistent point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Snapshot {
    /// Not needed; the slot is permanent.
    Nothing,
    /// Exported; the slot is temporary.
    Export,
}

/// `CREATE_REPLICATION_SLOT` for `pgoutput`. The parenthesised options came with 15.
pub(super) fn create_slot(name: &str, server_version_num: i32, snapshot: Snapshot) -> String {
    let name = quote_ident(name);
    let parenthesised = server_version_num >= 150_000;
    let (lifetime, option) = match (snapshot, parenthesised) {
        (Snapshot::Nothing, true) => ("", "(SNAPSHOT 'nothing')"),
        (Snapshot::Nothing, false) => ("", "NOEXPORT_SNAPSHOT"),
        (Snapshot::Export, true) => ("TEMPORARY ", "(SNAPSHOT 'export')"),
        (Snapshot::Export, false) => ("TEMPORARY ", "EXPORT_SNAPSHOT"),
    };
    format!("CREATE_REPLICATION_SLOT {name} {lifetime}LOGICAL pgoutput {option}")
}

/// `DROP_REPLICATION_SLOT`; not waiting for a slot that is in use.
pub(super) fn drop_slot(name: &str) -> String {
    format!("DROP_REPLICATION_SLOT {}", quote_ident(name))
}

/// `START_REPLICATION` with protocol version 1: transactions come whole, after their commit.
pub(super) fn start_replication(slot: &str, publications: &[String], start_lsn: Lsn) -> String {
    let quoted: Vec<String> = publications.iter().map(|name| quote_ident(name)).collect();
    // The grammar of these commands knows no escapes but the doubled quote.
    let names = quoted.join(",").replace('\'', "''");
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start_lsn} (proto_version '1', publication_names '{names}')",
        quote_ident(slot),
    )
}

/// The value in `column` of the only row.
pub(super) fn cell<T: FromStr>(rows: &[QueryRow], column: usize, doing: &str) -> Result<T> {
    let [row] = rows else {
        return Err(unexpected(
            doing,
            format!("{} rows instead of one", rows.len()),
        ));
    };
    row.get(column)
        .and_then(Option::as_ref)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| unexpected(doing, format!("column {column} is not what it should be")))
}

/// A timeline history file: per line the timeline left, the position at which it was
/// left, and a reason, separated by blanks; `#` starts a comment.
pub(super) fn parse_timeline_history(content: &[u8], doing: &str) -> Result<Vec<(u32, Lsn)>> {
    let text = String::from_utf8_lossy(content);
    let mut switches = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split_ascii_whitespace();
        let timeline = fields.next().and_then(|field| field.parse::<u32>().ok());
        let lsn = fields.next().and_then(|field| field.parse::<Lsn>().ok());
        let (Some(timeline), Some(lsn)) = (timeline, lsn) else {
            return Err(unexpected(doing, format!("the line {line:?}")));
        };
        switches.push((timeline, lsn));
    }
    Ok(switches)
}

fn unexpected(doing: &str, found: String) -> Error {
    Error::Replication {
        doing: doing.to_owned(),
        message: format!("the server's answer is unexpected: {found}"),
        sqlstate: None,
        connection_lost: false,
    }
}

/// An error of the wire client as one of ours.
pub(super) fn error(doing: &str, error: PgWireError) -> Error {
    let (message, sqlstate, connection_lost) = match error {
        PgWireError::Server(text) => {
            let (message, sqlstate) = split_sqlstate(text);
            (message, sqlstate, false)
        }
        PgWireError::Io(io) => (io.to_string(), None, true),
        // Its worker ended before it could say why.
        other @ (PgWireError::Task(_) | PgWireError::Internal(_)) => {
            (other.to_string(), None, true)
        }
        other => (other.to_string(), None, false),
    };
    Error::Replication {
        doing: doing.to_owned(),
        message,
        sqlstate,
        connection_lost,
    }
}

/// Says what gives the right for want of which a login was refused. A server lets roles with the
/// attribute REPLICATION open such a session, whatever else they may (InitPostgres, postinit.c).
pub(super) fn with_cure(mut error: Error, user: &str) -> Error {
    if let Error::Replication {
        message,
        sqlstate: Some(code),
        ..
    } = &mut error
        && code == INSUFFICIENT_PRIVILEGE
    {
        let user = quote_ident(user);
        *message = format!(
            "{message}; run ALTER ROLE {user} REPLICATION there as a superuser, it is tried again by itself"
        );
    }
    error
}

/// The wire client writes a server's error as `text (SQLSTATE code)`.
fn split_sqlstate(text: String) -> (String, Option<String>) {
    let parts = text
        .strip_suffix(')')
        .and_then(|open| open.rsplit_once(" (SQLSTATE "));
    match parts {
        Some((message, code)) if code.len() == 5 => {
            (format!("{message} ({code})"), Some(code.to_owned()))
        }
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn slots_are_created_in_the_servers_own_syntax() {
        assert_eq!(
            create_slot("s", 140_019, Snapshot::Nothing),
            "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput NOEXPORT_SNAPSHOT"
        );
        assert_eq!(
            create_slot("s", 150_000, Snapshot::Nothing),
            "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing')"
        );
        assert_eq!(
            create_slot("s", 140_019, Snapshot::Export),
            "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
        );
        assert_eq!(
            create_slot("a\"b", 180_000, Snapshot::Export),
            "CREATE_REPLICATION_SLOT \"a\"\"b\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')"
        );
        assert_eq!(drop_slot("s"), "DROP_REPLICATION_SLOT \"s\"");
        let publications = ["p".to_owned(), r"o'brien\".to_owned()];
        assert_eq!(
            start_replication("s", &publications, Lsn(0x1_0000_000A)),
            r#"START_REPLICATION SLOT "s" LOGICAL 1/A (proto_version '1', publication_names '"p","o''brien\"')"#
        );
    }

    #[test]
    fn one_row_is_read_by_column() {
        let row: QueryRow = vec![
            Some(Bytes::from_static(b"slot")),
            Some(Bytes::from_static(b"0/16B3748")),
            None,
        ];
        let rows = [row.clone()];
        assert_eq!(cell::<Lsn>(&rows, 1, "testing").unwrap(), Lsn(0x16B_3748));
        assert_eq!(cell::<String>(&rows, 0, "testing").unwrap(), "slot");
        assert!(cell::<String>(&rows, 2, "testing").is_err());
        assert!(cell::<String>(&rows, 3, "testing").is_err());
        assert!(cell::<i32>(&rows, 0, "testing").is_err());
        assert!(cell::<String>(&[], 0, "testing").is_err());
        assert!(cell::<String>(&[row.clone(), row], 0, "testing").is_err());
    }

    #[test]
    fn timeline_histories_are_read() {
        let content = b"1\t0/3000158\tno recovery target specified\n\n# note\n2\t1/A\tx y\n";
        assert_eq!(
            parse_timeline_history(content, "testing").unwrap(),
            vec![(1, Lsn(0x300_0158)), (2, Lsn(0x1_0000_000A))]
        );
        assert_eq!(parse_timeline_history(b"", "testing").unwrap(), vec![]);
        assert!(parse_timeline_history(b"one 0/1", "testing").is_err());
        assert!(parse_timeline_history(b"1", "testing").is_err());
    }

    #[test]
    fn errors_keep_the_servers_code() {
        let refused = error(
            "streaming",
            PgWireError::Server("slot \"s\" is active (SQLSTATE 55006)".to_owned()),
        );
        assert_eq!(refused.sqlstate(), Some("55006"));
        assert!(refused.is_transient());
        assert_eq!(
            refused.to_string(),
            "streaming: slot \"s\" is active (55006)"
        );

        let lost = error(
            "streaming",
            PgWireError::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
        );
        assert!(lost.is_transient());
        assert_eq!(lost.sqlstate(), None);

        let denied = "permission denied to start WAL sender (SQLSTATE 42501)";
        let denied = error("opening", PgWireError::Server(denied.to_owned()));
        let denied = with_cure(denied, "of \"mirrors\"");
        assert_eq!(denied.sqlstate(), Some("42501"));
        assert_eq!(
            denied.to_string(),
            "opening: permission denied to start WAL sender (42501); run ALTER ROLE \"of \"\"mirrors\"\"\" \
             REPLICATION there as a superuser, it is tried again by itself"
        );
        let refused = with_cure(refused, "mirrors");
        assert!(!refused.to_string().contains("ALTER ROLE"), "{refused}");

        let malformed = error("streaming", PgWireError::Protocol("bad".to_owned()));
        assert!(!malformed.is_transient());
    }
}
