//! Changing the encryption key: every sealed value is opened with the present key and sealed
//! with the new one, in one transaction. A crash leaves all of them under one key or the other.

use sqlx::{PgConnection, Row as _};

use crate::settings::{KEY_CHECK, SETTING};
use crate::{Catalog, EncryptionKey, Error, Result, peers};

impl Catalog {
    /// Seals every secret with `new`; returns how many there are. Done again, it finds them
    /// sealed so. [`Error::Invalid`] if neither this catalog's key nor `new` is the one they
    /// are sealed with.
    pub async fn rotate_key(&self, new: &EncryptionKey) -> Result<usize> {
        let failed = |error| Error::database("changing the encryption key", error);
        let mut transaction = self.pool().begin().await.map_err(failed)?;
        // Nobody adds a secret under the old key meanwhile.
        sqlx::query("LOCK TABLE bunny.settings, bunny.peers IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let settings = self
            .reseal(&mut transaction, new, SETTING, "settings", "value")
            .await?;
        let passwords = self
            .reseal(&mut transaction, new, peers::PASSWORD, "peers", "password")
            .await?;
        transaction.commit().await.map_err(failed)?;
        tracing::info!(
            settings,
            passwords,
            "sealed the catalog's secrets with another key"
        );
        Ok(settings + passwords)
    }

    /// `table` and `column` are ours, never input.
    async fn reseal(
        &self,
        connection: &mut PgConnection,
        new: &EncryptionKey,
        what: &str,
        table: &str,
        column: &str,
    ) -> Result<usize> {
        let failed = |error| Error::database("changing the encryption key", error);
        let read = format!("SELECT name, {column} FROM bunny.{table}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(read))
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        for row in &rows {
            let name: String = row.try_get(0).map_err(failed)?;
            let sealed: Vec<u8> = row.try_get(1).map_err(failed)?;
            if new.has_sealed(&sealed) {
                continue;
            }
            let secret = self.key().open(what, &name, &sealed)?;
            let write = format!("UPDATE bunny.{table} SET {column} = $2 WHERE name = $1");
            sqlx::query(sqlx::AssertSqlSafe(write))
                .bind(&name)
                .bind(new.seal(what, &name, &secret)?)
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
        }
        Ok(rows.len())
    }

    /// Refuses to add a secret under a key that has been replaced since this process was
    /// started: nobody could read it. Holds off a rotation until the transaction ends.
    pub(crate) async fn check_key_is_current(&self, connection: &mut PgConnection) -> Result<()> {
        let sealed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT value FROM bunny.settings WHERE name = $1 FOR SHARE")
                .bind(KEY_CHECK)
                .fetch_optional(connection)
                .await
                .map_err(|error| Error::database("looking at the encryption key", error))?;
        if sealed.is_none_or(|sealed| self.key().has_sealed(&sealed)) {
            return Ok(());
        }
        Err(Error::conflict(
            "the encryption key was changed while this process ran: start it again with the new BUNNY_ENCRYPTION_KEY",
        ))
    }
}
