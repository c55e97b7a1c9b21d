//! The writer works in replica role: the source has checked foreign keys and fired
//! triggers already, and the order between tables within a batch must not matter.

use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::routes::Routes;

const TRIGGERS_SQL: &str = "
SELECT DISTINCT c.oid::regclass::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE t.tgenabled IN ('O', 'A')
  AND c.oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
ORDER BY 1";

/// Enters replica role; without the permission, only if nothing would fire.
pub(super) async fn enter(client: &Client, routes: &Routes) -> Result<()> {
    let destinations = routes.iter().map(|(_, route)| route.destination.quoted());
    enter_for(client, &destinations.collect::<Vec<String>>()).await
}

/// The same for tables by their quoted names.
pub(crate) async fn enter_for(client: &Client, names: &[String]) -> Result<()> {
    let refused = match client
        .batch_execute("SET session_replication_role = replica")
        .await
    {
        Ok(()) => return Ok(()),
        Err(error) => Error::sql("entering replica role at the destination")(error),
    };
    if refused.sqlstate() != Some("42501") {
        return Err(refused);
    }
    let rows = client
        .query(TRIGGERS_SQL, &[&names])
        .await
        .map_err(Error::sql("looking for triggers at the destination"))?;
    if rows.is_empty() {
        return Ok(());
    }
    let tables: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Err(Error::Refused(format!(
        "the destination's user may not set session_replication_role, and these tables have foreign keys or enabled \
         triggers: {}. As a superuser of the destination run: GRANT SET ON PARAMETER session_replication_role TO \
         <the peer's user> (PostgreSQL 15 and later; before that the user must be a superuser)",
        tables.join(", ")
    )))
}
