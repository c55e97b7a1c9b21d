//! Deleting a mirror: what is asked for, and what either side has done of it.

use serde_json::json;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::notify;
use crate::leases::Role;
use crate::{Catalog, Error, Result, commands, last_wish};

impl Catalog {
    /// Asks for a mirror to be taken down; returns the `delete` command. Asked
    /// again, the same command, which workers then try again at once. With `force`
    /// what cannot be reached is left behind; a later request can add that, none
    /// takes it back. Open commands of other kinds end as failed.
    pub async fn request_delete(
        &self,
        name: &str,
        keep_topics: bool,
        force: bool,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("deleting a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let row = sqlx::query("SELECT id, desired FROM bunny.mirrors WHERE name = $1 FOR UPDATE")
            .bind(name)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(failed)?
            .ok_or_else(|| Error::not_found("mirror", name))?;
        let mirror_id: Uuid = row.try_get("id").map_err(failed)?;
        let open: Option<Uuid> = sqlx::query_scalar(
            "SELECT id FROM bunny.commands
             WHERE mirror_id = $1 AND kind = 'delete' AND state IN ('pending', 'running')",
        )
        .bind(mirror_id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        let attached: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM bunny.mirrors WHERE source_mirror = $1 ORDER BY name",
        )
        .bind(mirror_id)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
        if !attached.is_empty() {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" feeds {}: delete them first, they read its topics",
                attached.join(", ")
            )));
        }
        if let Some(command_id) = open {
            last_wish::pass_over_noted(&mut transaction, mirror_id, command_id).await?;
            try_delete_again(&mut transaction, mirror_id, command_id, force).await?;
            transaction.commit().await.map_err(failed)?;
            return Ok(command_id);
        }
        sqlx::query(
            "UPDATE bunny.commands
             SET state = 'failed', error = 'the mirror was deleted',
                 updated_at = clock_timestamp(), finished_at = clock_timestamp()
             WHERE mirror_id = $1 AND state IN ('pending', 'running')",
        )
        .bind(mirror_id)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        sqlx::query(
            "UPDATE bunny.mirrors
             SET desired = 'deleted', keep_topics = $2,
                 version = version + 1, updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(mirror_id)
        .bind(keep_topics)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        let args = json!({ "keep_topics": keep_topics, "force": force });
        let command_id = commands::insert(
            &mut transaction,
            mirror_id,
            name,
            "delete",
            &args,
            requested_by,
        )
        .await?;
        last_wish::pass_over_noted(&mut transaction, mirror_id, command_id).await?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }

    /// Records that a role has taken down its side of a mirror being deleted.
    /// When both have, the mirror goes. Returns whether it is gone. Called by
    /// [`crate::supervise`] when a task ends as [`crate::Finished::Deleted`].
    pub async fn side_removed(&self, id: Uuid, role: Role) -> Result<bool> {
        let Some(command) = self.open_command(id, "delete").await? else {
            return Ok(self.get_mirror_by_id(id).await?.is_none());
        };
        if !is_removed(&command, role) {
            self.mark_step(command.id, removed_steps(role)[0]).await?;
        }
        let other = match role {
            Role::Capture => Role::Apply,
            Role::Apply => Role::Capture,
        };
        if !self.is_side_removed(id, other).await? {
            return Ok(false);
        }
        self.finish_delete(id).await?;
        Ok(true)
    }

    /// Whether a role has taken down its side of a mirror being deleted (or the
    /// mirror is gone): capture keeps the topics until apply has.
    pub async fn is_side_removed(&self, id: Uuid, role: Role) -> Result<bool> {
        let Some(mirror) = self.get_mirror_by_id(id).await? else {
            return Ok(true);
        };
        if role == Role::Capture && mirror.owner.is_some() {
            return Ok(true);
        }
        match self.open_command(id, "delete").await? {
            Some(command) => Ok(is_removed(&command, role)),
            None => Ok(false),
        }
    }

    /// Removes a mirror's rows and finishes its `delete` command.
    pub async fn finish_delete(&self, id: Uuid) -> Result<()> {
        let failed = |error| Error::database("removing a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        sqlx::query("DELETE FROM bunny.mirrors WHERE id = $1 AND desired = 'deleted'")
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        sqlx::query(
            "UPDATE bunny.commands
             SET state = 'done', updated_at = clock_timestamp(), finished_at = clock_timestamp()
             WHERE mirror_id = $1 AND kind = 'delete' AND state IN ('pending', 'running')",
        )
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        notify(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }
}

/// Wakes the workers of a mirror being deleted from whatever pause they make after a
/// failure.
async fn try_delete_again(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    command_id: Uuid,
    force: bool,
) -> Result<()> {
    let failed = |error| Error::database("deleting a mirror", error);
    if force {
        sqlx::query(
            "UPDATE bunny.commands SET args = args || '{\"force\": true}', updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(command_id)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    sqlx::query(
        "UPDATE bunny.mirrors SET version = version + 1, updated_at = clock_timestamp() WHERE id = $1",
    )
    .bind(mirror_id)
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    notify(connection).await
}

/// What says that a side of a `delete` command is done: it was cleaned, or left by force.
/// Capture ends the command itself when every other step is done, so its own says so only
/// where a worker died right after.
fn removed_steps(role: Role) -> &'static [&'static str] {
    match role {
        Role::Capture => &["mirror_removed"],
        Role::Apply => &["destination_clean", "destination_left"],
    }
}

/// Whether a `delete` command tells that the role has taken down its side. Pure.
pub(crate) fn is_removed(command: &commands::Command, role: Role) -> bool {
    let done = removed_steps(role);
    command
        .steps
        .iter()
        .any(|step| done.contains(&step.as_str()))
}
