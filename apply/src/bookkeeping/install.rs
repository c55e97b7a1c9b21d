//! The schema itself.

use bunny_postgres::Session;

use crate::error::{Error, Result};

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

/// Creates the schema and its tables where missing. Safe to run concurrently.
pub async fn install(session: &Session) -> Result<()> {
    // The youngest of the tables: an older installation is completed.
    let is_complete = session
        .query_one("SELECT to_regclass('_bunny.shapes') IS NOT NULL", &[])
        .await
        .map_err(Error::sql(
            "looking for the schema _bunny at the destination",
        ))?;
    if is_complete.get(0) {
        return Ok(());
    }
    session
        .batch_execute(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({INSTALL_LOCK}); {INSTALL_SQL} COMMIT"
        ))
        .await
        .map_err(Error::sql(
            "creating the schema _bunny at the destination (its user needs CREATE on the database)",
        ))
}
