//! Peers: the databases that mirrors connect. Passwords are sealed at rest.

use bunny_postgres::{ConnectOptions, SslMode};
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::mirrors::check_name;
use crate::{Catalog, Error, Result};

/// What the sealed password is, for [`crate::EncryptionKey`].
const PASSWORD: &str = "password of peer";

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
    /// Password.
    pub password: SecretString,
    /// Database.
    pub database: String,
    /// How TLS is used.
    pub ssl_mode: SslMode,
    /// Root certificates, PEM text.
    pub ssl_root_cert: Option<String>,
    /// Creation time, by the catalog's clock.
    pub created_at: DateTime<Utc>,
    /// Time of the last change, by the catalog's clock.
    pub updated_at: DateTime<Utc>,
}

impl Peer {
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

const COLUMNS: &str = "name, host, port, username, password, database, ssl_mode, ssl_root_cert, created_at, updated_at";

impl Catalog {
    /// Adds a peer. [`Error::Conflict`] if the name is taken.
    pub async fn create_peer(&self, peer: &NewPeer) -> Result<Peer> {
        check_name("name", &peer.name).map_err(Error::Invalid)?;
        let sealed = self.key().seal(PASSWORD, &peer.name, &peer.password)?;
        let row = sqlx::query(
            "INSERT INTO bunny.peers (name, host, port, username, password, database, ssl_mode, ssl_root_cert)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (name) DO NOTHING
             RETURNING name, host, port, username, password, database, ssl_mode, ssl_root_cert, created_at, updated_at",
        )
        .bind(&peer.name)
        .bind(&peer.host)
        .bind(i32::from(peer.port))
        .bind(&peer.user)
        .bind(sealed)
        .bind(&peer.database)
        .bind(peer.ssl_mode.as_str())
        .bind(&peer.ssl_root_cert)
        .fetch_optional(self.pool())
        .await
        .map_err(|error| Error::database("creating a peer", error))?;
        match row {
            Some(row) => self.peer_from(&row),
            None => Err(Error::conflict(format!(
                "peer \"{}\" exists already",
                peer.name
            ))),
        }
    }

    /// All peers by name.
    pub async fn list_peers(&self) -> Result<Vec<Peer>> {
        let sql = format!("SELECT {COLUMNS} FROM bunny.peers ORDER BY name");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(self.pool())
            .await
            .map_err(|error| Error::database("listing peers", error))?;
        rows.iter().map(|row| self.peer_from(row)).collect()
    }

    /// One peer. [`Error::NotFound`] if there is none of that name.
    pub async fn get_peer(&self, name: &str) -> Result<Peer> {
        let sql = format!("SELECT {COLUMNS} FROM bunny.peers WHERE name = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(name)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a peer", error))?
            .ok_or_else(|| Error::not_found("peer", name))?;
        self.peer_from(&row)
    }

    /// Removes a peer. [`Error::InUse`] while a mirror names it.
    pub async fn delete_peer(&self, name: &str) -> Result<()> {
        let deleted = sqlx::query("DELETE FROM bunny.peers WHERE name = $1")
            .bind(name)
            .execute(self.pool())
            .await;
        match deleted {
            Ok(done) if done.rows_affected() == 0 => Err(Error::not_found("peer", name)),
            Ok(_) => Ok(()),
            Err(error) if is_foreign_key_violation(&error) => Err(Error::InUse {
                what: "peer",
                name: name.to_owned(),
                users: self.mirrors_of_peer(name).await?,
            }),
            Err(error) => Err(Error::database("deleting a peer", error)),
        }
    }

    async fn mirrors_of_peer(&self, name: &str) -> Result<Vec<String>> {
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
            password: self.key().open(PASSWORD, &name, &sealed)?,
            database: row.try_get("database").map_err(unreadable)?,
            ssl_mode: ssl_mode
                .parse()
                .map_err(|error| Error::internal("reading a peer's ssl_mode", error))?,
            ssl_root_cert: row.try_get("ssl_root_cert").map_err(unreadable)?,
            created_at: row.try_get("created_at").map_err(unreadable)?,
            updated_at: row.try_get("updated_at").map_err(unreadable)?,
            name,
        })
    }
}

fn unreadable(error: sqlx::Error) -> Error {
    Error::database("reading a peer", error)
}

fn is_foreign_key_violation(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.is_foreign_key_violation())
}
