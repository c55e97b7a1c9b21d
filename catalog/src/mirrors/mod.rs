//! Mirrors: what a user asked for. Everything that is known about how far a
//! mirror has come lives elsewhere (source, Kafka, destination).

mod change;
mod checks;
mod config;
mod fan_out;
mod naming;
mod removal;
mod store;

use bunny_postgres::TableName;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::leases::Role;
use crate::replay::Replay;

pub use change::MirrorChange;
pub(crate) use checks::{check_destinations_free, check_tables};
pub use config::{
    ApplyMode, MirrorConfig, OnExistingRows, OnTableError, ResyncStrategy, SchemaChanges,
    TableTopics, UntrackedChanges,
};
pub use fan_out::{Attach, AttachedTable, Granted, InitialCopy, Owner};
pub(crate) use fan_out::{ask_capture, nothing_trimmed, refuse_attached, share_request};
pub use naming::{NAME_LENGTH_MAX, check_name, slugs};
pub(crate) use removal::is_removed;
pub use store::TableInUse;
pub(crate) use store::{lock_creation, notify, raise_version, replace_tables, set_request};

/// The step of a `create` command from which on slot, publications and topics of the mirror's
/// names are its own.
pub const NAMES_CLAIMED: &str = "source_names_claimed";

/// What the user wants of a mirror now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Captured and applied.
    Running,
    /// Captured, not applied.
    Paused,
    /// To be taken down; the row goes when that is done.
    Deleted,
}

/// What a pause stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseScope {
    /// Apply only: capture goes on, so that the source keeps no WAL.
    #[default]
    Apply,
    /// Capture too: the source keeps WAL for the slot meanwhile.
    All,
}

impl PauseScope {
    /// The text the catalog holds.
    pub fn as_str(self) -> &'static str {
        match self {
            PauseScope::Apply => "apply",
            PauseScope::All => "all",
        }
    }
}

impl Desired {
    /// The text the catalog holds.
    pub fn as_str(self) -> &'static str {
        match self {
            Desired::Running => "running",
            Desired::Paused => "paused",
            Desired::Deleted => "deleted",
        }
    }
}

/// A mirror as the catalog holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Never reused, also not for a later mirror of the same name.
    pub id: Uuid,
    /// As the user wrote it.
    pub name: String,
    /// The form of the name from which topics, slot and publications are
    /// named: lower case letters, digits and `_`; unique.
    pub slug: String,
    /// The mirror whose capture feeds this one; none if it has one of its own.
    pub owner: Option<Owner>,
    /// What other mirrors want that are fed by this one's capture.
    pub attached: Vec<AttachedTable>,
    /// Name of the source peer.
    pub source_peer: String,
    /// Name of the destination peer.
    pub destination_peer: String,
    /// The replication slot at the source; of a mirror that is fed by another, that one's.
    pub slot_name: String,
    /// Whether the slot was the user's before: used, never dropped.
    pub slot_given: bool,
    /// The publication of tables that carry every kind of change.
    pub publication_name: String,
    /// Whether that publication was the user's before: used, never altered or
    /// dropped.
    pub publication_given: bool,
    /// The publication of insert-only tables.
    pub publication_ins_name: String,
    /// Options.
    pub config: MirrorConfig,
    /// The generation that the last command asked for, of the mirror or of its owner.
    pub generation: Uuid,
    /// Whether that generation has been started (slot and topic agree on it).
    pub generation_ready: bool,
    /// What the user wants.
    pub desired: Desired,
    /// What is stopped while [`Desired::Paused`].
    pub pause_scope: PauseScope,
    /// When deleted: leave the topics.
    pub keep_topics: bool,
    /// Rises with each change that both workers have to act on.
    pub version: i64,
    /// Rises with each change that capture alone has to act on.
    pub capture_version: i64,
    /// Rises with each change that apply alone has to act on.
    pub apply_version: i64,
    /// Creation time, by the catalog's clock.
    pub created_at: DateTime<Utc>,
    /// Time of the last change, by the catalog's clock.
    pub updated_at: DateTime<Utc>,
    /// The mappings, in the user's order.
    pub tables: Vec<MirrorTable>,
}

impl Mirror {
    /// What the user wants of one role: a pause of apply leaves capture running.
    pub fn desired_of(&self, role: Role) -> Desired {
        match (self.desired, self.pause_scope, role) {
            (Desired::Paused, PauseScope::Apply, Role::Capture) => Desired::Running,
            (desired, _, _) => desired,
        }
    }

    /// Rises with each change for which the role's task is started anew.
    pub fn version_of(&self, role: Role) -> i64 {
        let own = match role {
            Role::Capture => self.capture_version,
            Role::Apply => self.apply_version,
        };
        self.version + own
    }
}

/// One table mapping of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorTable {
    /// The table at the source.
    pub source: TableName,
    /// The table at the destination.
    pub destination: TableName,
    /// The column whose ranges cut a snapshot into chunks.
    pub partition_key: Option<String>,
    /// Columns that are not replicated.
    pub exclude_columns: Vec<String>,
    /// `refuse`: the mirror is refused if the table has no usable identity.
    pub identity: Option<String>,
    /// The table sync that is asked for; none when the mirror only follows
    /// changes.
    pub request_id: Option<Uuid>,
    /// The last request to bring the table back if it is set aside.
    #[serde(default)]
    pub retry_id: Option<Uuid>,
    /// The sync that `request_id` asks for is loaded beside the table, which keeps its rows
    /// until they are exchanged.
    #[serde(default)]
    pub beside: bool,
    /// The retained sync that the destination is to hold instead of the one asked for.
    #[serde(default)]
    pub replay: Option<Replay>,
    /// The first sync asked for since the mapping names this destination and these columns:
    /// earlier ones carry others.
    #[serde(default)]
    pub since_request: Option<Uuid>,
    /// The last fresh copy asked for that no destination loads.
    #[serde(default)]
    pub checkpoint_id: Option<Uuid>,
}

impl MirrorTable {
    /// The syncs from the first recorded of which on copies carry what the mapping says; all do if
    /// there are none. One that was asked for anew before it began is never recorded.
    pub fn copies_since(&self) -> Vec<Uuid> {
        let since = self.since_request.into_iter();
        since
            .flat_map(|since| [Some(since), self.request_id])
            .flatten()
            .collect()
    }

    /// The sync that the destination is to hold: of a replay, under its own name.
    pub fn wanted_request(&self) -> Option<Uuid> {
        let replayed = self.replay.as_ref().map(|replay| replay.request_id);
        replayed.or(self.request_id)
    }

    /// Whether that sync is loaded beside the table. A replay has been asked for later than
    /// the mapping's own sync, and says it for itself.
    pub fn loads_beside(&self) -> bool {
        match &self.replay {
            Some(replay) => replay.beside,
            None => self.beside,
        }
    }
}

/// A mapping as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMirrorTable {
    /// The table at the source.
    pub source: TableName,
    /// The table at the destination.
    pub destination: TableName,
    /// The column whose ranges cut a snapshot into chunks.
    pub partition_key: Option<String>,
    /// Columns that are not replicated.
    pub exclude_columns: Vec<String>,
    /// `refuse`, or nothing.
    pub identity: Option<String>,
}

/// A mirror as it is asked for.
#[derive(Debug, Clone)]
pub struct NewMirror {
    /// 1–63 letters, digits, `_` and `-`.
    pub name: String,
    /// Name of the source peer.
    pub source_peer: String,
    /// Name of the destination peer.
    pub destination_peer: String,
    /// Options, in range ([`MirrorConfig::problems`]).
    pub config: MirrorConfig,
    /// At least one mapping.
    pub tables: Vec<NewMirrorTable>,
    /// The installation's prefix, which slot and publication names carry.
    pub prefix: String,
    /// The slot's name, if the user wants a certain one.
    pub replication_slot_name: Option<String>,
    /// Whether a slot of that name is there already and so stays the user's.
    pub slot_given: bool,
    /// The publication's name, if the user wants a certain one.
    pub publication_name: Option<String>,
    /// Whether a publication of that name is there already and so stays the
    /// user's.
    pub publication_given: bool,
    /// The mirror whose capture is to feed it, if it is to have none of its own.
    pub attach: Option<Attach>,
    /// The id under which the destination knows the mirror of an earlier catalog, which is to
    /// go on.
    pub adopts: Option<Uuid>,
    /// The user who asks.
    pub requested_by: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A mirror of one table, `public.t`, with default options.
    pub(crate) fn mirror(name: &str) -> Mirror {
        let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        Mirror {
            id: Uuid::from_u128(1),
            name: name.into(),
            slug: name.into(),
            owner: None,
            attached: Vec::new(),
            source_peer: "source".into(),
            destination_peer: "destination".into(),
            slot_name: format!("bunny_{name}"),
            slot_given: false,
            publication_name: format!("bunny_pub_{name}"),
            publication_given: false,
            publication_ins_name: format!("bunny_pub_{name}_ins"),
            config: MirrorConfig::default(),
            generation: Uuid::from_u128(7),
            generation_ready: true,
            desired: Desired::Running,
            pause_scope: PauseScope::Apply,
            keep_topics: false,
            version: 1,
            capture_version: 0,
            apply_version: 0,
            created_at: at,
            updated_at: at,
            tables: vec![MirrorTable {
                source: TableName::new("public", "t"),
                destination: TableName::new("public", "t"),
                partition_key: None,
                exclude_columns: Vec::new(),
                identity: None,
                request_id: Some(Uuid::from_u128(9)),
                retry_id: None,
                replay: None,
                since_request: Some(Uuid::from_u128(9)),
                checkpoint_id: None,
                beside: false,
            }],
        }
    }
}
