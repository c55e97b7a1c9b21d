//! `retry`: a failed mirror is tried again, and tables that were set aside come back.
//!
//! Only what is in trouble starts anew: a copy that capture has under way would begin again
//! from its first row for the sake of a table that apply has set aside.

use bunny_postgres::TableName;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::leases::Role;
use crate::mirrors::{Mirror, notify};
use crate::reports::{self, Reports, TableReport};
use crate::status::is_mute;
use crate::{Catalog, Error, Result, commands};

/// So long what apply has said of its tables is taken for what they are.
const FRESH_SECONDS: i64 = 5;

/// What the outcome says where no role was in trouble.
const NOTHING_TO_RETRY: &str =
    "nothing has failed and no table is set aside, so that no role was started anew";

impl Catalog {
    /// Asks workers to try a failed mirror again, and to bring back its tables that are
    /// set aside, or only `table`; returns the `retry` command, which ends when the roles
    /// concerned have started anew, and at once where none is. Asked again while it is open, the
    /// same command, carried out from its beginning: a role that is down must not keep the other
    /// from trying.
    /// [`Error::NotFound`] for a mirror, or a table of it, that does not exist; [`Error::Conflict`]
    /// while the mirror is being deleted.
    pub async fn request_retry(
        &self,
        name: &str,
        table: Option<&TableName>,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("retrying a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        let mirror_id = mirror.id;
        // A table comes back at the destination: capture need not begin anew for it.
        let roles = match table {
            Some(_) => vec![Role::Apply],
            None => in_trouble(&mirror, &reports::read(&mut *transaction, mirror_id).await?),
        };
        sqlx::query(
            "UPDATE bunny.mirrors SET capture_version = capture_version + $2,
                 apply_version = apply_version + $3, updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(mirror_id)
        .bind(i64::from(roles.contains(&Role::Capture)))
        .bind(i64::from(roles.contains(&Role::Apply)))
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        mark_tables(&mut transaction, mirror_id, name, table).await?;
        let versions: Map<String, Value> = roles
            .iter()
            .map(|role| {
                (
                    role.as_str().to_owned(),
                    json!(mirror.version_of(*role) + 1),
                )
            })
            .collect();
        let args = json!({ "versions": versions, "table_name": table.map(TableName::to_string) });
        let open: Option<Uuid> = sqlx::query_scalar(
            "UPDATE bunny.commands
             SET args = $2, steps = '[]', state = 'pending', updated_at = clock_timestamp()
             WHERE mirror_id = $1 AND kind = 'retry' AND state IN ('pending', 'running')
               AND args ->> 'table_name' IS NOT DISTINCT FROM $3
             RETURNING id",
        )
        .bind(mirror_id)
        .bind(&args)
        .bind(table.map(TableName::to_string))
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        let command_id = match open {
            Some(command_id) => command_id,
            None => {
                let by = requested_by;
                commands::insert(&mut transaction, mirror_id, name, "retry", &args, by).await?
            }
        };
        if roles.is_empty() {
            commands::finish_with(&mut transaction, command_id, Some(NOTHING_TO_RETRY)).await?;
        }
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }
}

/// The roles that are to start anew. What is not known counts as trouble; of apply that is all
/// that it has not said just now, for it loses nothing that it has loaded. Pure.
fn in_trouble(mirror: &Mirror, reports: &Reports) -> Vec<Role> {
    let (now, capture, apply) = (reports.read_at, &reports.capture, &reports.apply);
    let captures = mirror.owner.is_none()
        && (capture.failure.is_some() || capture.report.is_none() || is_mute(capture, mirror, now));
    let is_fresh = |at: DateTime<Utc>| (now - at).num_seconds() < FRESH_SECONDS;
    let fresh = apply.report.as_ref();
    let fresh = fresh.filter(|_| apply.reported_at.is_some_and(is_fresh));
    let is_aside = |table: &TableReport| ["ERRORED", "PARKED"].contains(&table.state.as_str());
    let is_well = fresh.is_some_and(|report| !report.tables.iter().any(is_aside));
    let roles = [
        (Role::Capture, captures),
        (Role::Apply, apply.failure.is_some() || !is_well),
    ];
    roles
        .into_iter()
        .filter_map(|(role, is_meant)| is_meant.then_some(role))
        .collect()
}

async fn mark_tables(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    mirror_name: &str,
    table: Option<&TableName>,
) -> Result<()> {
    let marked = sqlx::query(
        "UPDATE bunny.mirror_tables SET retry_id = $2
         WHERE mirror_id = $1
           AND ($3::text IS NULL OR (source_schema = $3 AND source_table = $4))",
    )
    .bind(mirror_id)
    .bind(Uuid::new_v4())
    .bind(table.map(|table| &table.schema))
    .bind(table.map(|table| &table.name))
    .execute(connection)
    .await
    .map_err(|error| Error::database("marking tables to be retried", error))?;
    match table {
        Some(table) if marked.rows_affected() == 0 => Err(Error::not_found(
            "table",
            format!("{table} in mirror {mirror_name}"),
        )),
        _ => Ok(()),
    }
}
