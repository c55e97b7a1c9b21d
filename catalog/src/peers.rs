//! Peers: the databases that mirrors connect. Passwords are sealed at rest.

use bunny_postgres::{ConnectOptions, SslMode};
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::mirrors::{check_name, notify};
use crate::{Catalog, Error, Result, audit};

/// What the sealed password is, for [`crate::EncryptionKey`].
pub(crate) const PASSWORD: &str = "password of peer";

/// Stands in place of a sealed password that nobody can open any more. Nothing sealed is empty.
pub(crate) const LOST: &[u8] = b"";

/// A database as a user described it. `Debug` hides the password.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Unique name.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password; `None` once it was lost with the key that sealed it.
    pub password: Option<SecretString>,
    /// Database.
    pub database: String,
    /// How TLS is used.
    pub ssl_mode: SslMode,
    /// Root certificates, PEM text.
    pub ssl_root_cert: Option<String>,
    /// Which database it is ([`NewPeer::identity`]), once seen.
    pub identity: Option<String>,
    /// Creation time, by the catalog's clock.
    pub created_at: DateTime<Utc>,
    /// Time of the last change, by the catalog's clock.
    pub updated_at: DateTime<Utc>,
}

impl Peer {
    /// What is needed to connect to it. [`Error::Invalid`] if its password is lost.
    pub fn connect_options(&self) -> Result<ConnectOptions> {
        let password = self.password.clone().ok_or_else(|| {
            Error::Invalid(format!(
                "the password of peer \"{0}\" was lost with the encryption key: give it again with PUT /v1/peers/{0}",
                self.name
            ))
        })?;
        Ok(ConnectOptions {
            host: self.host.clone(),
            port: self.port,
            user: self.user.clone(),
            password,
            database: self.database.clone(),
            ssl_mode: self.ssl_mode,
            ssl_root_cert: self.ssl_root_cert.clone(),
        })
    }
}

/// A peer as it is asked for.
#[derive(Debug, Clone)]
pub struct NewPeer {
    /// 1–63 letters, digits, `_` and `-`; unique.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password.
    pub password: SecretString,
    /// Database.
    pub database: String,
    /// How TLS is used.
    pub ssl_mode: SslMode,
    /// Root certificates, PEM text.
    pub ssl_root_cert: Option<String>,
    /// Which database this is, if it was asked: the server's system identifier and the
    /// database's oid. They stay when host, port or name change.
    pub identity: Option<String>,
}

impl NewPeer {
    /// What is needed to connect to it.
    pub fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            host: self.host.clone(),
            port: self.port,
            user: self.user.clone(),
            password: self.password.clone(),
            database: self.database.clone(),
            ssl_mode: self.ssl_mode,
            ssl_root_cert: self.ssl_root_cert.clone(),
        }
    }
}

impl Catalog {
    /// Adds a peer. [`Error::Conflict`] if the name is taken.
    pub async fn create_peer(&self, peer: &NewPeer, by: &str) -> Result<Peer> {
        check_name("name", &peer.name).map_err(Error::Invalid)?;
        let failed = |error| Error::database("creating a peer", error);
        let sealed = self.key().seal(PASSWORD, &peer.name, &peer.password)?;
        let mut transaction = self.begin().await.map_err(failed)?;
        self.check_key_is_current(&mut transaction).await?;
        let row = sqlx::query(
            "INSERT INTO bunny.peers (name, host, port, username, password, database, ssl_mode, ssl_root_cert, identity)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (name) DO NOTHING RETURNING *",
        )
        .bind(&peer.name)
        .bind(&peer.host)
        .bind(i32::from(peer.port))
        .bind(&peer.user)
        .bind(sealed)
        .bind(&peer.database)
        .bind(peer.ssl_mode.as_str())
        .bind(&peer.ssl_root_cert)
        .bind(&peer.identity)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        let Some(row) = row else {
            return Err(Error::conflict(format!(
                "peer \"{}\" exists already",
                peer.name
            )));
        };
        let details = audited(peer);
        audit::insert(&mut transaction, by, "create peer", &peer.name, &details).await?;
        transaction.commit().await.map_err(failed)?;
        self.peer_from(&row)
    }

    /// Describes a peer anew, and wakes the workers, whose tasks at it begin again with the
    /// new description. Another database is one that all its mirrors only write to and are among
    /// `progress_of`, those whose progress it holds. [`Error::NotFound`] if there is none of that
    /// name; [`Error::Conflict`] if mirrors use it and `peer` is not known to be their database.
    pub async fn update_peer(
        &self,
        peer: &NewPeer,
        progress_of: &[Uuid],
        by: &str,
    ) -> Result<Peer> {
        let failed = |error| Error::database("changing a peer", error);
        let sealed = self.key().seal(PASSWORD, &peer.name, &peer.password)?;
        let mut transaction = self.begin().await.map_err(failed)?;
        self.check_key_is_current(&mut transaction).await?;
        let known: Option<String> =
            sqlx::query_scalar("SELECT identity FROM bunny.peers WHERE name = $1 FOR UPDATE")
                .bind(&peer.name)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(failed)?
                .ok_or_else(|| Error::not_found("peer", &peer.name))?;
        // Asked once the lock is there: a mirror that was created meanwhile is among them.
        let row = sqlx::query(
            "SELECT EXISTS (SELECT FROM bunny.mirrors m WHERE $1 IN (m.source_peer, m.destination_peer)) AS used,
                    EXISTS (SELECT FROM bunny.mirrors m
                            WHERE m.source_peer = $1 OR (m.destination_peer = $1 AND m.id <> ALL ($2))) AS bound",
        )
        .bind(&peer.name)
        .bind(progress_of)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
        let used: bool = row.try_get("used").map_err(failed)?;
        let bound: bool = row.try_get("bound").map_err(failed)?;
        let is_other = known.is_some() && known != peer.identity;
        if used && (peer.identity.is_none() || is_other && bound) {
            return Err(Error::conflict(format!(
                "peer \"{}\" is used by mirrors and this is another database",
                peer.name
            )));
        }
        let row = sqlx::query(
            "UPDATE bunny.peers
             SET host = $2, port = $3, username = $4, password = $5, database = $6, ssl_mode = $7,
                 ssl_root_cert = $8, identity = $9, updated_at = clock_timestamp()
             WHERE name = $1 RETURNING *",
        )
        .bind(&peer.name)
        .bind(&peer.host)
        .bind(i32::from(peer.port))
        .bind(&peer.user)
        .bind(sealed)
        .bind(&peer.database)
        .bind(peer.ssl_mode.as_str())
        .bind(&peer.ssl_root_cert)
        .bind(&peer.identity)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
        let details = audited(peer);
        audit::insert(&mut transaction, by, "update peer", &peer.name, &details).await?;
        notify(&mut transaction).await?;
        transaction.commit().await.map_err(failed)?;
        self.peer_from(&row)
    }

    /// Remembers which database a peer is. Once mirrors use it, what was known stays.
    pub async fn note_identity(&self, name: &str, identity: &str) -> Result<()> {
        sqlx::query(
            "UPDATE bunny.peers SET identity = $2
             WHERE name = $1 AND (identity IS NULL OR NOT EXISTS (
                 SELECT FROM bunny.mirrors m WHERE $1 IN (m.source_peer, m.destination_peer)))",
        )
        .bind(name)
        .bind(identity)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("remembering which database a peer is", error))
    }

    /// All peers by name.
    pub async fn list_peers(&self) -> Result<Vec<Peer>> {
        let rows = sqlx::query("SELECT * FROM bunny.peers ORDER BY name")
            .fetch_all(self.pool())
            .await
            .map_err(|error| Error::database("listing peers", error))?;
        rows.iter().map(|row| self.peer_from(row)).collect()
    }

    /// One peer. [`Error::NotFound`] if there is none of that name.
    pub async fn get_peer(&self, name: &str) -> Result<Peer> {
        let row = sqlx::query("SELECT * FROM bunny.peers WHERE name = $1")
            .bind(name)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a peer", error))?
            .ok_or_else(|| Error::not_found("peer", name))?;
        self.peer_from(&row)
    }

    /// Removes a peer. [`Error::InUse`] while a mirror names it.
    pub async fn delete_peer(&self, name: &str, by: &str) -> Result<()> {
        let failed = |error| Error::database("deleting a peer", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let deleted = sqlx::query("DELETE FROM bunny.peers WHERE name = $1")
            .bind(name)
            .execute(&mut *transaction)
            .await;
        match deleted {
            Ok(done) if done.rows_affected() == 0 => return Err(Error::not_found("peer", name)),
            Ok(_) => {}
            Err(error) if is_foreign_key_violation(&error) => {
                drop(transaction);
                return Err(Error::InUse {
                    what: "peer",
                    name: name.to_owned(),
                    users: self.mirrors_of_peer(name).await?,
                });
            }
            Err(error) => return Err(failed(error)),
        }
        audit::insert(&mut transaction, by, "delete peer", name, &json!({})).await?;
        transaction.commit().await.map_err(failed)
    }

    /// The mirrors that name a peer, as `mirror "name"`.
    pub async fn mirrors_of_peer(&self, name: &str) -> Result<Vec<String>> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM bunny.mirrors WHERE source_peer = $1 OR destination_peer = $1 ORDER BY name",
        )
        .bind(name)
        .fetch_all(self.pool())
        .await
        .map_err(|error| Error::database("listing the mirrors of a peer", error))?;
        Ok(names
            .into_iter()
            .map(|mirror| format!("mirror \"{mirror}\""))
            .collect())
    }

    /// Another key is a fault of how this process was started, not of who asks for a peer.
    fn open_password(&self, name: &str, sealed: &[u8]) -> Result<Option<SecretString>> {
        if sealed == LOST {
            return Ok(None);
        }
        match self.key().open(PASSWORD, name, sealed) {
            Err(Error::Invalid(why)) => Err(Error::internal("reading a peer", why)),
            opened => opened.map(Some),
        }
    }

    fn peer_from(&self, row: &PgRow) -> Result<Peer> {
        let name: String = row.try_get("name").map_err(unreadable)?;
        let sealed: Vec<u8> = row.try_get("password").map_err(unreadable)?;
        let port: i32 = row.try_get("port").map_err(unreadable)?;
        let ssl_mode: String = row.try_get("ssl_mode").map_err(unreadable)?;
        Ok(Peer {
            host: row.try_get("host").map_err(unreadable)?,
            port: u16::try_from(port)
                .map_err(|error| Error::internal("reading a peer's port", error))?,
            user: row.try_get("username").map_err(unreadable)?,
            password: self.open_password(&name, &sealed)?,
            database: row.try_get("database").map_err(unreadable)?,
            ssl_mode: ssl_mode
                .parse()
                .map_err(|error| Error::internal("reading a peer's ssl_mode", error))?,
            ssl_root_cert: row.try_get("ssl_root_cert").map_err(unreadable)?,
            identity: row.try_get("identity").map_err(unreadable)?,
            created_at: row.try_get("created_at").map_err(unreadable)?,
            updated_at: row.try_get("updated_at").map_err(unreadable)?,
            name,
        })
    }
}

/// What of a peer is written down about who set it. The password is not.
fn audited(peer: &NewPeer) -> Value {
    json!({
        "host": peer.host,
        "port": peer.port,
        "user": peer.user,
        "database": peer.database,
        "ssl_mode": peer.ssl_mode,
    })
}

fn unreadable(error: sqlx::Error) -> Error {
    Error::database("reading a peer", error)
}

fn is_foreign_key_violation(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.is_foreign_key_violation())
}
