//! The capture role: as many mirrors as it holds leases for.

use std::sync::Arc;

use bunny_catalog::{Role, SuperviseOptions, TaskFailure, supervise};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::Error;
use crate::memory::Memory;
use crate::mirror;
use crate::run::Options;

/// The capture role, ready to run.
pub struct Service {
    options: Arc<Options>,
}

impl Service {
    pub fn new(options: Options) -> Self {
        Self {
            options: Arc::new(options),
        }
    }

    /// Runs until `cancel`. Failures of single mirrors are reported to the catalog and tried
    /// again; they never end the service.
    ///
    /// # Errors
    /// None today: the loop goes on whatever happens.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        let options = self.options;
        let memory = Memory::of(options.memory_bytes);
        let supervision = SuperviseOptions::new(options.lease_ttl);
        supervise(
            options.catalog.clone(),
            Role::Capture,
            options.holder.clone(),
            supervision,
            cancel,
            move |mirror, context| {
                let (options, memory) = (Arc::clone(&options), memory.clone());
                let generation = mirror.generation;
                async move {
                    Box::pin(mirror::run(mirror, context, options, memory))
                        .await
                        .map_err(|error| failure(error, generation))
                }
            },
        )
        .await;
        Ok(())
    }
}

fn failure(error: Error, generation: Uuid) -> TaskFailure {
    if error.is_fenced() {
        TaskFailure::fenced(error)
    } else if matches!(error, Error::Refused(_)) {
        TaskFailure::history_lost(error, generation)
    } else if error.is_fatal() {
        TaskFailure::fatal(error)
    } else {
        TaskFailure::transient(error)
    }
}
