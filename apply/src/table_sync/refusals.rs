//! Sets tables aside that the source does not let be copied: their syncs will not come.
//!
//! Capture says so in its report, with the request to bring the table back that it knew.
//! Only if that is the one that this run knows too does it count: a report outlives the
//! capture that gave it, and a table that is tried again must not be refused by it.

use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{Mirror, Reports};
use uuid::Uuid;

use super::chunk_copy;
use super::loader::Shared;
use crate::error::{Error, Result};

/// How often the report is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks until an error.
pub(super) async fn run(shared: Arc<Shared>) -> Error {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let run = &shared.run;
        // Without the catalog the tables wait.
        let Ok(reports) = run.catalog.reports(run.mirror_id()).await else {
            continue;
        };
        for (request_id, reason) in refused(&run.mirror, &reports) {
            if let Err(error) = set_aside(&shared, request_id, &reason).await {
                return error;
            }
        }
    }
}

async fn set_aside(shared: &Shared, request_id: Uuid, reason: &str) -> Result<()> {
    if !shared.update(|board| board.refuse(request_id, reason)) {
        return Ok(());
    }
    let source = shared.source_of(request_id)?;
    let session = chunk_copy::connect(&shared.run).await?;
    shared
        .store_failure(&session, request_id, &source, reason)
        .await
}

/// The syncs of this mirror that capture has given up, with the reasons. Pure.
fn refused(mirror: &Mirror, reports: &Reports) -> Vec<(Uuid, String)> {
    let report = reports.capture.report.as_ref();
    let report = report.filter(|report| report.generation == Some(mirror.generation));
    let syncs = report.map_or(&[][..], |report| &report.syncs);
    let is_meant = |request_id: Uuid, retry_id: Option<Uuid>| {
        let mut tables = mirror.tables.iter();
        tables.any(|table| table.request_id == Some(request_id) && table.retry_id == retry_id)
    };
    syncs
        .iter()
        .filter_map(|sync| {
            let refusal = sync.refused.as_ref()?;
            is_meant(sync.request_id, refusal.retry_id)
                .then(|| (sync.request_id, refusal.reason.clone()))
        })
        .collect()
}
