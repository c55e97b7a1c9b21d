//! Deleting a mirror: the source gives back its slot and publications, the destination its
//! bookkeeping (apply does that), then the topics and the catalog row go.
//!
//! Each step is recorded on the command and may run again. What cannot be cleaned does not
//! hold up the rest: with the source away the topics go all the same, and the mirror stays
//! TERMINATING, with what is left and why, until the source or Kafka is back or the user says
//! `?force=true`. Then it is left behind, and the command tells how to remove it by hand.

use std::time::Duration;

use bunny_catalog::{Command, Finished, Mirror, NAMES_CLAIMED};
use bunny_postgres::{Session, quote_ident, quote_literal};
use bunny_schemas::control::WishRecord;
use bunny_schemas::registry::Registry;

use crate::crash_points::{REMOVAL_SOURCE_CLEAN, REMOVAL_TOPICS_CLEAN, crash_point};
use crate::error::{Error, Result};
use crate::mirror::end_former_sessions;
use crate::publisher::Publisher;
use crate::run::{Options, Run};
use crate::{last_wish, publication, slot, table_topics};

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
    let created = catalog.last_command(mirror.id, "create").await?;
    // Else nothing was made there yet: what stands under the mirror's names is another's.
    let is_ours = created.is_some_and(|command| has(&command, NAMES_CLAIMED));
    if is_ours {
        match look_back(run, &command).await {
            // Then nobody can read what the mirror was told.
            Err(error) if is_of_kafka(&error) && command.args["force"] == true => {
                tracing::warn!(mirror = %mirror.name, %error, "the log is not looked at");
            }
            Err(error) if is_of_kafka(&error) => {
                return Err(not_cleaned(&error, "its topics"));
            }
            looked => looked?,
        }
    }
    let source = source_gone(run, &command, is_ours).await;
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
    let topics = topics_gone(run, &command, is_ours).await;
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

/// A catalog that is older than the log does not know what it would delete.
async fn look_back(run: &Run, command: &Command) -> Result<()> {
    let positions = last_wish::positions_if_any(run).await?;
    last_wish::check(run, positions.wish).await?;
    if run.mirror.keep_topics && positions.position.is_some() {
        keep_in_mind(run, command).await?;
    }
    Ok(())
}

fn is_of_kafka(error: &Error) -> bool {
    matches!(error, Error::Schemas(_) | Error::Kafka { .. }) && !error.is_fenced()
}

fn not_cleaned(error: &Error, left: &str) -> Error {
    Error::transient(format!(
        "Kafka cannot be cleaned yet ({error}) and the mirror stays until it is; DELETE it again to try at once, or with ?force=true to leave behind: {left}"
    ))
}

/// Topics that stay tell that the mirror was deleted: a catalog of before would fill the
/// destination from them once more.
async fn keep_in_mind(run: &Run, command: &Command) -> Result<()> {
    let Options {
        kafka,
        topics,
        schema_ids,
        ..
    } = &*run.options;
    let registry = Registry::open_with(kafka.clone(), topics, schema_ids.clone()).await?;
    let mut publisher = Publisher::open(
        kafka,
        topics,
        &registry,
        &run.mirror.slug,
        run.memory.streams.join(),
    )
    .await?;
    let command_id = command.id;
    publisher.remember(WishRecord { command_id }).await
}

/// Cleans the source, or leaves it as it is when the user has said so.
async fn source_gone(run: &Run, command: &Command, is_ours: bool) -> Result<()> {
    if has(command, SOURCE_CLEAN) || has(command, SOURCE_LEFT) {
        return Ok(());
    }
    let catalog = &run.options.catalog;
    let cleaned = match is_ours {
        true => clean_source(run).await,
        false => Ok(()),
    };
    let Err(error) = cleaned else {
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
async fn topics_gone(run: &Run, command: &Command, is_ours: bool) -> Result<()> {
    if has(command, TOPICS_CLEAN) || has(command, TOPICS_LEFT) {
        return Ok(());
    }
    let catalog = &run.options.catalog;
    let mirror = &run.mirror;
    let names = match is_ours && !mirror.keep_topics {
        true => topics_of(run).await?,
        false => Vec::new(),
    };
    let cleaned = match is_ours {
        true => clean_topics(run, &names).await,
        false => Ok(()),
    };
    let Err(error) = cleaned else {
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
    Err(not_cleaned(&error, &left))
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
    let source = Session::connect(&run.peer()?, &run.application_name).await?;
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
