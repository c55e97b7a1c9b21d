//! The handle: a small pool of connections to the catalog database.

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Executor as _, Postgres, Transaction};

use crate::{EncryptionKey, Error, Result};

/// Connections per process: two listeners, the loops of two roles, the API.
const CONNECTIONS_MAX: u32 = 10;
/// How long a caller waits for a connection before the catalog counts as away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// The channel that wakes workers.
const WAKE_CHANNEL: &str = "bunny_wake";
/// Guards the making of the schema when several processes start at once. Any
/// number will do that nobody else uses.
const MIGRATE_LOCK: i64 = 0x6275_6e6e_7963_6174;

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Where the catalog database is.
#[derive(Clone)]
pub enum Location {
    /// `postgres://user:password@host:port/database?sslmode=...`.
    Url(SecretString),
    /// The parts of it.
    Parts {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// User.
        user: String,
        /// Password, if one is needed.
        password: Option<SecretString>,
        /// Database.
        database: String,
    },
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Url(_) => f.write_str("Url(..)"),
            Location::Parts {
                host,
                port,
                user,
                database,
                ..
            } => write!(f, "{user}@{host}:{port}/{database}"),
        }
    }
}

impl Location {
    fn options(&self) -> Result<PgConnectOptions> {
        let options = match self {
            Location::Url(url) => {
                PgConnectOptions::from_str(url.expose_secret()).map_err(|error| {
                    Error::Invalid(format!("the catalog URL cannot be read: {error}"))
                })?
            }
            Location::Parts {
                host,
                port,
                user,
                password,
                database,
            } => {
                let options = PgConnectOptions::new()
                    .host(host)
                    .port(*port)
                    .username(user)
                    .database(database);
                match password {
                    Some(password) => options.password(password.expose_secret()),
                    None => options,
                }
            }
        };
        Ok(options.application_name("bunny catalog").options([
            ("statement_timeout", "30s"),
            ("search_path", "pg_catalog"),
            ("timezone", "UTC"),
        ]))
    }
}

/// Control-plane state in a Postgres database, schema `bunny`. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    pool: PgPool,
    key: EncryptionKey,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Catalog(..)")
    }
}

impl Catalog {
    /// A handle that connects when first used, so that a process can start
    /// while the catalog is away. Fails only on a location that cannot be read.
    pub fn open(location: &Location, key: EncryptionKey) -> Result<Catalog> {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(Duration::from_secs(300))
            .connect_lazy_with(location.options()?);
        Ok(Catalog { pool, key })
    }

    /// A handle that has answered once.
    pub async fn connect(location: &Location, key: EncryptionKey) -> Result<Catalog> {
        let catalog = Catalog::open(location, key)?;
        catalog.ping().await?;
        Ok(catalog)
    }

    /// Asks the database for a sign of life.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1")
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(|error| Error::database("asking for a sign of life", error))
    }

    /// Makes or updates schema `bunny`. Several processes may do so at once:
    /// an advisory lock lets one at a time. [`Error::Invalid`] if a newer release
    /// has changed the schema.
    pub async fn migrate(&self) -> Result<()> {
        let failed = |error| Error::database("migrating the catalog", error);
        // Not given back to the pool: its search path and lock end with it.
        let mut connection = self.pool.acquire().await.map_err(failed)?.detach();
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(MIGRATE_LOCK)
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        // sqlx keeps its own table where the search path points.
        connection
            .execute("CREATE SCHEMA IF NOT EXISTS bunny; SET search_path = bunny, pg_catalog")
            .await
            .map_err(failed)?;
        // `run` does the same through a trait that does not hold inside a spawned
        // future.
        let migrated = MIGRATOR.run_direct(None, &mut connection, false).await;
        // Closing releases the lock; an error of it changes nothing.
        let _ = connection.close().await;
        migrated.map_err(migration_failed)
    }

    /// Whether the schema is there and as this release needs it. Workers wait
    /// for that; they do not migrate.
    pub async fn is_migrated(&self) -> Result<bool> {
        let failed = |error| Error::database("looking at the catalog's schema", error);
        let there: bool =
            sqlx::query_scalar("SELECT to_regclass('bunny._sqlx_migrations') IS NOT NULL")
                .fetch_one(&self.pool)
                .await
                .map_err(failed)?;
        if !there {
            return Ok(false);
        }
        let done: Option<i64> =
            sqlx::query_scalar("SELECT max(version) FROM bunny._sqlx_migrations WHERE success")
                .fetch_one(&self.pool)
                .await
                .map_err(failed)?;
        let needed = MIGRATOR.iter().map(|migration| migration.version).max();
        Ok(done >= needed)
    }

    /// A listener for the notifications that wake workers.
    pub(crate) async fn listen(&self) -> Result<PgListener> {
        let failed = |error| Error::database("listening for notifications", error);
        let mut listener = PgListener::connect_with(&self.pool).await.map_err(failed)?;
        listener.listen(WAKE_CHANNEL).await.map_err(failed)?;
        Ok(listener)
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Begins a transaction. Whoever waits for it may be cancelled at any moment, as tasks of mirrors are and requests
    /// whose client has gone; a BEGIN that is on its way is not: sqlx would give the connection back to the pool with the
    /// transaction open (its guard only rolls back what it has counted), and whatever used that connection from then on
    /// would be neither seen by others nor kept, and hold its locks. Ended in a task of its own, it is rolled back.
    pub(crate) async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        let pool = self.pool.clone();
        #[expect(clippy::disallowed_methods, reason = "the one place that may")]
        let begun = tokio::spawn(async move { pool.begin().await });
        match begun.await {
            Ok(begun) => begun,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Only the end of the runtime cancels it.
            Err(_) => Err(sqlx::Error::PoolClosed),
        }
    }

    pub(crate) fn key(&self) -> &EncryptionKey {
        &self.key
    }
}

fn migration_failed(error: sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            Error::database("migrating the catalog", error)
        }
        MigrateError::VersionMissing(version) => Error::Invalid(format!(
            "the catalog was migrated to version {version} by a newer release: run that release"
        )),
        error => Error::internal("migrating the catalog", error),
    }
}
