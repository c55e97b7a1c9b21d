//! Deleting a mirror: the source gives back its slot and publications, the destination its
//! bookkeeping (apply does that), then the topics and the catalog row go.
//!
//! Each step is recorded on the command and may run again.

use std::time::Duration;

use bunny_catalog::Finished;
use bunny_postgres::Session;

use crate::error::{Error, Result};
use crate::run::Run;
use crate::{publication, slot};

/// The steps of a `delete` command, in the catalog's words.
const SOURCE_CLEAN: &str = "source_clean";
const DESTINATION_CLEAN: &str = "destination_clean";
const TOPICS_CLEAN: &str = "topics_clean";

const POLL: Duration = Duration::from_millis(300);

pub(crate) async fn run(run: &Run, source: Session) -> Result<Finished> {
    let catalog = &run.options.catalog;
    let mirror = &run.mirror;
    let command = catalog
        .open_command(mirror.id, "delete")
        .await?
        .ok_or_else(|| {
            Error::transient(format!(
                "mirror {} is to be deleted but no open command says so",
                mirror.name
            ))
        })?;

    slot::drop_slot(&source, mirror).await?;
    publication::drop_own(&source, mirror).await?;
    catalog.mark_step(command.id, SOURCE_CLEAN).await?;

    loop {
        let now = catalog.get_command(command.id).await?;
        if now.steps.iter().any(|step| step == DESTINATION_CLEAN) {
            break;
        }
        tokio::select! {
            () = run.context.cancel.cancelled() => return Ok(Finished::Idle),
            () = tokio::time::sleep(POLL) => {}
        }
    }

    if !mirror.keep_topics {
        let topics = &run.options.topics;
        let names = [
            topics.changes(&mirror.slug),
            topics.snapshot(&mirror.slug),
            topics.position(&mirror.slug),
        ];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        run.options.kafka.delete_topics(&names).await?;
    }
    catalog.mark_step(command.id, TOPICS_CLEAN).await?;
    catalog.finish_delete(mirror.id).await?;
    tracing::info!(mirror = %mirror.name, "mirror deleted");
    Ok(Finished::Deleted)
}
