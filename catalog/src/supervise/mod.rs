//! The loop that capture and apply share: it takes leases, runs one task for
//! each mirror it has, renews, restarts, and gives back.
//!
//! No task is detached: every one sits in the loop's `JoinSet` and ends with it.
//! While the catalog is away tasks go on, and failed ones are started again with
//! what was last read; who may act is decided by fencing, not here.

mod drift;
mod entry;
mod task;
mod worker;

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use task::{FailureKind, Finished, MirrorContext, Outcome, Reporter, TaskFailure};

use worker::Worker;

use crate::Catalog;
use crate::leases::Role;
use crate::mirrors::Mirror;

/// How a supervisor goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperviseOptions {
    /// After so long without renewal another worker may take a mirror.
    pub lease_ttl: Duration,
    /// How often the catalog is looked at when no notification comes.
    pub poll: Duration,
}

impl SuperviseOptions {
    /// Leases of that length, a look at the catalog each second.
    pub fn new(lease_ttl: Duration) -> SuperviseOptions {
        SuperviseOptions {
            lease_ttl,
            ..SuperviseOptions::default()
        }
    }
}

impl Default for SuperviseOptions {
    fn default() -> Self {
        SuperviseOptions {
            lease_ttl: Duration::from_secs(10),
            poll: Duration::from_secs(1),
        }
    }
}

/// Runs `run` once for each mirror whose lease for `role` this process has,
/// until `cancel`. `holder` is unique to this run of this process: a worker that
/// was killed and started again is another holder, and gets its mirrors when the
/// old leases have run out. Returns when every task has ended and the leases are
/// given back, within about 8 s.
pub async fn supervise<F, Fut>(
    catalog: Catalog,
    role: Role,
    holder: String,
    options: SuperviseOptions,
    cancel: CancellationToken,
    run: F,
) where
    F: Fn(Mirror, MirrorContext) -> Fut + Send + Sync,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    Worker::new(catalog, role, holder, options, run)
        .run(cancel)
        .await;
}
