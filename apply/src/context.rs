//! What one run of one mirror works with: shared by the main stream and the table sync.

use std::sync::Arc;

use bunny_catalog::{Catalog, Mirror, Reporter};
use bunny_postgres::{ConnectOptions, Session};
use bunny_schemas::{kafka::KafkaConfig, registry::Registry, topics::Topics};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bookkeeping::Epoch;
use crate::budget::Memory;
use crate::error::Result;
use crate::swap;
use crate::waits::Waits;

/// One run of one mirror, from take-over to the first error or cancel. Cheap to clone.
#[derive(Clone)]
pub struct MirrorRun {
    pub mirror: Arc<Mirror>,
    pub catalog: Catalog,
    pub reporter: Reporter,
    pub kafka: KafkaConfig,
    pub topics: Topics,
    pub registry: Registry,
    pub destination: ConnectOptions,
    /// `bunny apply <12 hex of the mirror id> <epoch>`: by this name a later owner finds
    /// and terminates our sessions.
    pub application_name: String,
    pub epoch: Epoch,
    /// Under which id the table states that this serves stand in `_bunny`: the mirror's, or
    /// that of what is loaded beside its tables (`swap::ledger_of`).
    pub ledger: Uuid,
    pub cancel: CancellationToken,
    pub memory: Memory,
    /// What its tasks try again.
    pub waits: Waits,
}

impl MirrorRun {
    pub fn mirror_id(&self) -> Uuid {
        self.mirror.id
    }

    /// The same run, serving what is loaded beside the mirror's tables.
    pub(crate) fn beside(&self) -> MirrorRun {
        MirrorRun {
            ledger: swap::ledger_of(self.mirror.id),
            ..self.clone()
        }
    }

    /// Whether it serves what is loaded beside the mirror's tables.
    pub(crate) fn is_beside(&self) -> bool {
        self.ledger != self.mirror.id
    }

    /// Opens one more destination session under this run's name.
    pub async fn connect(&self) -> Result<Session> {
        Ok(Session::connect(&self.destination, &self.application_name).await?)
    }
}

/// The name under which sessions of one epoch appear at the destination (≤ 63 bytes).
pub fn application_name(mirror_id: Uuid, epoch: Epoch) -> String {
    format!("{}{}", application_name_prefix(mirror_id), epoch.0)
}

/// What the names of all epochs' sessions of a mirror begin with.
pub fn application_name_prefix(mirror_id: Uuid) -> String {
    let hex = mirror_id.simple().to_string();
    format!("bunny apply {} ", &hex[..12])
}
