//! The servers that the tests of this crate are given.
#![allow(clippy::unwrap_used)]

use bunny_postgres::{ConnectOptions, SslMode};

/// From `DESTINATION_URL`.
pub fn destination() -> ConnectOptions {
    let url =
        std::env::var("DESTINATION_URL").expect("DESTINATION_URL names the server to test with");
    let config: tokio_postgres::Config = url.parse().expect("DESTINATION_URL is a connection URL");
    let host = match &config.get_hosts()[0] {
        tokio_postgres::config::Host::Tcp(host) => host.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    };
    let password = config.get_password().unwrap_or_default();
    ConnectOptions {
        host,
        port: config.get_ports().first().copied().unwrap_or(5432),
        user: config.get_user().unwrap_or("postgres").to_owned(),
        password: String::from_utf8_lossy(password).into_owned().into(),
        database: config.get_dbname().unwrap_or("postgres").to_owned(),
        ssl_mode: SslMode::Prefer,
        ssl_root_cert: None,
    }
}
