//! Pause and resume: wishes in the mirror's row, each with a durable command that ends when
//! every role it concerns has said that it acted.
//!
//! A role is told apart by its version ([`crate::Mirror::version_of`]): only the roles that
//! a command concerns are started anew, and only a task that was started for the command's
//! version or a later one ends it.

use serde_json::{Map, Value, json};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::leases::Role;
use crate::mirrors::{Desired, Mirror, PauseScope, notify, refuse_attached};
use crate::{Catalog, Error, Result, commands, replay};

impl Catalog {
    /// Asks for a mirror to be paused; returns the `pause` command. Asked again for the
    /// same, the same command. [`Error::Conflict`] while the mirror is being deleted.
    pub async fn request_pause(
        &self,
        name: &str,
        scope: PauseScope,
        requested_by: &str,
    ) -> Result<Uuid> {
        let wish = Wish {
            kind: "pause",
            desired: Desired::Paused,
            scope,
        };
        self.request(name, wish, requested_by).await
    }

    /// Asks for a paused mirror to go on; returns the `resume` command. Asked again, the
    /// same command. [`Error::Conflict`] if the mirror was never paused, or is being deleted.
    pub async fn request_resume(&self, name: &str, requested_by: &str) -> Result<Uuid> {
        let wish = Wish {
            kind: "resume",
            desired: Desired::Running,
            scope: PauseScope::Apply,
        };
        self.request(name, wish, requested_by).await
    }

    async fn request(&self, name: &str, wish: Wish, requested_by: &str) -> Result<Uuid> {
        let failed = |error| Error::database("pausing or resuming a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_mirror(&mut transaction, name).await?;
        if mirror.desired == Desired::Deleted {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is TERMINATING: it is being deleted and cannot {}",
                wish.kind
            )));
        }
        if wish.desired == Desired::Paused && wish.scope == PauseScope::All {
            let what = "{\"scope\": \"all\"} can be asked for there only; without it this mirror alone is paused";
            refuse_attached(&mirror, what)?;
        }
        let roles = wish.roles(&mirror);
        if roles.is_empty() {
            let last = last_command(&mut transaction, mirror.id).await?;
            return match last {
                Some((command_id, kind)) if kind == wish.kind => Ok(command_id),
                _ => Err(Error::conflict(format!(
                    "mirror \"{name}\" is not paused: there is nothing to resume"
                ))),
            };
        }
        sqlx::query(
            "UPDATE bunny.commands
             SET state = 'failed', error = 'another ' || $2 || ' was asked for before this was done',
                 updated_at = clock_timestamp(), finished_at = clock_timestamp()
             WHERE mirror_id = $1 AND kind IN ('pause', 'resume') AND state IN ('pending', 'running')",
        )
        .bind(mirror.id)
        .bind(wish.kind)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        let bump = |role| i64::from(roles.contains(&role));
        sqlx::query(
            "UPDATE bunny.mirrors
             SET desired = $2, pause_scope = $3, capture_version = capture_version + $4,
                 apply_version = apply_version + $5, updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(mirror.id)
        .bind(wish.desired.as_str())
        .bind(wish.scope.as_str())
        .bind(bump(Role::Capture))
        .bind(bump(Role::Apply))
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if wish.desired == Desired::Running {
            replay::let_go_on(&mut transaction, mirror.id).await?;
        }
        let versions: Map<String, Value> = roles
            .iter()
            .map(|role| {
                let version = mirror.version_of(*role) + 1;
                (role.as_str().to_owned(), json!(version))
            })
            .collect();
        let args = match wish.desired {
            Desired::Paused => json!({ "scope": wish.scope, "versions": versions }),
            _ => json!({ "versions": versions }),
        };
        let command_id = commands::insert(
            &mut transaction,
            mirror.id,
            name,
            wish.kind,
            &args,
            requested_by,
        )
        .await?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }

    /// Records that a role now does `desired`, as pause, resume and update commands up to its
    /// `version` asked for. A command ends when every role it concerns does its part.
    /// Saying so twice is nothing.
    pub async fn side_settled(
        &self,
        mirror_id: Uuid,
        role: Role,
        version: i64,
        desired: Desired,
    ) -> Result<()> {
        let failed = |error| Error::database("recording a pause or resume", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        sqlx::query(
            "UPDATE bunny.commands
             SET steps = steps || to_jsonb(concat($2, ' ', $4)),
                 state = 'running', updated_at = clock_timestamp()
             WHERE mirror_id = $1 AND kind IN ('pause', 'resume', 'update') AND state IN ('pending', 'running')
               AND (args -> 'versions' ->> $2)::bigint <= $3
               AND NOT EXISTS (SELECT FROM jsonb_array_elements_text(steps) AS s (step)
                               WHERE starts_with(s.step, $2 || ' '))",
        )
        .bind(mirror_id)
        .bind(role.as_str())
        .bind(version)
        .bind(desired.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        sqlx::query(
            "UPDATE bunny.commands
             SET state = 'done', updated_at = clock_timestamp(), finished_at = clock_timestamp()
             WHERE mirror_id = $1 AND kind IN ('pause', 'resume', 'update') AND state = 'running'
               AND jsonb_array_length(steps) = (SELECT count(*) FROM jsonb_object_keys(args -> 'versions'))",
        )
        .bind(mirror_id)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }
}

/// Pauses apply of a running mirror, with the `pause` command that says when it has stopped.
pub(crate) async fn pause_apply(
    connection: &mut PgConnection,
    mirror: &Mirror,
    requested_by: &str,
) -> Result<()> {
    let version = mirror.version_of(Role::Apply) + 1;
    sqlx::query(
        "UPDATE bunny.mirrors
         SET desired = 'paused', pause_scope = 'apply', apply_version = apply_version + 1,
             updated_at = clock_timestamp()
         WHERE id = $1",
    )
    .bind(mirror.id)
    .execute(&mut *connection)
    .await
    .map_err(|error| Error::database("pausing a mirror", error))?;
    let args = json!({ "scope": PauseScope::Apply, "versions": { Role::Apply.as_str(): version } });
    commands::insert(
        connection,
        mirror.id,
        &mirror.name,
        "pause",
        &args,
        requested_by,
    )
    .await?;
    Ok(())
}

struct Wish {
    kind: &'static str,
    desired: Desired,
    scope: PauseScope,
}

impl Wish {
    /// The roles for which it changes what is wanted of them. Pure.
    fn roles(&self, mirror: &Mirror) -> Vec<Role> {
        let mut wished = mirror.clone();
        wished.desired = self.desired;
        wished.pause_scope = self.scope;
        [Role::Capture, Role::Apply]
            .into_iter()
            .filter(|role| wished.desired_of(*role) != mirror.desired_of(*role))
            .collect()
    }
}

/// The newest pause or resume.
async fn last_command(
    connection: &mut PgConnection,
    mirror_id: Uuid,
) -> Result<Option<(Uuid, String)>> {
    let failed = |error| Error::database("looking for a pause or resume", error);
    let row: Option<PgRow> = sqlx::query(
        "SELECT id, kind FROM bunny.commands WHERE mirror_id = $1 AND kind IN ('pause', 'resume')
         ORDER BY created_at DESC, id LIMIT 1",
    )
    .bind(mirror_id)
    .fetch_optional(connection)
    .await
    .map_err(failed)?;
    row.map(|row| {
        Ok((
            row.try_get("id").map_err(failed)?,
            row.try_get("kind").map_err(failed)?,
        ))
    })
    .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirrors::tests::mirror;

    const PAUSE: Wish = Wish {
        kind: "pause",
        desired: Desired::Paused,
        scope: PauseScope::Apply,
    };
    const PAUSE_ALL: Wish = Wish {
        scope: PauseScope::All,
        ..PAUSE
    };
    const RESUME: Wish = Wish {
        kind: "resume",
        desired: Desired::Running,
        scope: PauseScope::Apply,
    };

    #[test]
    fn only_roles_whose_part_changes_are_concerned() {
        let mut mirror = mirror("m");
        assert_eq!(PAUSE.roles(&mirror), [Role::Apply]);
        assert_eq!(PAUSE_ALL.roles(&mirror), [Role::Capture, Role::Apply]);
        assert!(RESUME.roles(&mirror).is_empty());
        mirror.desired = Desired::Paused;
        assert!(PAUSE.roles(&mirror).is_empty());
        assert_eq!(PAUSE_ALL.roles(&mirror), [Role::Capture]);
        assert_eq!(RESUME.roles(&mirror), [Role::Apply]);
        mirror.pause_scope = PauseScope::All;
        assert_eq!(PAUSE.roles(&mirror), [Role::Capture]);
        assert_eq!(RESUME.roles(&mirror), [Role::Capture, Role::Apply]);
    }

    #[test]
    fn a_pause_of_apply_leaves_capture_alone() {
        let mut mirror = mirror("m");
        let (capture, apply) = (
            mirror.version_of(Role::Capture),
            mirror.version_of(Role::Apply),
        );
        mirror.apply_version += 1;
        assert_eq!(mirror.version_of(Role::Capture), capture);
        assert_eq!(mirror.version_of(Role::Apply), apply + 1);
        mirror.version += 1;
        assert_eq!(mirror.version_of(Role::Capture), capture + 1);
    }
}
