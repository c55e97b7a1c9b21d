//! Changing the encryption key: every sealed value is opened with the present key and sealed
//! with the new one, in one transaction. A crash leaves all of them under one key or the other.
//!
//! Where the present key is lost, what it sealed is given up instead, by a request of its own.

use serde_json::json;
use sqlx::{PgConnection, Postgres, Row as _, Transaction};

use crate::settings::{KEY_CHECK, KNOWN, SETTING};
use crate::{Catalog, EncryptionKey, Error, Result, audit, peers};

/// What a change of the key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// So many secrets are sealed with the new key.
    pub sealed: usize,
    /// So many of them were before.
    pub before: usize,
}

impl Catalog {
    /// Seals every secret with `new`. Done again, it finds them sealed so. [`Error::Invalid`] if
    /// `new` is this catalog's key, or if neither of them is the one they are sealed with.
    pub async fn rotate_key(&self, new: &EncryptionKey) -> Result<Rotated> {
        if self.key().is(new) {
            return Err(Error::Invalid(
                "BUNNY_NEW_ENCRYPTION_KEY is the present key, BUNNY_ENCRYPTION_KEY: make another with \"bunny keygen\"".into(),
            ));
        }
        let failed = |error| Error::database("changing the encryption key", error);
        let mut transaction = self.hold_secrets().await?;
        let settings = self
            .reseal(&mut transaction, new, SETTING, "settings", "value")
            .await?;
        let passwords = self
            .reseal(&mut transaction, new, peers::PASSWORD, "peers", "password")
            .await?;
        let sealed = settings.sealed + passwords.sealed;
        let before = settings.before + passwords.before;
        if sealed > before {
            let (by, what) = ("bunny rotate-key", "encryption key");
            let details = json!({ "sealed": sealed - before });
            audit::insert(&mut transaction, by, "rotate", what, &details).await?;
        }
        transaction.commit().await.map_err(failed)?;
        tracing::info!(
            sealed,
            before,
            "the catalog's secrets are sealed with another key"
        );
        Ok(Rotated { sealed, before })
    }

    /// For when the present key is lost: `new` takes its place, and what `new` did not seal is
    /// given up. Returns the peers whose passwords have to be given again. Tokens are void, for
    /// the secret that signs them is made anew. [`Error::Invalid`] if this catalog's key is the
    /// present one: nothing is lost then.
    pub async fn lose_key(&self, new: &EncryptionKey) -> Result<Vec<String>> {
        let failed = |error| Error::database("giving up what a lost key sealed", error);
        let mut transaction = self.hold_secrets().await?;
        let rows = sqlx::query("SELECT name, value FROM bunny.settings")
            .fetch_all(&mut *transaction)
            .await
            .map_err(failed)?;
        for row in &rows {
            let name: String = row.try_get(0).map_err(failed)?;
            let sealed: Vec<u8> = row.try_get(1).map_err(failed)?;
            if new.has_sealed(&sealed) {
                continue;
            }
            if self.key().has_sealed(&sealed) {
                return Err(Error::Invalid(
                    "BUNNY_ENCRYPTION_KEY is the key of this catalog, so that nothing is lost: \"bunny rotate-key\" without --lost keeps all secrets".into(),
                ));
            }
            sqlx::query("DELETE FROM bunny.settings WHERE name = $1")
                .bind(&name)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        sqlx::query("INSERT INTO bunny.settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(KEY_CHECK)
            .bind(new.seal(SETTING, KEY_CHECK, &KNOWN.into())?)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let peers = give_up_passwords(&mut transaction, new).await?;
        transaction.commit().await.map_err(failed)?;
        Ok(peers)
    }

    /// Begins a transaction while which nobody adds a secret.
    async fn hold_secrets(&self) -> Result<Transaction<'static, Postgres>> {
        let failed = |error| Error::database("changing the encryption key", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        sqlx::query("LOCK TABLE bunny.settings, bunny.peers IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        Ok(transaction)
    }

    /// `table` and `column` are ours, never input. A password that is lost stays so.
    async fn reseal(
        &self,
        connection: &mut PgConnection,
        new: &EncryptionKey,
        what: &str,
        table: &str,
        column: &str,
    ) -> Result<Rotated> {
        let failed = |error| Error::database("changing the encryption key", error);
        let read = format!("SELECT name, {column} FROM bunny.{table}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(read))
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        let mut rotated = Rotated {
            sealed: 0,
            before: 0,
        };
        for row in &rows {
            let name: String = row.try_get(0).map_err(failed)?;
            let sealed: Vec<u8> = row.try_get(1).map_err(failed)?;
            if sealed == peers::LOST {
                continue;
            }
            rotated.sealed += 1;
            if new.has_sealed(&sealed) {
                rotated.before += 1;
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
        Ok(rotated)
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

/// Marks the passwords that `new` did not seal as lost; returns the peers of all that are.
async fn give_up_passwords(
    transaction: &mut PgConnection,
    new: &EncryptionKey,
) -> Result<Vec<String>> {
    let failed = |error| Error::database("giving up what a lost key sealed", error);
    let rows = sqlx::query("SELECT name, password FROM bunny.peers ORDER BY name")
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
    let mut lost = Vec::new();
    for row in &rows {
        let name: String = row.try_get(0).map_err(failed)?;
        let sealed: Vec<u8> = row.try_get(1).map_err(failed)?;
        if new.has_sealed(&sealed) {
            continue;
        }
        if sealed != peers::LOST {
            sqlx::query("UPDATE bunny.peers SET password = $2 WHERE name = $1")
                .bind(&name)
                .bind(peers::LOST)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
            let by = "bunny rotate-key --lost";
            audit::insert(&mut *transaction, by, "give up password", &name, &json!({})).await?;
        }
        lost.push(name);
    }
    Ok(lost)
}
