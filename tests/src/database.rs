//! Connections of the tests themselves, and their databases.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::lsn::Lsn;

/// Settings under which both sides print a value the same way.
const PINNED: &str = "-c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=3 \
    -c bytea_output=hex -c TimeZone=UTC -c lc_monetary=C -c row_security=off \
    -c statement_timeout=0 -c lock_timeout=0";

/// Where a database is and who connects: `postgres://user:password@host:port/database`.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    pub user: String,
    pub password: String,
    pub host: String,
    pub port: u16,
    pub database: String,
}

impl Url {
    /// The same server, another database.
    pub fn with_database(&self, database: &str) -> Url {
        Url {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// The same database by way of another port, such as a proxy's.
    pub fn with_port(&self, port: u16) -> Url {
        Url {
            port,
            ..self.clone()
        }
    }

    /// Connects, with settings pinned as [`PINNED`] says.
    pub async fn connect(&self) -> anyhow::Result<Session> {
        let (client, connection) = tokio_postgres::Config::new()
            .user(&self.user)
            .password(&self.password)
            .host(&self.host)
            .port(self.port)
            .dbname(&self.database)
            .options(PINNED)
            .application_name("testkit")
            .connect_timeout(Duration::from_secs(10))
            .connect(NoTls)
            .await
            .with_context(|| format!("connecting to {self:?}"))?;
        let connection = tokio::spawn(async move {
            // A broken connection shows at the next query.
            let _ = connection.await;
        });
        Ok(Session { client, connection })
    }

    /// Connects, trying again for as long as the server is coming up.
    pub async fn connect_within(&self, limit: Duration) -> anyhow::Result<Session> {
        let deadline = Instant::now() + limit;
        loop {
            match self.connect().await {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Url> {
        let parse = || {
            let rest = text.strip_prefix("postgres://")?;
            let (credentials, place) = rest.split_once('@')?;
            let (user, password) = credentials.split_once(':')?;
            let (address, database) = place.split_once('/')?;
            let (host, port) = address.split_once(':')?;
            Some(Url {
                user: user.to_owned(),
                password: password.to_owned(),
                host: host.to_owned(),
                port: port.parse().ok()?,
                database: database.to_owned(),
            })
        };
        parse().context("a URL has the form postgres://user:password@host:port/database")
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Url {
            user,
            password,
            host,
            port,
            database,
        } = self;
        write!(out, "postgres://{user}:{password}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Url {
            user,
            host,
            port,
            database,
            ..
        } = self;
        write!(out, "postgres://{user}@{host}:{port}/{database}")
    }
}

/// A connection; ends when dropped.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Runs one or more statements.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        self.client
            .batch_execute(sql)
            .await
            .with_context(|| format!("running {sql}"))
    }

    /// The client as `&mut`, for transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// A single value, printed by Postgres as text (`sql` selects one column).
    pub async fn text(&self, sql: &str) -> anyhow::Result<String> {
        let messages = self
            .client
            .simple_query(sql)
            .await
            .with_context(|| format!("running {sql}"))?;
        for message in &messages {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                return Ok(row.get(0).unwrap_or("NULL").to_owned());
            }
        }
        anyhow::bail!("no row from {sql}")
    }

    /// The columns of a single row, printed by Postgres as text.
    pub async fn texts(&self, sql: String) -> anyhow::Result<Vec<String>> {
        let messages = self
            .client
            .simple_query(&sql)
            .await
            .with_context(|| format!("running {sql}"))?;
        for message in &messages {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                let cells = (0..row.len()).map(|column| row.get(column).unwrap_or("NULL"));
                return Ok(cells.map(str::to_owned).collect());
            }
        }
        anyhow::bail!("no row from {sql}")
    }

    /// A single number.
    pub async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let text = self.text(sql).await?;
        text.parse()
            .with_context(|| format!("{sql} answered '{text}'"))
    }

    /// A position past everything committed so far.
    pub async fn current_lsn(&self) -> anyhow::Result<Lsn> {
        self.text("SELECT pg_current_wal_lsn()").await?.parse()
    }
}

/// `"name"`, quoted.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
