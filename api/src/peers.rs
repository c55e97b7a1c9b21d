//! Peers: the databases that mirrors connect. Passwords go in and never come out.

mod change;
mod readiness;

pub(crate) use change::replace;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::{NewPeer, Peer, check_name};
use bunny_postgres::{SslMode, TableSummary, introspect};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Created, Message, Under};
use crate::auth::Caller;
use crate::mirror_validation::facts::{PeerFacts, open};
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields, Path};
use crate::state::Api;

const PORT_DEFAULT: u32 = 5432;

/// A peer, without its password.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Peer")]
pub(crate) struct Shown {
    #[schemars(example = &"source_db")]
    name: String,
    host: String,
    port: u16,
    user: String,
    database: String,
    ssl_mode: SslMode,
    /// Certificates to trust, as PEM text.
    ssl_root_cert: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// A peer that was created or described anew.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "StoredPeer")]
pub(crate) struct Stored {
    message: String,
    #[serde(flatten)]
    peer: Shown,
}

/// `GET /v1/peers`.
pub(crate) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<Shown>>> {
    let peers = api.catalog.list_peers().await?;
    Ok(Json(peers.iter().map(view).collect()))
}

/// `GET /v1/peers/{name}`.
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Shown>> {
    let peer = api.catalog.get_peer(&name).await?;
    Ok(Json(view(&peer)))
}

/// `POST /v1/peers`. The server is not asked: it may still be on its way up.
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Created<Stored>> {
    let wanted = read(fields, None)?;
    let peer = api.catalog.create_peer(&wanted, &caller.username).await?;
    Ok(Under(Stored {
        message: format!("Peer '{}' created successfully", peer.name),
        peer: view(&peer),
    }))
}

/// `DELETE /v1/peers/{name}`; 409 while a mirror uses it.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
) -> Result<Json<Message>> {
    match api.catalog.delete_peer(&name, &caller.username).await {
        Ok(()) => Ok(Json(Message {
            message: format!("Peer '{name}' deleted successfully"),
        })),
        Err(error @ bunny_catalog::Error::InUse { .. }) => {
            Err(Refusal::conflict(format!("{error}; delete that first")))
        }
        Err(error) => Err(error.into()),
    }
}

/// `POST /v1/peers/{name}/test`: whether it can be reached, and what it is ready for.
pub(crate) async fn test(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<readiness::Tested>> {
    let peer = api.catalog.get_peer(&name).await?;
    let asked = match open(&peer).await {
        Ok(session) => PeerFacts::gather(&session, &peer).await,
        Err(error) => Err(error),
    };
    Ok(Json(match asked {
        Ok(facts) => readiness::describe(&facts),
        Err(error) => readiness::Tested::failed(&error),
    }))
}

/// `GET /v1/peers/{name}/tables`.
pub(crate) async fn tables(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<TableSummary>>> {
    let peer = api.catalog.get_peer(&name).await?;
    let failed = |error: bunny_postgres::Error| {
        Refusal::unprocessable(format!(
            "peer '{name}' could not list its tables: {error}; check it with POST /v1/peers/{name}/test"
        ))
    };
    let session = open(&peer).await.map_err(failed)?;
    let tables = introspect::list_tables(&session).await.map_err(failed)?;
    Ok(Json(tables))
}

fn view(peer: &Peer) -> Shown {
    Shown {
        name: peer.name.clone(),
        host: peer.host.clone(),
        port: peer.port,
        user: peer.user.clone(),
        database: peer.database.clone(),
        ssl_mode: peer.ssl_mode,
        ssl_root_cert: peer.ssl_root_cert.clone(),
        created_at: peer.created_at,
        updated_at: peer.updated_at,
    }
}

/// Reads a peer; `known` is its name where the path tells it, and the body may leave it out.
pub(crate) fn read(mut fields: Fields, known: Option<&str>) -> Result<NewPeer> {
    let name = match known {
        None => fields.required_text("name"),
        Some(known) => {
            if fields.text("name").is_some_and(|name| name != known) {
                fields.problem(
                    "name",
                    format!("a peer keeps its name; give '{known}' or leave it out"),
                );
            }
            known.to_owned()
        }
    };
    if !name.is_empty()
        && let Err(why) = check_name("name", &name)
    {
        fields.sentence(why);
    }
    let host = fields.required_text("host");
    let port = fields.small("port", 1..=u32::from(u16::MAX), PORT_DEFAULT);
    let user = fields.required_text("user");
    let password = fields.required_secret("password");
    let database = fields.required_text("database");
    let modes = [
        SslMode::Disable,
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ]
    .map(|mode| (mode.as_str(), mode));
    let ssl_mode = fields.choice("ssl_mode", &modes).unwrap_or_default();
    let ssl_root_cert = fields.text("ssl_root_cert").filter(|text| !text.is_empty());
    if let Some(certificates) = &ssl_root_cert
        && !certificates.contains("-----BEGIN CERTIFICATE-----")
    {
        fields.problem(
            "ssl_root_cert",
            "is not a certificate; give the PEM text, not a file name",
        );
    }
    fields.finish()?;
    Ok(NewPeer {
        name,
        host,
        port: u16::try_from(port).unwrap_or(u16::MAX),
        user,
        password,
        database,
        ssl_mode,
        ssl_root_cert,
        identity: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_needs_little_and_says_all_that_is_wrong() {
        let body = br#"{"name": "a", "host": "h", "user": "u", "password": "", "database": "d"}"#;
        let peer = read(Fields::parse(body).unwrap(), None).unwrap();
        assert_eq!((peer.port, peer.ssl_mode), (5432, SslMode::Prefer));

        let body = br#"{"name": "a b", "port": 0, "password": 1, "ssl_mode": "on",
                        "ssl_root_cert": "/etc/ca.pem", "sslmode": "x"}"#;
        let message = read(Fields::parse(body).unwrap(), None)
            .unwrap_err()
            .message;
        for expected in [
            "a b",
            "host: is required",
            "port: is 0",
            "user: is required",
            "password: is a number",
            "database: is required",
            "ssl_mode: is \"on\"",
            "ssl_root_cert: ",
            "sslmode: is not",
        ] {
            assert!(
                message.contains(expected),
                "{expected:?} missing in {message:?}"
            );
        }
    }
}
