//! Users and their password hashes (argon2id).

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use rand::RngCore as _;
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::{Catalog, Error, Result, audit};

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UserRole {
    /// Everything.
    Admin,
    /// Look.
    Viewer,
}

impl UserRole {
    /// The text that tokens and the catalog hold.
    pub fn as_str(self) -> &'static str {
        match self {
            UserRole::Admin => "admin",
            UserRole::Viewer => "viewer",
        }
    }

    /// Reads that text.
    pub fn parse(text: &str) -> Option<UserRole> {
        match text {
            "admin" => Some(UserRole::Admin),
            "viewer" => Some(UserRole::Viewer),
            _ => None,
        }
    }
}

/// A user, without the password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Unique name.
    pub username: String,
    /// What the user may do.
    pub role: UserRole,
    /// Tokens of another version are void.
    pub token_version: i32,
    /// By the catalog's clock.
    pub created_at: DateTime<Utc>,
}

impl Catalog {
    /// Makes the first administrator if no user is one. Returns the password
    /// if it was generated, to be printed once. With an administrator there,
    /// nothing is changed: neither a changed password nor a deleted user comes
    /// back because of a setting.
    pub async fn ensure_admin(
        &self,
        username: &str,
        password: Option<&SecretString>,
    ) -> Result<Option<SecretString>> {
        let there: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM bunny.users WHERE role = 'admin')")
                .fetch_one(self.pool())
                .await
                .map_err(|error| Error::database("looking for an administrator", error))?;
        if there {
            return Ok(None);
        }
        let generated = match password {
            Some(_) => None,
            None => Some(generate_password()),
        };
        let Some(chosen) = password.or(generated.as_ref()) else {
            return Ok(None);
        };
        let hash = hash(chosen.clone()).await?;
        // Of several processes that start at once only one makes the user, and
        // only its password counts.
        let made = sqlx::query(
            "INSERT INTO bunny.users (username, role, password_hash) VALUES ($1, 'admin', $2)
             ON CONFLICT (username) DO NOTHING",
        )
        .bind(username)
        .bind(hash)
        .execute(self.pool())
        .await
        .map_err(|error| Error::database("creating the first administrator", error))?;
        if made.rows_affected() == 0 {
            return Ok(None);
        }
        Ok(generated)
    }

    /// The user, if name and password belong together. Takes as long for an
    /// unknown name as for a wrong password.
    pub async fn verify_user(
        &self,
        username: &str,
        password: &SecretString,
    ) -> Result<Option<User>> {
        let row = sqlx::query("SELECT * FROM bunny.users WHERE username = $1")
            .bind(username)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a user", error))?;
        let Some(row) = row else {
            hash(password.clone()).await?;
            return Ok(None);
        };
        let stored: String = row
            .try_get("password_hash")
            .map_err(|error| Error::database("reading a user", error))?;
        if !matches(password.clone(), stored).await? {
            return Ok(None);
        }
        user_from(&row).map(Some)
    }

    /// The user of that name. [`Error::NotFound`] if there is none.
    pub async fn get_user(&self, username: &str) -> Result<User> {
        let row = sqlx::query("SELECT * FROM bunny.users WHERE username = $1")
            .bind(username)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a user", error))?
            .ok_or_else(|| Error::not_found("user", username))?;
        user_from(&row)
    }

    /// All users by name.
    pub async fn list_users(&self) -> Result<Vec<User>> {
        let rows = sqlx::query("SELECT * FROM bunny.users ORDER BY username")
            .fetch_all(self.pool())
            .await
            .map_err(|error| Error::database("listing users", error))?;
        rows.iter().map(user_from).collect()
    }

    /// Removes a user, whose tokens are void from then on. [`Error::Conflict`] if it is the
    /// last administrator, or `by` itself.
    pub async fn delete_user(&self, username: &str, by: &str) -> Result<()> {
        let failed = |error| Error::database("deleting a user", error);
        if username == by {
            return Err(Error::conflict(
                "nobody deletes their own user: ask another administrator",
            ));
        }
        let mut transaction = self.begin().await.map_err(failed)?;
        // Locked, so that two administrators who delete each other do not both succeed.
        let admins: Vec<String> = sqlx::query_scalar(
            "SELECT username FROM bunny.users WHERE role = 'admin' ORDER BY username FOR UPDATE",
        )
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
        if admins.iter().all(|admin| admin == username) {
            return Err(Error::conflict(format!(
                "user \"{username}\" is the last administrator: make another one first"
            )));
        }
        let deleted = sqlx::query("DELETE FROM bunny.users WHERE username = $1")
            .bind(username)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        if deleted.rows_affected() == 0 {
            return Err(Error::not_found("user", username));
        }
        audit::insert(&mut transaction, by, "delete user", username, &json!({})).await?;
        transaction.commit().await.map_err(failed)
    }

    /// Sets a user's own password; every token issued before is void from then on. Returns
    /// the user as it is now. [`Error::NotFound`] if there is none.
    pub async fn change_password(&self, username: &str, password: &SecretString) -> Result<User> {
        let failed = |error| Error::database("changing a password", error);
        let hash = hash(password.clone()).await?;
        let mut transaction = self.begin().await.map_err(failed)?;
        let row = sqlx::query(
            "UPDATE bunny.users
             SET password_hash = $2, token_version = nextval('bunny.token_versions'),
                 updated_at = clock_timestamp()
             WHERE username = $1 RETURNING *",
        )
        .bind(username)
        .bind(hash)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?
        .ok_or_else(|| Error::not_found("user", username))?;
        audit::insert(
            &mut transaction,
            username,
            "change password",
            username,
            &json!({}),
        )
        .await?;
        transaction.commit().await.map_err(failed)?;
        user_from(&row)
    }

    /// Adds a user. [`Error::Conflict`] if the name is taken.
    pub async fn create_user(
        &self,
        username: &str,
        role: UserRole,
        password: &SecretString,
        by: &str,
    ) -> Result<User> {
        let failed = |error| Error::database("creating a user", error);
        let hash = hash(password.clone()).await?;
        let mut transaction = self.begin().await.map_err(failed)?;
        let row = sqlx::query(
            "INSERT INTO bunny.users (username, role, password_hash) VALUES ($1, $2, $3)
             ON CONFLICT (username) DO NOTHING RETURNING *",
        )
        .bind(username)
        .bind(role.as_str())
        .bind(hash)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        let Some(row) = row else {
            return Err(Error::conflict(format!(
                "user \"{username}\" exists already"
            )));
        };
        let details = json!({ "role": role });
        audit::insert(&mut transaction, by, "create user", username, &details).await?;
        transaction.commit().await.map_err(failed)?;
        user_from(&row)
    }
}

fn user_from(row: &PgRow) -> Result<User> {
    let read = |error| Error::database("reading a user", error);
    let role: String = row.try_get("role").map_err(read)?;
    Ok(User {
        username: row.try_get("username").map_err(read)?,
        role: UserRole::parse(&role)
            .ok_or_else(|| Error::internal("reading a user's role", &role))?,
        token_version: row.try_get("token_version").map_err(read)?,
        created_at: row.try_get("created_at").map_err(read)?,
    })
}

/// 24 characters, 144 random bits.
fn generate_password() -> SecretString {
    let mut bytes = [0_u8; 18];
    rand::rng().fill_bytes(&mut bytes);
    SecretString::from(URL_SAFE_NO_PAD.encode(bytes))
}

/// Hashing takes tens of milliseconds of CPU, so it leaves the async threads.
async fn hash(password: SecretString) -> Result<String> {
    let hashed = tokio::task::spawn_blocking(move || {
        Argon2::default()
            .hash_password(password.expose_secret().as_bytes())
            .map(|hash| hash.to_string())
            .map_err(|error| Error::internal("hashing a password", error))
    });
    hashed
        .await
        .map_err(|error| Error::internal("hashing a password", error))?
}

async fn matches(password: SecretString, stored: String) -> Result<bool> {
    let verified = tokio::task::spawn_blocking(move || {
        let stored = PasswordHash::new(&stored)
            .map_err(|error| Error::internal("reading a password hash", error))?;
        let same = Argon2::default()
            .verify_password(password.expose_secret().as_bytes(), &stored)
            .is_ok();
        Ok(same)
    });
    verified
        .await
        .map_err(|error| Error::internal("verifying a password", error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_knows_its_password_only() {
        let hash = hash(SecretString::from("right")).await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(matches("right".into(), hash.clone()).await.unwrap());
        assert!(!matches("wrong".into(), hash).await.unwrap());
    }

    #[test]
    fn generated_passwords_are_long_and_differ() {
        let one = generate_password();
        assert_eq!(one.expose_secret().len(), 24);
        assert_ne!(one.expose_secret(), generate_password().expose_secret());
    }
}
