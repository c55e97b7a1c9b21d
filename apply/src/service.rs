//! The apply role of a process: runs the mirrors whose apply lease it holds.

use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{Catalog, Role, SuperviseOptions, supervise};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::topics::Topics;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::budget::Memory;
use crate::last_wish::Known;
use crate::mirror::{self, Shared};

/// What the role needs.
#[derive(Clone)]
pub struct Options {
    pub catalog: Catalog,
    pub kafka: KafkaConfig,
    pub topics: Topics,
    /// Names this run of this process in leases; unique.
    pub holder: String,
    /// After so long without renewal another process may take a mirror.
    pub lease_ttl: Duration,
    /// What rows on their way may take, about, in bytes.
    pub memory_bytes: usize,
}

pub struct Service {
    options: Options,
}

impl Service {
    pub fn new(options: Options) -> Service {
        Service { options }
    }

    /// Runs until `cancel`, then ends every mirror's run (open destination transactions
    /// roll back) and gives the leases back.
    pub async fn run(self, cancel: CancellationToken) {
        let Options {
            catalog,
            kafka,
            topics,
            holder,
            lease_ttl,
            memory_bytes,
        } = self.options;
        let shared = Arc::new(Shared {
            kafka,
            topics,
            registry: OnceCell::new(),
            known: Known::default(),
            memory: Memory::of(memory_bytes),
        });
        let options = SuperviseOptions {
            lease_ttl,
            ..SuperviseOptions::default()
        };
        supervise(
            catalog,
            Role::Apply,
            holder,
            options,
            cancel,
            move |mirror, context| mirror::run(shared.clone(), mirror, context),
        )
        .await;
    }
}
