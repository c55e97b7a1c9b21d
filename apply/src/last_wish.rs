//! What apply was last asked for, as the destination and the log remember it: a catalog that does
//! not know that is older than they are, or another one, and is not followed (`bunny_catalog`'s
//! `last_wish`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bunny_catalog::{Mirror, MirrorContext, Owner};
use bunny_postgres::Session;
use bunny_schemas::reader::{self, Positions};
use uuid::Uuid;

use crate::bookkeeping::{self, Epoch};
use crate::crash_points::{self, reached};
use crate::error::{Error, Result, way_out};
use crate::mirror::Shared;

/// Refuses to act for a catalog that does not know what was asked for last, and lets the
/// destination remember what is asked for now, before anyone acts on it.
///
/// # Errors
/// [`Error::History`].
pub(crate) async fn check(
    shared: &Shared,
    mirror: &Mirror,
    context: &MirrorContext,
    session: &Session,
    epoch: Epoch,
) -> Result<()> {
    let here = bookkeeping::last_wish(session, mirror.id).await?;
    let in_log = positions_if_any(shared, mirror).await?.wish;
    let remembered = [("log", in_log), ("destination", here)];
    let now = match looked_up(mirror, context, remembered).await {
        Err(Error::Catalog(error)) if error.is_transient() => {
            let wishes = [in_log, here];
            if shared.known.has(mirror, &wishes) {
                tracing::info!(mirror = %mirror.name, %error, "going on without the catalog");
                return Ok(());
            }
            return Err(Error::Catalog(error));
        }
        answer => answer?,
    };
    if let Some(wish) = now.filter(|wish| here != Some(*wish)) {
        bookkeeping::set_last_wish(session, mirror.id, epoch, wish).await?;
        reached(crash_points::WISH_REMEMBERED);
    }
    shared.known.put(mirror, [in_log, here, now]);
    Ok(())
}

/// The newest wish, if the catalog knows those that are remembered.
async fn looked_up(
    mirror: &Mirror,
    context: &MirrorContext,
    remembered: [(&str, Option<Uuid>); 2],
) -> Result<Option<Uuid>> {
    let catalog = &context.catalog;
    for (place, wish) in remembered {
        let Some(wish) = wish else { continue };
        if !catalog.knows_wish(mirror.id, wish).await? {
            return Err(Error::History(unknown(mirror.owner.as_ref(), place, wish)));
        }
    }
    Ok(catalog.last_wish(mirror.id).await?)
}

/// A log that is another mirror's is not adopted here. Pure.
fn unknown(owner: Option<&Owner>, place: &str, wish: Uuid) -> String {
    let adopt = match owner {
        None => "POST …/adopt goes on from what the log and the destination hold, or ",
        Some(_) => "",
    };
    format!(
        "the {place} was last told by command {wish}, which this catalog does not know: it was restored from a backup that is older, or it is another installation's; {adopt}{}",
        way_out(owner)
    )
}

/// Which wishes the catalog knew when it was last asked, by mirror: while it is away, a run for
/// the same version of the mirror may begin without it.
#[derive(Default)]
pub(crate) struct Known(Mutex<Wishes>);

/// By mirror: its version then, and the wishes.
type Wishes = HashMap<Uuid, (i64, [Option<Uuid>; 3])>;

impl Known {
    fn put(&self, mirror: &Mirror, wishes: [Option<Uuid>; 3]) {
        self.lock().insert(mirror.id, (mirror.version, wishes));
    }

    fn has(&self, mirror: &Mirror, wishes: &[Option<Uuid>]) -> bool {
        let known = self.lock();
        let Some((version, known)) = known.get(&mirror.id) else {
            return false;
        };
        let mut wishes = wishes.iter().filter(|wish| wish.is_some());
        *version == mirror.version && wishes.all(|wish| known.contains(wish))
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the position topic holds; nothing if there is no such topic.
pub(crate) async fn positions_if_any(shared: &Shared, mirror: &Mirror) -> Result<Positions> {
    let (kafka, topics) = (&shared.kafka, &shared.topics);
    match kafka.partitions(&topics.position(&mirror.slug)).await? {
        Some(_) => Ok(reader::read_positions(kafka, topics, &mirror.slug).await?),
        None => Ok(Positions::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_of_a_log_is_told_to_adopt_it() {
        let said = unknown(None, "destination", Uuid::nil());
        assert!(
            said.contains("POST …/adopt") && said.contains("resync the mirror"),
            "{said}"
        );
        let owner = Owner {
            id: Uuid::nil(),
            name: "first".into(),
            slug: "first".into(),
            capture_paused: false,
        };
        let said = unknown(Some(&owner), "destination", Uuid::nil());
        assert!(
            !said.contains("adopt") && !said.contains("resync"),
            "{said}"
        );
        assert!(
            said.contains("\"first\"") && said.contains("attach it again"),
            "{said}"
        );
    }
}
