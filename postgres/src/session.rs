//! Ordinary sessions.

use std::ops::{Deref, DerefMut};

use tokio_postgres::Client;

use crate::{ConnectOptions, Error, Result};

/// An open session.
pub struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
    backend_pid: i32,
}

impl Session {
    /// Opens a session.
    pub async fn connect(_options: &ConnectOptions, _application_name: &str) -> Result<Session> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// Runs statements.
    pub async fn batch(&self, _sql: &str) -> Result<()> {
        Err(Error::Invalid("not written yet".to_owned()))
    }
    /// The pid of the session's server process.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }
    /// For transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
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
impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
/// The settings every session is pinned to.
pub fn pinned_options() -> String {
    String::new()
}
/// Ends other sessions whose application_name equals `name`, or starts with it.
pub async fn terminate_sessions(
    _session: &Session,
    _name: &str,
    _prefix: bool,
) -> Result<Vec<i32>> {
    Err(Error::Invalid("not written yet".to_owned()))
}
