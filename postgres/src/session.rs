//! Ordinary (SQL) sessions.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use crate::{ConnectOptions, Error, Result, ResultExt, SslMode, describe, tls};

/// How long opening a session may take, from the name lookup to the first answer.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A silent peer is probed after this long, and given up after
/// `KEEPALIVE_RETRIES` probes: 15 s in all.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(6);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long sent bytes may stay unacknowledged. Linux counts a full receive window
/// too, so this must be longer than a server may sensibly stop reading in the middle
/// of a COPY (a row lock, a stalled disk).
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// The settings that decide how Postgres prints and reads values, and those that
/// would let a server give up on a long quiet session. Text that crosses from one
/// server to another must mean the same on both, so no role, database or server
/// default may reach it. `row_security = off` makes a policy that would hide rows an
/// error instead of silent loss; the transaction defaults are what our own statements
/// are written for.
const PINNED: [(&str, &str); 17] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("TimeZone", "UTC"),
    ("lc_monetary", "C"),
    ("search_path", "pg_catalog"),
    ("xmloption", "content"),
    ("array_nulls", "on"),
    ("row_security", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
];

/// The first version that has `transaction_timeout`; naming it in the start-up packet
/// of an older server would refuse the connection.
pub(crate) const TRANSACTION_TIMEOUT_SINCE: i32 = 170_000;

/// The pinned settings as start-up `options` (`-c DateStyle=ISO …`), for ordinary
/// and replication sessions alike. They win over `ALTER ROLE/DATABASE … SET`.
pub fn pinned_options() -> String {
    PINNED
        .map(|(name, value)| format!("-c {name}={}", value.replace(' ', "\\ ")))
        .join(" ")
}

/// An open SQL session with pinned settings. Dereferences to the driver's client;
/// for a transaction take `&mut` (or [`Session::client_mut`]).
///
/// Dropping it closes the socket at once, in the middle of whatever runs; the server
/// then rolls back. [`Session::close`] says good-bye first.
pub struct Session {
    client: Client,
    connection: AbortOnDropHandle<()>,
    backend_pid: i32,
    server_version_num: i32,
}

impl Session {
    /// Opens a session. `application_name` is cut by the server at 63 bytes.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server cannot be reached or refuses,
    /// [`Error::Timeout`] after 10 s, [`Error::Tls`] for unusable certificates.
    pub async fn connect(options: &ConnectOptions, application_name: &str) -> Result<Session> {
        let opening = Box::pin(Self::open(options, application_name));
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::Timeout {
                doing: format!("connecting to {}", options.target()),
                seconds: CONNECT_TIMEOUT.as_secs(),
            }),
        }
    }

    async fn open(options: &ConnectOptions, application_name: &str) -> Result<Session> {
        let config = driver_config(options, application_name);
        let refused = |source| Error::Connect {
            to: options.target(),
            user: options.user.clone(),
            source,
        };
        let (client, connection) = match tls::client_config(options)? {
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(refused)?;
                (client, spawn_connection(connection))
            }
            Some(tls_config) => {
                let connector = MakeRustlsConnect::new(tls_config);
                let (client, connection) = config.connect(connector).await.map_err(refused)?;
                (client, spawn_connection(connection))
            }
        };
        let mut session = Session {
            client,
            connection,
            backend_pid: 0,
            server_version_num: 0,
        };
        session.introduce().await?;
        Ok(session)
    }

    /// Learns who serves the session, and pins what the start-up packet could not.
    async fn introduce(&mut self) -> Result<()> {
        let row = self
            .client
            .query_one(
                "SELECT pg_backend_pid(), current_setting('server_version_num')::int4",
                &[],
            )
            .await
            .doing("asking a new session for its version")?;
        self.backend_pid = row.get(0);
        self.server_version_num = row.get(1);
        if self.server_version_num >= TRANSACTION_TIMEOUT_SINCE {
            self.batch("SET transaction_timeout = 0").await?;
        }
        Ok(())
    }

    /// Runs statements that take no parameters and whose rows do not matter.
    pub async fn batch(&self, sql: &str) -> Result<()> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|source| Error::Sql {
                doing: format!("running {:?}", shorten(sql)),
                source,
            })
    }

    /// The pid of the server process behind this session.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// `server_version_num`, for example 150010.
    pub fn server_version_num(&self) -> i32 {
        self.server_version_num
    }

    /// For [`Client::transaction`].
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Ends the session in order and waits (at most 2 s) until its socket is closed.
    pub async fn close(self) {
        let Session {
            client, connection, ..
        } = self;
        // The connection says good-bye and ends once its client is gone.
        drop(client);
        let _ = tokio::time::timeout(Duration::from_secs(2), connection).await;
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("backend_pid", &self.backend_pid)
            .field("server_version_num", &self.server_version_num)
            .finish_non_exhaustive()
    }
}

/// Which sessions [`terminate_sessions`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameMatch<'a> {
    /// `application_name` is this.
    Exact(&'a str),
    /// `application_name` starts with this.
    Prefix(&'a str),
}

impl<'a> From<&'a str> for NameMatch<'a> {
    fn from(name: &'a str) -> Self {
        NameMatch::Exact(name)
    }
}

impl<'a> From<&'a String> for NameMatch<'a> {
    fn from(name: &'a String) -> Self {
        NameMatch::Exact(name)
    }
}

/// Ends other sessions by their `application_name`, walsenders included, and waits up
/// to 5 s for each to be gone; returns their pids. A session that does not go in time
/// is logged, not an error: this only shortens a take-over, it does not fence.
///
/// The role must be the sessions' own, or a member of `pg_signal_backend`.
pub async fn terminate_sessions<'a>(
    session: &Session,
    name: impl Into<NameMatch<'a>>,
) -> Result<Vec<i32>> {
    let (condition, wanted) = match name.into() {
        NameMatch::Exact(wanted) => ("application_name = $1", wanted),
        NameMatch::Prefix(wanted) => ("starts_with(application_name, $1)", wanted),
    };
    // The name alone is filtered first, in a materialised list: the function call
    // must not be evaluated for any other session.
    let sql = format!(
        "WITH theirs AS MATERIALIZED (
             SELECT pid FROM pg_stat_activity WHERE {condition} AND pid <> pg_backend_pid()
         )
         SELECT pid, pg_terminate_backend(pid, 5000) FROM theirs"
    );
    let rows = session
        .query(&sql, &[&wanted])
        .await
        .doing(format!("ending the sessions named {wanted:?}"))?;
    let mut pids = Vec::with_capacity(rows.len());
    for row in rows {
        let (pid, gone): (i32, bool) = (row.get(0), row.get(1));
        if !gone {
            tracing::warn!(
                pid,
                application_name = wanted,
                "a session did not end within 5 s"
            );
        }
        pids.push(pid);
    }
    Ok(pids)
}

fn driver_config(options: &ConnectOptions, application_name: &str) -> Config {
    let mut config = Config::new();
    config
        .host(&options.host)
        .port(options.port)
        .user(&options.user)
        .password(options.password.expose_secret())
        .dbname(&options.database)
        .application_name(application_name)
        .options(pinned_options())
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES)
        .tcp_user_timeout(TCP_USER_TIMEOUT)
        .ssl_mode(match options.effective_ssl_mode() {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                tokio_postgres::config::SslMode::Require
            }
        });
    config
}

/// Sets on a socket of our own what the driver sets on its sockets.
pub(crate) fn keep_alive(tcp: &TcpStream) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(tcp);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}

/// Runs the connection in its own task, which ends with the session.
fn spawn_connection<S, T>(connection: tokio_postgres::Connection<S, T>) -> AbortOnDropHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        // Whoever uses the client gets the error too, with what was being done.
        if let Err(error) = connection.await {
            tracing::debug!(error = describe(&error), "a Postgres connection ended");
        }
    }))
}

/// The first 120 characters of a statement on one line, for messages.
fn shorten(sql: &str) -> String {
    let mut line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(120) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_options_are_one_line_of_settings() {
        let options = pinned_options();
        assert!(options.starts_with("-c DateStyle=ISO -c IntervalStyle=postgres "));
        assert!(options.contains("-c search_path=pg_catalog"));
        assert!(options.contains("-c default_transaction_isolation=read\\ committed "));
        let words = options.replace("\\ ", "_").split(' ').count();
        assert_eq!(words, PINNED.len() * 2);
    }

    #[test]
    fn long_statements_are_cut_at_a_character() {
        assert_eq!(shorten("SELECT\n  1"), "SELECT 1");
        let cut = shorten(&"ü".repeat(300));
        assert_eq!(cut.chars().count(), 121);
    }
}
