//! `_bunny.owner`: which worker may write for a mirror (I7).

use std::time::Duration;

use bunny_catalog::Mirror;
use bunny_postgres::Session;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::context::{application_name, application_name_prefix};
use crate::error::{Error, Result, owner_missing};

/// How long a take-over waits for a frozen owner's row lock before it terminates again.
const TAKE_OVER_LOCK_TIMEOUT: Duration = Duration::from_secs(3);
const TAKE_OVER_ATTEMPTS_MAX: u32 = 5;

/// The number that says who may write: raised by one at each take-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub i64);

/// Makes this session's worker the owner: terminates the former owner's sessions (a
/// frozen process keeps its locks), raises the epoch, renames the session after it.
pub async fn take_over(session: &Session, mirror: &Mirror) -> Result<Epoch> {
    session
        .execute(
            "INSERT INTO _bunny.owner (mirror_id, mirror_name, epoch) VALUES ($1, $2, 0)
             ON CONFLICT (mirror_id) DO NOTHING",
            &[&mirror.id, &mirror.name],
        )
        .await
        .map_err(Error::sql("creating the owner row"))?;

    let mut attempt = 0;
    let epoch = loop {
        attempt += 1;
        terminate_former(session, mirror.id, None).await?;
        match raise_epoch(session, mirror).await {
            Ok(epoch) => break epoch,
            Err(error) if error.is_transient() && attempt < TAKE_OVER_ATTEMPTS_MAX => {
                let _ = session.batch_execute("ROLLBACK").await;
                tracing::info!(mirror = %mirror.name, %error, "the owner row is still locked, trying again");
            }
            Err(error) => return Err(error),
        }
    };
    // Sessions the former owner opened between the two statements above.
    terminate_former(session, mirror.id, Some(epoch)).await?;
    let name = application_name(mirror.id, epoch);
    session
        .query("SELECT set_config('application_name', $1, false)", &[&name])
        .await
        .map_err(Error::sql("naming the session"))?;
    Ok(epoch)
}

/// On disk when it returns: an epoch that a crash of the destination took back would be given
/// to another owner again.
async fn raise_epoch(session: &Session, mirror: &Mirror) -> Result<Epoch> {
    session
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL synchronous_commit = on",
            TAKE_OVER_LOCK_TIMEOUT.as_millis()
        ))
        .await
        .map_err(Error::sql("beginning a take-over"))?;
    let row = session
        .query_one(
            "UPDATE _bunny.owner SET epoch = epoch + 1, mirror_name = $2 WHERE mirror_id = $1 RETURNING epoch",
            &[&mirror.id, &mirror.name],
        )
        .await
        .map_err(Error::sql("raising the owner epoch"))?;
    session
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing a take-over"))?;
    Ok(Epoch(row.get(0)))
}

/// Terminates the sessions of earlier epochs; without `below`, those of every epoch.
async fn terminate_former(session: &Session, mirror_id: Uuid, below: Option<Epoch>) -> Result<()> {
    let prefix = application_name_prefix(mirror_id);
    let below = below.map_or(i64::MAX, |epoch| epoch.0);
    let rows = session
        .query(
            "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE pid <> pg_backend_pid() AND datname = current_database() AND usename = current_user
               AND starts_with(application_name, $1)
               AND substr(application_name, length($1) + 1) ~ '^[0-9]{1,18}$'
               AND CASE WHEN substr(application_name, length($1) + 1) ~ '^[0-9]{1,18}$'
                        THEN substr(application_name, length($1) + 1)::bigint END < $2",
            &[&prefix, &below],
        )
        .await
        .map_err(Error::sql("terminating the former owner's sessions"))?;
    for row in rows {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        tracing::info!(pid, session = %name, "terminated a former owner's session");
    }
    Ok(())
}

/// The last command that decided what is copied and that apply has begun to act on here.
pub async fn last_wish(session: &Session, mirror_id: Uuid) -> Result<Option<Uuid>> {
    let row = session
        .query_opt(
            "SELECT last_wish FROM _bunny.owner WHERE mirror_id = $1",
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("reading the last wish"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Nothing if another has taken over: the next transaction finds that out.
pub async fn set_last_wish(
    session: &Session,
    mirror_id: Uuid,
    epoch: Epoch,
    wish: Uuid,
) -> Result<()> {
    session
        .execute(
            "UPDATE _bunny.owner SET last_wish = $3 WHERE mirror_id = $1 AND epoch = $2",
            &[&mirror_id, &epoch.0, &wish],
        )
        .await
        .map(|_| ())
        .map_err(Error::sql("remembering the last wish"))
}

pub(super) const FENCE_SQL: &str = "SELECT epoch FROM _bunny.owner WHERE mirror_id = $1 FOR SHARE";

/// The first statement of every destination transaction: we are still the owner, and
/// stay so until it ends (a take-over waits for the row lock).
pub async fn fence<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    epoch: Epoch,
) -> Result<()> {
    let row = client
        .query_opt(FENCE_SQL, &[&mirror_id])
        .await
        .map_err(Error::sql("checking the owner epoch"))?;
    check_fence(row, mirror_id, epoch)
}

pub(super) fn check_fence(row: Option<Row>, mirror_id: Uuid, epoch: Epoch) -> Result<()> {
    let found: i64 = row.ok_or_else(|| owner_missing(mirror_id))?.get(0);
    if found != epoch.0 {
        return Err(Error::Fenced {
            ours: epoch.0,
            found,
        });
    }
    Ok(())
}
