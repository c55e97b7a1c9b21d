//! Deleting a mirror: the source gives back its slot and publications, the destination its
//! bookkeeping (apply does that), then the topics and the catalog row go.
//!
//! Each step is recorded on the command and may run again. What cannot be cleaned does not
//! hold up the rest: with the source away the topics go all the same, and the mirror stays
//! TERMINATING, with what is left and why, until the source or Kafka is back or the user says
//! `?force=true`. Then it is left behind, and the command tells how to remove it by hand.

use std::time::Duration;

use bunny_catalog::{Command, Finished, Mirror};
use bunny_postgres::{Session, quote_ident, quote_literal};

use crate::crash_points::{REMOVAL_SOURCE_CLEAN, REMOVAL_TOPICS_CLEAN, crash_point};
use crate::error::{Error, Result};
use crate::mirror::{NAMES_CLAIMED, end_former_sessions};
use crate::run::Run;
use crate::{publication, slot, table_topics};

/// The steps of a `delete` command, in the catalog's words.
const SOURCE_CLEAN: &str = "source_clean";
const SOURCE_LEFT: &str = "source_left";
const DESTINATION_CLEAN: &str = "destination_clean";
const DESTINATION_LEFT: &str = "destination_left";
const TOPICS_CLEAN: &str = "topics_clean";
const TOPICS_LEFT: &str = "topics_left";

const POLL: Duration = Duration::from_millis(300);

pub(crate) async fn run(run: &Run) -> Result<Finished> {
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
    let source = source_gone(run, &command).await;
    crash_point(REMOVAL_SOURCE_CLEAN);

    // Apply reads the topics until its side is gone. With the source away nothing is waited
    // for: what is wrong is said, and the next try looks again.
    while !destination_gone(run, &command).await? {
        if source.is_err() {
            return source.map(|()| Finished::Idle);
        }
        tokio::select! {
            () = run.context.cancel.cancelled() => return Ok(Finished::Idle),
            () = tokio::time::sleep(POLL) => {}
        }
    }
    let topics = topics_gone(run, &command).await;
    crash_point(REMOVAL_TOPICS_CLEAN);
    source?;
    topics?;
    catalog.finish_delete(mirror.id).await?;
    tracing::info!(mirror = %mirror.name, "mirror deleted");
    Ok(Finished::Deleted)
}

async fn destination_gone(run: &Run, command: &Command) -> Result<bool> {
    let now = run.options.catalog.get_command(command.id).await?;
    Ok(has(&now, DESTINATION_CLEAN) || has(&now, DESTINATION_LEFT))
}

fn has(command: &Command, step: &str) -> bool {
    command.steps.iter().any(|done| done == step)
}

/// Cleans the source, or leaves it as it is when the user has said so.
async fn source_gone(run: &Run, command: &Command) -> Result<()> {
    if has(command, SOURCE_CLEAN) || has(command, SOURCE_LEFT) {
        return Ok(());
    }
    let catalog = &run.options.catalog;
    let Err(error) = clean_source(run).await else {
        catalog.mark_step(command.id, SOURCE_CLEAN).await?;
        return Ok(());
    };
    if error.is_fenced() {
        return Err(error);
    }
    let mirror = &run.mirror;
    let left = left_at_source(mirror);
    if command.args["force"] == true {
        let outcome = format!(
            "left at source peer \"{}\", which could not be cleaned ({error}): {left}; until the slot is dropped that server keeps WAL for it",
            mirror.source_peer
        );
        tracing::warn!(mirror = %mirror.name, outcome, "deleting the mirror by force");
        catalog
            .leave_behind(command.id, SOURCE_LEFT, &outcome)
            .await?;
        return Ok(());
    }
    Err(Error::transient(format!(
        "the source cannot be cleaned yet ({error}) and the mirror stays until it is; DELETE it again to try at once, or with ?force=true to leave behind: {left}"
    )))
}

/// Cleans Kafka, or leaves it as it is when the user has said so.
async fn topics_gone(run: &Run, command: &Command) -> Result<()> {
    if has(command, TOPICS_CLEAN) || has(command, TOPICS_LEFT) {
        return Ok(());
    }
    let catalog = &run.options.catalog;
    let mirror = &run.mirror;
    let names = if mirror.keep_topics {
        Vec::new()
    } else {
        topics_of(run).await?
    };
    let Err(error) = clean_topics(run, &names).await else {
        catalog.mark_step(command.id, TOPICS_CLEAN).await?;
        return Ok(());
    };
    let left = format!("topics {}", names.join(", "));
    if command.args["force"] == true {
        let outcome = format!("left in Kafka, which could not be cleaned ({error}): {left}");
        tracing::warn!(mirror = %mirror.name, outcome, "deleting the mirror by force");
        catalog
            .leave_behind(command.id, TOPICS_LEFT, &outcome)
            .await?;
        return Ok(());
    }
    Err(Error::transient(format!(
        "Kafka cannot be cleaned yet ({error}) and the mirror stays until it is; DELETE it again to try at once, or with ?force=true to leave behind: {left}"
    )))
}

async fn topics_of(run: &Run) -> Result<Vec<String>> {
    let topics = &run.options.topics;
    let slug = &run.mirror.slug;
    let mut names = vec![
        topics.changes(slug),
        topics.snapshot(slug),
        topics.position(slug),
    ];
    names.extend(table_topics::all_names(run).await?);
    Ok(names)
}

/// The consumer group goes in any case: nobody commits to it any more. It holds nothing that
/// anybody needs, and Kafka forgets it in time: so it holds nothing up.
async fn clean_topics(run: &Run, names: &[String]) -> Result<()> {
    let kafka = &run.options.kafka;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    kafka.delete_topics(&names).await?;
    let group = run.options.topics.apply_group(&run.mirror.slug);
    if let Err(error) = kafka.delete_group(&group).await {
        tracing::warn!(mirror = %run.mirror.name, group, %error, "the consumer group is left to Kafka");
    }
    Ok(())
}

async fn clean_source(run: &Run) -> Result<()> {
    let mirror = &run.mirror;
    let created = run
        .options
        .catalog
        .last_command(mirror.id, "create")
        .await?;
    if !created.is_some_and(|command| has(&command, NAMES_CLAIMED)) {
        // Nothing was made there yet: what stands under the mirror's names is another's.
        return Ok(());
    }
    let source = Session::connect(&run.peer, &run.application_name).await?;
    end_former_sessions(run, &source).await?;
    slot::drop_slot(&source, mirror).await?;
    publication::drop_own(&source, mirror).await
}

/// The statements that remove by hand what the mirror made at the source. Pure.
fn left_at_source(mirror: &Mirror) -> String {
    let mut statements = Vec::new();
    if !mirror.slot_given {
        statements.push(format!(
            "SELECT pg_drop_replication_slot({});",
            quote_literal(&mirror.slot_name)
        ));
    }
    if !mirror.publication_given {
        for name in publication::names(mirror) {
            statements.push(format!(
                "DROP PUBLICATION IF EXISTS {};",
                quote_ident(&name)
            ));
        }
    }
    statements.join(" ")
}
