//! How large the change topic is, and that it does not grow beyond `topic_max_bytes`.
//!
//! A topic that is full ends the run: the slot is free, the source keeps its WAL, and nothing
//! is dropped. Each time the run is begun again it is looked whether there is room; so
//! capture goes on by itself when the topic was trimmed or the limit was raised. A topic that is
//! there no more ends the run too, without a change to be sent: the next begins by comparing it
//! with the position record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bunny_catalog::TopicBytes;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::run::Run;

/// How often it is looked at; by what is sent meanwhile the limit may be passed.
const EVERY: Duration = Duration::from_secs(1);
/// In which of its rounds without news it is looked at all the same: the topic may be trimmed.
const IDLE_ROUNDS: u32 = 10;

/// Bytes sent to the change topic by a run.
pub(crate) type Sent = Arc<AtomicU64>;

/// Refuses to begin while the topic is full.
pub(crate) async fn refuse_if_full(run: &Run) -> Result<()> {
    let Some(max) = run.mirror.config.topic_max_bytes else {
        return Ok(());
    };
    let counted = counted(run).await?;
    let (low, _) = watermarks(run).await?;
    check(counted.held(low), max)
}

/// Counts until the topic is full. Catalog or Kafka being away is no reason to stop: what was
/// sent is counted later.
pub(crate) async fn run(run: &Run, sent: Sent, held: watch::Sender<Option<u64>>) -> Result<()> {
    let mut known: Option<TopicBytes> = None;
    let mut round = 0_u32;
    loop {
        if round.is_multiple_of(IDLE_ROUNDS) || sent.load(Ordering::Relaxed) > 0 {
            match look(run, &sent, &mut known).await {
                Ok(bytes) => {
                    held.send_replace(Some(bytes));
                    if let Some(max) = run.context.latest().config.topic_max_bytes {
                        check(bytes, max)?;
                    }
                }
                Err(Error::Schemas(error)) if is_lost(run, &error).await => {
                    return Err(Error::transient(format!(
                        "the change topic is gone: {error}"
                    )));
                }
                Err(error) => {
                    tracing::debug!(mirror = %run.mirror.name, %error, "the change topic is measured later");
                }
            }
        }
        round = round.wrapping_add(1);
        tokio::time::sleep(EVERY).await;
    }
}

async fn is_lost(run: &Run, error: &bunny_schemas::Error) -> bool {
    let topic = run.options.topics.changes(&run.mirror.slug);
    let code = error.kafka_code();
    run.options.kafka.has_lost(&topic, code).await
}

async fn look(run: &Run, sent: &Sent, known: &mut Option<TopicBytes>) -> Result<u64> {
    let mut topic = match known.take() {
        Some(topic) => topic,
        None => counted(run).await?,
    };
    let before = topic.clone();
    // Before the end is asked for: what is sent in between is counted with the next.
    let bytes = sent.swap(0, Ordering::Relaxed);
    let (low, end) = match watermarks(run).await {
        Ok(found) => found,
        Err(error) => {
            sent.fetch_add(bytes, Ordering::Relaxed);
            *known = Some(topic);
            return Err(error);
        }
    };
    if topic == TopicBytes::default() {
        // What came before is not known.
        topic.grew(low, 0);
    }
    if bytes > 0 {
        topic.grew(end, bytes);
    }
    topic.trimmed(low);
    let held = topic.held(low);
    *known = Some(topic.clone());
    if topic != before {
        let catalog = &run.options.catalog;
        catalog
            .set_topic_bytes(run.mirror.id, run.mirror.generation, &topic)
            .await?;
    }
    Ok(held)
}

async fn counted(run: &Run) -> Result<TopicBytes> {
    let catalog = &run.options.catalog;
    let counted = catalog.topic_bytes(run.mirror.id, run.mirror.generation);
    Ok(counted.await?)
}

async fn watermarks(run: &Run) -> Result<(i64, i64)> {
    let topic = run.options.topics.changes(&run.mirror.slug);
    Ok(run.options.kafka.watermarks(&topic, 0).await?)
}

/// Whether there is room. Pure.
fn check(held: u64, max: u64) -> Result<()> {
    if held < max {
        return Ok(());
    }
    Err(Error::transient(format!(
        "capture stands still: the change topic holds {held} bytes, and topic_max_bytes is {max}. What it holds is not \
         applied yet or is needed by a table that is set aside, so nothing is dropped; the source keeps its WAL \
         meanwhile. Let the destination go on (resume, retry) or raise topic_max_bytes: capture goes on by itself"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_topic_says_the_cure() {
        assert!(check(99, 100).is_ok());
        let error = check(100, 100).unwrap_err();
        assert!(error.is_transient());
        assert!(error.to_string().contains("raise topic_max_bytes"));
    }
}
