//! The server as a whole.

use serde::{Deserialize, Serialize};

use crate::{Result, ResultExt, Session};

/// What matters about a server for replicating from or to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// `server_version_num`, for example 150010.
    pub version_num: i32,
    /// `server_version`, for example `15.10 (Debian 15.10-0+deb12u1)`.
    pub version: String,
    /// The cluster's identity, an unsigned 64-bit number as text, as IDENTIFY_SYSTEM
    /// gives it. A physical copy shares it; any other cluster has its own.
    pub system_id: String,
    /// The timeline written now; in recovery, that of the last checkpoint.
    pub timeline: u32,
    /// Encoding of the connected database, for example `UTF8` or `SQL_ASCII`.
    pub server_encoding: String,
    /// `wal_level`; capture needs `logical`.
    pub wal_level: String,
    /// It is a standby.
    pub in_recovery: bool,
    /// The session's role is a superuser.
    pub is_superuser: bool,
    /// The session's role may open replication sessions.
    pub can_replicate: bool,
    /// `max_replication_slots` less the slots that exist.
    pub slots_free: i64,
    /// `max_wal_senders` less the senders that run.
    pub senders_free: i64,
    /// `max_slot_wal_keep_size` as the server shows it; `-1` is no limit.
    pub max_slot_wal_keep_size: String,
    /// `synchronous_standby_names`: empty where commits wait for no standby.
    pub synchronous_standby_names: String,
}

/// Whether commits may wait for anyone who streams, a walsender of ours too: `*` stands among the
/// names (`SyncRepGetStandbyPriority` in the server's `syncrep.c` makes no difference between a
/// standby and logical decoding). Capture confirms what it has published, and what it publishes may
/// have to be visible first: with capture for a standby, neither would ever come.
pub fn any_client_is_a_standby(synchronous_standby_names: &str) -> bool {
    let mut names = synchronous_standby_names
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | '(' | ')'));
    names.any(|name| name.trim_matches('"') == "*")
}

/// The same, as a sentence about a source with its cure; None where commits wait for no one of ours.
pub fn refuse_as_a_standby(synchronous_standby_names: &str) -> Option<String> {
    any_client_is_a_standby(synchronous_standby_names).then(|| {
        format!(
            "the source has synchronous_standby_names = '{synchronous_standby_names}', which makes BunnyDB a standby that its commits wait for; name the standbys there instead of * and run SELECT pg_reload_conf()"
        )
    })
}

const SERVER_INFO: &str = "
    SELECT current_setting('server_version_num')::int4 AS version_num,
           current_setting('server_version') AS version,
           (SELECT system_identifier FROM pg_control_system()) AS system_id,
           CASE WHEN pg_is_in_recovery()
                THEN (SELECT timeline_id::int8 FROM pg_control_checkpoint())
                ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8
           END AS timeline,
           current_setting('server_encoding') AS server_encoding,
           current_setting('wal_level') AS wal_level,
           pg_is_in_recovery() AS in_recovery,
           me.rolsuper AS is_superuser,
           me.rolsuper OR me.rolreplication OR EXISTS (
               -- Amazon RDS grants replication by membership.
               SELECT FROM pg_roles granted
               WHERE granted.rolname = 'rds_replication'
                 AND pg_has_role(granted.oid, 'MEMBER')
           ) AS can_replicate,
           current_setting('max_replication_slots')::int8
               - (SELECT count(*) FROM pg_replication_slots) AS slots_free,
           current_setting('max_wal_senders')::int8
               - (SELECT count(*) FROM pg_stat_replication) AS senders_free,
           current_setting('max_slot_wal_keep_size') AS max_slot_wal_keep_size,
           current_setting('synchronous_standby_names') AS synchronous_standby_names
    FROM pg_roles me
    WHERE me.rolname = current_user";

/// Asks the server about itself.
pub async fn server_info(session: &Session) -> Result<ServerInfo> {
    let row = session
        .query_one(SERVER_INFO, &[])
        .await
        .doing("asking the server about itself")?;
    // SQL has no unsigned type: the catalog function shows the same 64 bits signed.
    let system_id = row.get::<_, i64>("system_id").cast_unsigned().to_string();
    let timeline = row.get::<_, i64>("timeline");
    Ok(ServerInfo {
        version_num: row.get("version_num"),
        version: row.get("version"),
        system_id,
        timeline: u32::try_from(timeline).unwrap_or_default(),
        server_encoding: row.get("server_encoding"),
        wal_level: row.get("wal_level"),
        in_recovery: row.get("in_recovery"),
        is_superuser: row.get("is_superuser"),
        can_replicate: row.get("can_replicate"),
        slots_free: row.get("slots_free"),
        senders_free: row.get("senders_free"),
        max_slot_wal_keep_size: row.get("max_slot_wal_keep_size"),
        synchronous_standby_names: row.get("synchronous_standby_names"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_among_the_standbys_is_everyone() {
        for everyone in ["*", "FIRST 1 (*)", "ANY 2 (s1, *)", "s1,\"*\"", "2 ( * )"] {
            assert!(any_client_is_a_standby(everyone), "{everyone}");
        }
        for names in ["", "s1", "ANY 1 (s1, s2)", "\"s*\"", "FIRST 1 (\"a b\")"] {
            assert!(!any_client_is_a_standby(names), "{names}");
        }
    }
}
