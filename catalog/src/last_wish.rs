//! The last wish that was acted on, as Kafka and the destination remember it.
//!
//! Workers act on what the catalog asks for. A catalog that was restored from a backup asks for
//! what was asked for then: an older copy of a table, a generation that has had its time. So
//! both roles remember, each where its own truth lies, the last command that decided what is
//! copied, before they act on it. If the catalog does not know that command, it is older than
//! they are (or another one), and nobody acts for it until someone decides what goes on:
//! `adopt`, or a resync that begins everything anew (docs/adr/0038).

use sqlx::PgConnection;
use uuid::Uuid;

use crate::adopt::ADOPT;
use crate::replay::REPLAY;
use crate::tables::{RESYNC, TABLES};
use crate::{Catalog, Error, Result};

impl Catalog {
    /// The newest command of a mirror that decided what is copied.
    pub async fn last_wish(&self, mirror_id: Uuid) -> Result<Option<Uuid>> {
        let kinds = ["create", ADOPT, TABLES, RESYNC, REPLAY];
        sqlx::query_scalar(
            "SELECT id FROM bunny.commands WHERE mirror_id = $1 AND kind = ANY ($2)
             ORDER BY created_at DESC, id LIMIT 1",
        )
        .bind(mirror_id)
        .bind(&kinds[..])
        .fetch_optional(self.pool())
        .await
        .map_err(|error| Error::database("reading the last wish", error))
    }

    /// Whether a command was asked for here, or has been passed over since. If not, that it is
    /// unknown is noted.
    pub async fn knows_wish(&self, mirror_id: Uuid, command_id: Uuid) -> Result<bool> {
        let failed = |error| Error::database("looking for a wish", error);
        let is_known: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM bunny.commands WHERE id = $1)
                 OR EXISTS (SELECT FROM bunny.unknown_wishes
                            WHERE command_id = $1 AND passed_over_by IS NOT NULL)",
        )
        .bind(command_id)
        .fetch_one(self.pool())
        .await
        .map_err(failed)?;
        if is_known {
            return Ok(true);
        }
        sqlx::query(
            "INSERT INTO bunny.unknown_wishes (command_id, mirror_id) VALUES ($1, $2)
             ON CONFLICT (command_id) DO NOTHING",
        )
        .bind(command_id)
        .bind(mirror_id)
        .execute(self.pool())
        .await
        .map_err(failed)?;
        Ok(false)
    }

    /// What stood in the log before a mirror of this name was created is not this mirror's.
    pub async fn pass_over_wish(&self, mirror_id: Uuid, wish: Uuid, by: Uuid) -> Result<()> {
        let failed = |error| Error::database("passing over a wish", error);
        let mut connection = self.pool().acquire().await.map_err(failed)?;
        pass_over(&mut connection, mirror_id, &[wish], by).await
    }
}

/// What is unknown of a mirror has no say any more: `by` decides everything anew.
pub(crate) async fn pass_over_noted(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    by: Uuid,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.unknown_wishes SET passed_over_by = $2
         WHERE mirror_id = $1 AND passed_over_by IS NULL",
    )
    .bind(mirror_id)
    .bind(by)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("passing over unknown wishes", error))
}

/// The same for certain wishes, noted or not.
pub(crate) async fn pass_over(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    wishes: &[Uuid],
    by: Uuid,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO bunny.unknown_wishes (command_id, mirror_id, passed_over_by)
         SELECT DISTINCT wish, $2::uuid, $3::uuid FROM unnest($1::uuid[]) AS wish
         ON CONFLICT (command_id) DO UPDATE SET passed_over_by = excluded.passed_over_by",
    )
    .bind(wishes)
    .bind(mirror_id)
    .bind(by)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("passing over unknown wishes", error))
}

/// Whether something of the mirror is unknown, and nobody has decided yet what goes on.
pub(crate) async fn has_unknown(connection: &mut PgConnection, mirror_id: Uuid) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM bunny.unknown_wishes
                        WHERE mirror_id = $1 AND passed_over_by IS NULL)",
    )
    .bind(mirror_id)
    .fetch_one(connection)
    .await
    .map_err(|error| Error::database("looking for unknown wishes", error))
}
