//! What one mirror's run is given, and what its sessions are called.

use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{Catalog, Mirror, MirrorContext};
use bunny_postgres::ConnectOptions;
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Authority;
use bunny_schemas::topics::Topics;

use crate::error::Result;
use crate::memory::Memory;

/// What a capture process is given.
#[derive(Clone)]
pub struct Options {
    pub catalog: Catalog,
    pub kafka: KafkaConfig,
    pub topics: Topics,
    /// Who chooses schema ids.
    pub schema_ids: Authority,
    /// Names this process among all that take leases.
    pub holder: String,
    /// How long a lease outlives its holder's last sign of life.
    pub lease_ttl: Duration,
    /// What rows on their way may take, about, in bytes.
    pub memory_bytes: usize,
}

/// What every step of a run knows.
pub(crate) struct Run {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) options: Arc<Options>,
    pub(crate) memory: Memory,
    pub(crate) context: MirrorContext,
    /// `bunny capture <12-hex mirror id> <epoch>`: what a later owner looks for.
    pub(crate) application_name: String,
}

impl Run {
    pub(crate) fn new(
        mirror: Mirror,
        context: MirrorContext,
        options: Arc<Options>,
        memory: Memory,
    ) -> Run {
        Run {
            application_name: format!("{} {}", session_prefix(&mirror), context.lease_epoch),
            mirror: Arc::new(mirror),
            options,
            memory,
            context,
        }
    }

    /// What is needed to connect to the source.
    pub(crate) fn peer(&self) -> Result<ConnectOptions> {
        Ok(self.context.source.connect_options()?)
    }

    /// What all sessions of all captures of this mirror are named after.
    pub(crate) fn session_prefix(&self) -> String {
        session_prefix(&self.mirror)
    }
}

fn session_prefix(mirror: &Mirror) -> String {
    let id = mirror.id.simple().to_string();
    format!("bunny capture {}", &id[..12])
}
