//! What a peer is ready for, as a list of named checks. Pure.

use bunny_postgres::introspect::any_client_is_a_standby;
use bunny_postgres::quote_ident;
use schemars::JsonSchema;
use serde::Serialize;

use crate::mirror_validation::facts::PeerFacts;

/// One check by name, with its outcome, the reason and the cure.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PeerCheck")]
struct Check {
    name: &'static str,
    ok: bool,
    why: String,
    /// What to do, if it is not so.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

fn check(name: &'static str, ok: bool, why: impl Into<String>, fix: impl Into<String>) -> Check {
    Check {
        name,
        ok,
        why: why.into(),
        fix: (!ok).then(|| fix.into()),
    }
}

/// The answer to a test of a peer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PeerTest")]
#[serde(untagged)]
pub(crate) enum Tested {
    /// It was reached.
    Reached {
        #[schemars(extend("const" = true))]
        success: bool,
        /// Of the server.
        version: String,
        system_identifier: String,
        source: Side,
        destination: Side,
    },
    /// It was not.
    Failed {
        #[schemars(extend("const" = false))]
        success: bool,
        /// What is wrong and what to do.
        error: String,
    },
}

/// What a peer is ready for.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PeerReadiness")]
pub(crate) struct Side {
    ready: bool,
    checks: Vec<Check>,
}

impl Tested {
    pub(super) fn failed(error: &bunny_postgres::Error) -> Self {
        Self::Failed {
            success: false,
            error: error.to_string(),
        }
    }
}

/// The answer to a test of a peer that could be reached.
pub(super) fn describe(facts: &PeerFacts) -> Tested {
    let info = &facts.server.info;
    Tested::Reached {
        success: true,
        version: info.version.clone(),
        system_identifier: info.system_id.clone(),
        source: side(as_source(facts)),
        destination: side(as_destination(facts)),
    }
}

fn side(checks: Vec<Check>) -> Side {
    Side {
        ready: checks.iter().all(|check| check.ok),
        checks,
    }
}

fn as_source(facts: &PeerFacts) -> Vec<Check> {
    let server = &facts.server;
    let info = &server.info;
    let user = quote_ident(&server.user);
    let database = quote_ident(&server.database);
    let kept = &info.max_slot_wal_keep_size;
    vec![
        version(facts),
        check(
            "primary",
            !info.in_recovery,
            if info.in_recovery {
                "the server is a standby in recovery"
            } else {
                "the server is a primary"
            },
            "point the peer at the primary",
        ),
        check(
            "wal_level",
            info.wal_level == "logical",
            format!("wal_level is {}", info.wal_level),
            "run ALTER SYSTEM SET wal_level = 'logical' and restart the server",
        ),
        check(
            "encoding",
            info.server_encoding != "SQL_ASCII",
            format!("the database's encoding is {}", info.server_encoding),
            "move the data into a UTF8 database",
        ),
        check(
            "replication",
            info.can_replicate,
            may(info.can_replicate, "connect for replication"),
            format!("run ALTER ROLE {user} REPLICATION"),
        ),
        check(
            "replication_slots",
            info.slots_free >= 2,
            format!(
                "{} replication slots are free; a mirror needs one, and one more while it copies",
                info.slots_free
            ),
            "drop unused slots or raise max_replication_slots and restart the server",
        ),
        check(
            "wal_senders",
            info.senders_free >= 2,
            format!(
                "{} walsenders are free; a mirror needs one, and one more while it copies",
                info.senders_free
            ),
            "raise max_wal_senders and restart the server",
        ),
        check(
            "max_slot_wal_keep_size",
            true,
            if kept == "-1" {
                "no limit: a slot is never cut off, and WAL may fill the disk".to_owned()
            } else {
                format!(
                    "{kept}: a mirror whose capture is away for longer than that much WAL must be rebuilt"
                )
            },
            "",
        ),
        check(
            "synchronous_standby_names",
            !any_client_is_a_standby(&info.synchronous_standby_names),
            match info.synchronous_standby_names.as_str() {
                "" => "commits wait for no standby".to_owned(),
                names => format!("commits wait for standbys named as in '{names}'"),
            },
            "name the standbys in synchronous_standby_names instead of *, which makes BunnyDB one of them, and run SELECT pg_reload_conf()",
        ),
        check(
            "create",
            server.can_create_in_database,
            may(server.can_create_in_database, "create publications"),
            format!("run GRANT CREATE ON DATABASE {database} TO {user}"),
        ),
    ]
}

fn as_destination(facts: &PeerFacts) -> Vec<Check> {
    let server = &facts.server;
    let info = &server.info;
    let user = quote_ident(&server.user);
    let database = quote_ident(&server.database);
    vec![
        version(facts),
        check(
            "primary",
            !info.in_recovery,
            if info.in_recovery {
                "the server is a standby in recovery"
            } else {
                "the server can be written"
            },
            "point the peer at the primary",
        ),
        check(
            "create",
            facts.may_keep_books,
            may(
                facts.may_keep_books,
                "keep its progress in the schema _bunny",
            ),
            format!("run GRANT CREATE ON DATABASE {database} TO {user}"),
        ),
        check(
            "replica_role",
            facts.may_be_replica,
            may(
                facts.may_be_replica,
                "set session_replication_role, without which destination tables must have no foreign keys or triggers",
            ),
            format!(
                "run GRANT SET ON PARAMETER session_replication_role TO {user} (PostgreSQL 15 and newer)"
            ),
        ),
    ]
}

fn version(facts: &PeerFacts) -> Check {
    let info = &facts.server.info;
    check(
        "version",
        info.version_num >= 140_000,
        format!("the server is PostgreSQL {}", info.version),
        "upgrade to PostgreSQL 14 or newer",
    )
}

fn may(allowed: bool, what: &str) -> String {
    if allowed {
        format!("the user may {what}")
    } else {
        format!("the user may not {what}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::mirror_validation::testing;

    #[test]
    fn every_check_has_a_name_and_a_cure_when_it_fails() {
        let mut facts = testing::peer_facts();
        let fine = json!(describe(&facts));
        assert_eq!(fine["source"]["ready"], true, "{fine}");
        assert_eq!(fine["destination"]["ready"], true, "{fine}");

        facts.server.info.wal_level = "replica".to_owned();
        facts.may_be_replica = false;
        let body = json!(describe(&facts));
        assert_eq!(body["success"], true);
        assert_eq!(body["source"]["ready"], false);
        let checks = body["source"]["checks"].as_array().unwrap();
        let failed: Vec<&Value> = checks.iter().filter(|check| check["ok"] == false).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0]["name"], "wal_level");
        assert!(failed[0]["fix"].as_str().unwrap().contains("wal_level"));
        assert_eq!(body["destination"]["ready"], false);
    }
}
