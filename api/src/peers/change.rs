//! `PUT /v1/peers/{name}`: the same database, described anew.
//!
//! While mirrors use the peer, the new description must lead to the very database they work
//! with: their slot, their progress and their rows are there. The server's system identifier
//! and the database's oid say so; they survive new hosts, ports, passwords, names and
//! physical fail-over, and no other database has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::Peer;

use super::{Stored, read, view};
use crate::auth::Caller;
use crate::mirror_validation::facts::{PeerFacts, open};
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Path};
use crate::state::Api;

/// `PUT /v1/peers/{name}`, the whole peer as in a POST; running mirrors connect anew.
pub(crate) async fn replace(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Stored>> {
    let mut present = api.catalog.get_peer(&name).await?;
    let mut wanted = read(fields, Some(&name))?;
    let users = api.catalog.mirrors_of_peer(&name).await?;
    let mut described = present.clone();
    described.host = wanted.host.clone();
    described.port = wanted.port;
    described.user = wanted.user.clone();
    described.password = Some(wanted.password.clone());
    described.database = wanted.database.clone();
    described.ssl_mode = wanted.ssl_mode;
    described.ssl_root_cert = wanted.ssl_root_cert.clone();
    match identity_of(&described).await {
        Ok(identity) => wanted.identity = Some(identity),
        // Nothing depends on it: it may be on its way up, as when it was created.
        Err(_) if users.is_empty() => {}
        Err(error) => {
            return Err(Refusal::unprocessable(format!(
                "peer '{name}' is used by {} and cannot be reached as described: {error}; nothing was changed",
                users.join(", ")
            )));
        }
    }
    if present.password.is_none() {
        // Where it was can only be asked with what is given now.
        present.user = described.user.clone();
        present.password = described.password.clone();
    }
    if !users.is_empty() {
        same_database(&present, wanted.identity.as_deref(), &users).await?;
    }
    let peer = api.catalog.update_peer(&wanted, &caller.username).await?;
    let reconnect = if users.is_empty() {
        String::new()
    } else {
        format!("; {} connect anew", users.join(", "))
    };
    Ok(Json(Stored {
        message: format!("Peer '{name}' updated successfully{reconnect}"),
        peer: view(&peer),
    }))
}

async fn same_database(present: &Peer, found: Option<&str>, users: &[String]) -> Result<()> {
    let known = match &present.identity {
        Some(known) => known.clone(),
        None => identity_of(present).await.map_err(|error| {
            Refusal::unprocessable(format!(
                "peer '{}' is used by {} and it is not known which database it was, nor can it be asked as it was described before: {error}; nothing was changed",
                present.name,
                users.join(", ")
            ))
        })?,
    };
    if found == Some(known.as_str()) {
        return Ok(());
    }
    Err(Refusal::unprocessable(format!(
        "this is another database than the one that {} work with (system identifier and database oid {known} there, {} here); nothing was changed. Create a new peer and a new mirror for it",
        users.join(", "),
        found.unwrap_or("unknown")
    )))
}

async fn identity_of(peer: &Peer) -> bunny_postgres::Result<String> {
    let session = open(peer).await?;
    Ok(PeerFacts::gather(&session, peer).await?.server.identity)
}
