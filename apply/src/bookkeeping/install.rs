//! The schema itself.

use bunny_postgres::Session;

use crate::error::{Error, Result};
use crate::turns;

/// Serialises concurrent installations; any fixed number no one else uses.
const INSTALL_LOCK: i64 = 0x0062_756e_6e79;

const INSTALL_SQL: &str = include_str!("install.sql");

/// Whether the schema is there: only then is there anything to forget.
pub async fn is_installed(session: &Session) -> Result<bool> {
    let present = session
        .query_one("SELECT to_regclass('_bunny.chunks') IS NOT NULL", &[])
        .await
        .map_err(Error::sql(
            "looking for the schema _bunny at the destination",
        ))?;
    Ok(present.get(0))
}

/// Whether it is there as this version makes it: its youngest parts are looked for.
async fn is_up_to_date(session: &Session) -> Result<bool> {
    let found = session
        .query_one(
            "SELECT to_regclass('_bunny.objects') IS NOT NULL
                 AND to_regclass('_bunny.schema_syncs') IS NOT NULL
                 AND to_regclass('_bunny.retention') IS NOT NULL
                 AND EXISTS (
                 SELECT FROM pg_attribute WHERE attrelid = to_regclass('_bunny.owner')
                     AND attname = 'last_wish' AND NOT attisdropped)
                 AND EXISTS (
                 SELECT FROM pg_attribute WHERE attrelid = to_regclass('_bunny.tables')
                     AND attname = 'retry_id' AND NOT attisdropped)",
            &[],
        )
        .await
        .map_err(Error::sql(
            "looking at the schema _bunny at the destination",
        ))?;
    Ok(found.get(0))
}

/// Creates the schema and its tables where missing, and what earlier versions lacked.
/// Safe to run concurrently.
pub async fn install(session: &Session) -> Result<()> {
    if is_up_to_date(session).await? {
        return Ok(());
    }
    // What is there is said by the server with a notice each, and is as it should be.
    session
        .batch_execute(&format!(
            "BEGIN; SET LOCAL client_min_messages = warning; {wait}; {INSTALL_SQL} COMMIT",
            wait = turns::wait(INSTALL_LOCK)
        ))
        .await
        .map_err(Error::sql(
            "creating the schema _bunny at the destination (its user needs CREATE on the database)",
        ))
}
