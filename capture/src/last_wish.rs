//! What capture was last asked for, as the log remembers it: a catalog that does not know that
//! is older than the log, or another one, and is not followed (`bunny_catalog`'s `last_wish`).

use bunny_schemas::control::WishRecord;
use bunny_schemas::reader::{self, Positions};
use uuid::Uuid;

use crate::crash_points::{WISH_REMEMBERED, crash_point};
use crate::error::Result;
use crate::publisher::Publisher;
use crate::run::Run;
use crate::slot::Refusal;

/// Refuses to act for a catalog that does not know what the log was last told.
///
/// # Errors
/// [`Refusal::UnknownWish`].
pub(crate) async fn check(run: &Run, wish: Option<Uuid>) -> Result<()> {
    let Some(wish) = wish else { return Ok(()) };
    let catalog = &run.options.catalog;
    if catalog.knows_wish(run.mirror.id, wish).await? {
        return Ok(());
    }
    Err(Refusal::UnknownWish(wish).into())
}

/// Lets the log remember what is asked for now, before anyone acts on it.
pub(crate) async fn remember(
    run: &Run,
    known: Option<Uuid>,
    publisher: &mut Publisher,
) -> Result<()> {
    let wish = run.options.catalog.last_wish(run.mirror.id).await?;
    match wish.filter(|wish| Some(*wish) != known) {
        Some(command_id) => {
            publisher.remember(WishRecord { command_id }).await?;
            crash_point(WISH_REMEMBERED);
            Ok(())
        }
        None => Ok(()),
    }
}

/// What the position topic holds; nothing if there is no such topic.
pub(crate) async fn positions_if_any(run: &Run) -> Result<Positions> {
    let (kafka, topics) = (&run.options.kafka, &run.options.topics);
    let slug = &run.mirror.slug;
    match kafka.partitions(&topics.position(slug)).await? {
        Some(_) => Ok(reader::read_positions(kafka, topics, slug).await?),
        None => Ok(Positions::default()),
    }
}
