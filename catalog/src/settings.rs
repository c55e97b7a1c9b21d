//! Secrets of the installation, sealed in the catalog and shared by all
//! processes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngCore as _;
use secrecy::SecretString;

use crate::{Catalog, Error, Result};

/// What a sealed setting is, for [`crate::EncryptionKey`].
pub(crate) const SETTING: &str = "setting";
const JWT_SECRET: &str = "jwt_secret";
pub(crate) const KEY_CHECK: &str = "key_check";
/// What [`KEY_CHECK`] holds when it is opened.
pub(crate) const KNOWN: &str = "bunny";

impl Catalog {
    /// The secret that signs tokens: the given one, else one that is generated
    /// once and then shared by all replicas.
    pub async fn jwt_secret(&self, given: Option<SecretString>) -> Result<SecretString> {
        if let Some(given) = given {
            return Ok(given);
        }
        let mut bytes = [0_u8; 48];
        rand::rng().fill_bytes(&mut bytes);
        let fresh = SecretString::from(STANDARD.encode(bytes));
        self.setting_or(JWT_SECRET, &fresh).await
    }

    /// Fails with [`Error::Invalid`] if this process has another encryption key
    /// than the one the catalog was set up with.
    pub async fn check_key(&self) -> Result<()> {
        let known = SecretString::from(KNOWN);
        match self.setting_or(KEY_CHECK, &known).await {
            Ok(_) => Ok(()),
            Err(Error::Invalid(_)) => Err(Error::Invalid(
                "BUNNY_ENCRYPTION_KEY is not the key that this catalog was set up with, or last rotated to. If that one is lost for good, \"bunny rotate-key --lost\" sets another; the peers' passwords are lost with it, and are given again".into(),
            )),
            Err(error) => Err(error),
        }
    }

    /// The stored setting, or `fresh` if nobody has stored one before.
    async fn setting_or(&self, name: &str, fresh: &SecretString) -> Result<SecretString> {
        let failed = |error| Error::database("reading a setting", error);
        let sealed = self.key().seal(SETTING, name, fresh)?;
        sqlx::query(
            "INSERT INTO bunny.settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(sealed)
        .execute(self.pool())
        .await
        .map_err(failed)?;
        let stored: Vec<u8> =
            sqlx::query_scalar("SELECT value FROM bunny.settings WHERE name = $1")
                .bind(name)
                .fetch_one(self.pool())
                .await
                .map_err(failed)?;
        self.key().open(SETTING, name, &stored)
    }
}
