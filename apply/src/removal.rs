//! Deleting a mirror: its bookkeeping leaves the destination; the tables stay as they are.
//!
//! With the destination away the mirror stays TERMINATING, with the reason, until it is back
//! or the user says `?force=true`: then the rows of `_bunny` are left behind, and the command
//! tells how to remove them by hand.

use bunny_catalog::{Command, Finished, Mirror, MirrorContext};
use uuid::Uuid;

use crate::bookkeeping;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::mirror::connect_to_take_over;
use crate::swap;

/// The steps of a `delete` command, in the catalog's words.
const DESTINATION_CLEAN: &str = "destination_clean";
const DESTINATION_LEFT: &str = "destination_left";

pub(crate) async fn run(mirror: &Mirror, context: &MirrorContext) -> Result<Finished> {
    let Some(command) = context.catalog.open_command(mirror.id, "delete").await? else {
        // The command has ended, so both sides are gone.
        return Ok(Finished::Deleted);
    };
    if command.steps.iter().any(|step| step == DESTINATION_LEFT) {
        return Ok(Finished::Deleted);
    }
    match forget(mirror, context).await {
        Ok(()) => {
            reached(crash_points::REMOVAL_CLEAN);
            context
                .catalog
                .mark_step(command.id, DESTINATION_CLEAN)
                .await?;
            tracing::info!(mirror = %mirror.name, "nothing of the mirror is left in _bunny at the destination");
            Ok(Finished::Deleted)
        }
        Err(error @ Error::Fenced { .. }) => Err(error),
        Err(error) => leave(mirror, context, &command, &error).await,
    }
}

async fn leave(
    mirror: &Mirror,
    context: &MirrorContext,
    command: &Command,
    error: &Error,
) -> Result<Finished> {
    let left = left_at_destination(mirror.id);
    if command.args["force"] != true {
        return Err(Error::NotYet(format!(
            "the destination cannot be cleaned yet ({error}) and the mirror stays until it is; DELETE it again to try at once, or with ?force=true to leave behind: {left}"
        )));
    }
    let outcome = format!(
        "left at destination peer \"{}\", which could not be cleaned ({error}): {left}",
        mirror.destination_peer
    );
    tracing::warn!(mirror = %mirror.name, outcome, "deleting the mirror by force");
    context
        .catalog
        .leave_behind(command.id, DESTINATION_LEFT, &outcome)
        .await?;
    Ok(Finished::Deleted)
}

/// The statements that remove by hand what a mirror keeps at its destination. Pure.
fn left_at_destination(mirror_id: Uuid) -> String {
    format!(
        "{} {}",
        swap::dropping_by_hand(mirror_id),
        bookkeeping::forgetting_by_hand(&[mirror_id, swap::ledger_of(mirror_id)])
    )
}

async fn forget(mirror: &Mirror, context: &MirrorContext) -> Result<()> {
    let session = connect_to_take_over(mirror, context).await?;
    if !bookkeeping::is_installed(&session).await? {
        return Ok(());
    }
    // One of an older version may lack a table that is to be emptied.
    bookkeeping::install(&session).await?;
    let epoch = bookkeeping::take_over(&session, mirror).await?;
    let client: &tokio_postgres::Client = &session;
    // Who reads what a swap has left is waited for with the failure that this becomes, which shows.
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{}'",
            swap::LOCK_TIMEOUT
        ))
        .await
        .map_err(Error::sql("beginning to forget the mirror"))?;
    bookkeeping::fence(client, mirror.id, epoch).await?;
    swap::forget_all(client, mirror.id).await?;
    bookkeeping::forget_mirror(client, mirror.id).await?;
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("forgetting the mirror"))
}
