//! The server.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Session};

/// What matters about a server for replicating from or to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// `server_version_num`, for example 150010.
    pub version_num: i32,
    /// `server_version`, for example `15.10 (Debian 15.10-0+deb12u1)`.
    pub version: String,
    /// The cluster's identity, an unsigned 64-bit number as text: a restored copy
    /// shares it, another cluster does not.
    pub system_id: String,
    /// The timeline written now (or, in recovery, of the last checkpoint).
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
    /// `max_slot_wal_keep_size` as shown, `-1` for no limit.
    pub max_slot_wal_keep_size: String,
}

/// Asks the server about itself.
pub async fn server_info(_session: &Session) -> Result<ServerInfo> {
    Err(Error::Invalid("not written yet".to_owned()))
}
