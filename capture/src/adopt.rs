//! Capture's part of `adopt`: it tells which generation the log is of, and does nothing else.
//! Whether slot and source go on from there is for the start that follows to say, as always.

use bunny_catalog::{Command, Finished, FoundLog};

use crate::crash_points::{LOG_TOLD, crash_point};
use crate::error::{Error, Result};
use crate::last_wish;
use crate::run::Run;

pub(crate) async fn read_log(run: &Run, command: &Command) -> Result<Finished> {
    let catalog = &run.options.catalog;
    let positions = last_wish::positions_if_any(run).await?;
    let Some(record) = positions.position else {
        let why = format!(
            "there is no log to adopt: {} holds no position. Delete this mirror, drop what is left of its slot and publications at the source, and create it without \"adopt\"",
            run.options.topics.position(&run.mirror.slug)
        );
        catalog.fail_command(command.id, &why).await?;
        return Err(Error::fatal(why));
    };
    let found = FoundLog {
        generation: record.generation,
        wish: positions.wish,
    };
    catalog.adopt_log(command.id, found).await?;
    crash_point(LOG_TOLD);
    tracing::info!(mirror = %run.mirror.name, generation = %record.generation, "found a log to adopt");
    Ok(Finished::Idle)
}
