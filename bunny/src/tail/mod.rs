//! `bunny tail`: prints a mirror's events as they come.
//!
//! Needs Kafka only, never the catalog, and only reads: it works while everything else is down,
//! and shows nothing that is not committed.

mod options;
mod print;

use std::io::{BufWriter, ErrorKind, Write as _};
use std::time::Duration;

use bunny_schemas::Error as SchemasError;
use bunny_schemas::envelope::escape;
use bunny_schemas::follow::{Event, Follower, Plans, Start, Step, start_offset};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Layers};
use crate::exit::Exit;

pub(crate) use options::{Options, arguments};
use print::Printer;

/// How long Kafka may take to answer the first question.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a wait for events lasts before the signal to stop is looked at.
const POLL: Duration = Duration::from_millis(100);
/// After the signal to stop: for a line that is being written to a reader who does not read.
const LAST_LINE_MAX: Duration = Duration::from_millis(500);

/// Prints until `cancel`, until the reader of our output is gone, or until the end if asked so.
pub(crate) async fn run(
    options: Options,
    layers: &Layers,
    cancel: CancellationToken,
) -> Result<(), Exit> {
    let (kafka, topics) = config::topics_only(layers)?;
    config::check_kafka(&kafka)?;
    let stopped = cancel.clone();
    tokio::select! {
        outcome = show(options, kafka, topics, cancel) => outcome,
        () = async {
            stopped.cancelled().await;
            tokio::time::sleep(LAST_LINE_MAX).await;
        } => Ok(()),
    }
}

async fn show(
    options: Options,
    kafka: KafkaConfig,
    topics: Topics,
    cancel: CancellationToken,
) -> Result<(), Exit> {
    kafka
        .broker_reachable(KAFKA_TIMEOUT)
        .await
        .map_err(|error| {
            if error.is_transient() {
                let brokers = kafka.brokers();
                Exit::failed(format!(
                    "no answer from BUNNY_KAFKA_BROKERS {brokers}: {error}"
                ))
            } else {
                Exit::setting(format!("Kafka cannot be used as configured: {error}"))
            }
        })?;
    let names = kafka.topic_names().await.map_err(Exit::failed)?;
    let found: Vec<&str> = names
        .iter()
        .filter_map(|name| topics.slug_of_changes(name))
        .collect();
    let slug = slug_of(&options.mirror, &topics, &found)
        .ok_or_else(|| unknown(&options, &topics, &found))?;
    if !names.contains(&topics.schemas()) {
        return Err(Exit::setting(format!(
            "there is no topic {}, without which no event can be decoded",
            topics.schemas()
        )));
    }
    let registry = Registry::reading(kafka.clone(), &topics);
    warn_of_unknown_tables(&options, &registry).await?;
    let from = start_offset(&kafka, &registry, &topics, slug, options.start)
        .await
        .map_err(|error| match (&error, options.start) {
            (SchemasError::Invalid(why), Start::Offset(_)) => {
                Exit::setting(format!("--from: {why}"))
            }
            _ => Exit::failed(error),
        })?;
    let topic = topics.changes(slug);
    let follower = Follower::open(&kafka, &topic, from).map_err(Exit::setting)?;
    let runtime = Handle::current();
    let printing = move || follow(&follower, &registry, &runtime, &options, &topic, &cancel);
    match tokio::task::spawn_blocking(printing).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Exit::failed(format!("reading broke down: {error}"))),
    }
}

/// The slug under which a mirror of this name, or slug, has its topics; their names, whole or up
/// to the last dot, will do too. Pure.
fn slug_of<'f>(mirror: &str, topics: &Topics, found: &[&'f str]) -> Option<&'f str> {
    // No mirror has a dot in its name.
    if mirror.contains('.') {
        let is_meant =
            |slug: &&&str| mirror == topics.changes(slug) || mirror == topics.table_prefix(slug);
        return found.iter().find(is_meant).copied();
    }
    let slugs = bunny_catalog::slugs(mirror);
    slugs
        .iter()
        .find_map(|slug| found.iter().find(|known| *known == slug).copied())
}

fn unknown(options: &Options, topics: &Topics, found: &[&str]) -> Exit {
    let (mirror, prefix) = (&options.mirror, topics.prefix());
    let there = if found.is_empty() {
        "there is none; is BUNNY_TOPIC_PREFIX right?".to_owned()
    } else {
        format!("there are {}", found.join(", "))
    };
    Exit::setting(format!(
        "no mirror \"{mirror}\" has topics with the prefix \"{prefix}\": {there}. The events of a mirror with a source_mirror are in the topics of that one"
    ))
}

/// A table that has never had an event may be a slip of the pen, or have its first one tomorrow.
async fn warn_of_unknown_tables(options: &Options, registry: &Registry) -> Result<(), Exit> {
    if options.tables.is_empty() {
        return Ok(());
    }
    registry.refresh().await.map_err(Exit::failed)?;
    let subjects = registry.subjects().await;
    for table in &options.tables {
        let names: Vec<String> = table.names().map(escape).collect();
        let end = format!(".{}.Envelope", names.join("."));
        if !subjects.iter().any(|subject| subject.ends_with(&end)) {
            eprintln!("bunny: no mirror has had an event of table {table} so far");
        }
    }
    Ok(())
}

/// Prints what comes. Blocks; ends quietly when our output is no longer read.
fn follow(
    follower: &Follower,
    registry: &Registry,
    runtime: &Handle,
    options: &Options,
    topic: &str,
    cancel: &CancellationToken,
) -> Result<(), Exit> {
    let mut out = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let mut plans = Plans::default();
    let mut printer = Printer::new(options.format);
    let mut in_trouble = false;
    // What is there is taken without waiting; before each wait, what is printed is shown.
    let mut wait = Duration::ZERO;
    while !cancel.is_cancelled() {
        match follower
            .step(wait)
            .map_err(|error| reading(&error, topic))?
        {
            Step::Message { offset, value } => {
                if in_trouble {
                    in_trouble = false;
                    eprintln!("bunny: Kafka is back");
                }
                let event = decode(&mut plans, registry, runtime, &value).map_err(|error| {
                    Exit::failed(format!("{topic} at offset {offset}: {error}"))
                })?;
                if !options.wants(&event) {
                    continue;
                }
                if let Err(error) = out.write_all(printer.line(offset, &event)) {
                    return written(&error);
                }
                wait = Duration::ZERO;
            }
            Step::End if !options.follow => break,
            Step::End | Step::Quiet => {
                if let Err(error) = out.flush() {
                    return written(&error);
                }
                wait = POLL;
            }
            Step::Trouble(error) => {
                if !in_trouble {
                    in_trouble = true;
                    eprintln!("bunny: Kafka is away, waiting for it: {error}");
                }
                wait = POLL;
            }
        }
    }
    match out.flush() {
        Ok(()) => Ok(()),
        Err(error) => written(&error),
    }
}

fn decode<'a>(
    plans: &'a mut Plans,
    registry: &Registry,
    runtime: &Handle,
    value: &'a [u8],
) -> Result<Event<'a>, SchemasError> {
    if let Some(id) = plans.unknown(value)? {
        plans.learn(id, &runtime.block_on(registry.schema(id))?)?;
    }
    plans.decode(value)
}

/// `head` and its like leave when they have enough.
fn written(error: &std::io::Error) -> Result<(), Exit> {
    if error.kind() == ErrorKind::BrokenPipe {
        return Ok(());
    }
    Err(Exit::failed(format!("cannot write: {error}")))
}

fn reading(error: &SchemasError, topic: &str) -> Exit {
    match error {
        error if error.is_trimmed() => Exit::failed(format!(
            "{topic}: events were trimmed before they could be read; start again with --from earliest"
        )),
        error if error.is_gone() => {
            Exit::failed(format!("{topic} is gone: the mirror has been deleted"))
        }
        error => Exit::failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_found_by_name_and_by_slug() {
        let [hashed, plain] = bunny_catalog::slugs("Prod-to_Staging");
        assert_eq!(plain, "prod_to_staging");
        let found = ["other", plain.as_str(), hashed.as_str()];
        let topics = Topics::new("my.bunny");
        let slug_of = |mirror: &str, found| slug_of(mirror, &topics, found);
        assert_eq!(
            slug_of("prod_to_staging", &found[..2]),
            Some("prod_to_staging")
        );
        assert_eq!(
            slug_of("Prod-to_Staging", &found[..2]),
            Some("prod_to_staging")
        );
        assert_eq!(slug_of("Prod-to_Staging", &found), Some(hashed.as_str()));
        assert_eq!(slug_of(&hashed, &found), Some(hashed.as_str()));
        assert_eq!(slug_of("prod", &found), None);
        for topic in ["my.bunny.other.changes", "my.bunny.other"] {
            assert_eq!(slug_of(topic, &found), Some("other"));
        }
        for topic in ["bunny.other.changes", "my.bunny.othe", "my.bunny"] {
            assert_eq!(slug_of(topic, &found), None);
        }
    }
}
