//! `PUT /v1/peers/{name}`: the same database, described anew.
//!
//! While mirrors use the peer, the new description must lead to the very database they work
//! with: their slot, their progress and their rows are there. The server's system identifier
//! and the database's oid say so; they survive new hosts, ports, passwords, names and
//! physical fail-over, and no other database has them.
//!
//! A destination that was restored from a dump is another database by that measure, and yet the
//! one its mirrors go on in: their progress came back beside the rows it is about. So one that
//! is only written to may become any database that holds the progress of all its mirrors.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::{Mirror, Peer};
use uuid::Uuid;

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
    let progress_of = match users.is_empty() {
        true => Vec::new(),
        false => other_progress(&api, &present, &described, wanted.identity.as_deref()).await?,
    };
    let peer = api
        .catalog
        .update_peer(&wanted, &progress_of, &caller.username)
        .await?;
    let reconnect = match (users.is_empty(), progress_of.is_empty()) {
        (true, _) => String::new(),
        (false, true) => format!("; {} connect anew", users.join(", ")),
        (false, false) => format!(
            "; it is another database than before, where {} go on from the progress in its schema _bunny",
            users.join(", ")
        ),
    };
    Ok(Json(Stored {
        message: format!("Peer '{name}' updated successfully{reconnect}"),
        peer: view(&peer),
    }))
}

/// The mirrors whose progress a database holds that is another than the one known; nothing if it
/// is the same.
///
/// # Errors
/// 422 unless the mirrors of the peer can go on there.
async fn other_progress(
    api: &Api,
    present: &Peer,
    described: &Peer,
    found: Option<&str>,
) -> Result<Vec<Uuid>> {
    let known = match &present.identity {
        Some(known) => Ok(known.clone()),
        None => identity_of(present).await,
    };
    if known.as_deref().ok() == found {
        return Ok(Vec::new());
    }
    let progress_of = progress_at(described).await.map_err(|error| {
        Refusal::unprocessable(format!(
            "peer '{}' cannot be asked whose progress it holds: {error}; nothing was changed",
            present.name
        ))
    })?;
    let mirrors = api.catalog.list_mirrors().await?;
    let peer = present.name.as_str();
    let reading = named(&mirrors, |mirror| mirror.source_peer == peer);
    let strangers = named(&mirrors, |mirror| {
        mirror.destination_peer == peer && !progress_of.contains(&mirror.id)
    });
    let difference = match known {
        Ok(known) => format!(
            "this is another database than before (system identifier and database oid {known} there, {} here)",
            found.unwrap_or("unknown")
        ),
        Err(error) => format!(
            "it is not known which database this was, nor can it be asked as it was described before: {error}"
        ),
    };
    if !reading.is_empty() {
        return Err(Refusal::unprocessable(format!(
            "{difference}, and {reading} reads from peer '{peer}': what was captured is of the former; nothing was changed. Create a new peer and a new mirror for it"
        )));
    }
    if !strangers.is_empty() {
        return Err(Refusal::unprocessable(format!(
            "{difference}, and its schema _bunny does not hold the progress of {strangers}; nothing was changed. Restore a backup of the destination together with its schema _bunny, or create a new peer and a new mirror for it"
        )));
    }
    Ok(progress_of)
}

fn named(mirrors: &[Mirror], is_meant: impl Fn(&&Mirror) -> bool) -> String {
    let meant = mirrors.iter().filter(is_meant);
    let names: Vec<String> = meant
        .map(|mirror| format!("mirror \"{}\"", mirror.name))
        .collect();
    names.join(", ")
}

/// The mirrors that have applied something there. A worker that met an empty database has left
/// its mark as the owner, but no progress.
async fn progress_at(peer: &Peer) -> bunny_postgres::Result<Vec<Uuid>> {
    let session = open(peer).await?;
    let is_absent = session
        .query_one("SELECT to_regclass('_bunny.progress') IS NULL", &[])
        .await?
        .get(0);
    if is_absent {
        return Ok(Vec::new());
    }
    let rows = session
        .query(
            "SELECT mirror_id FROM _bunny.owner JOIN _bunny.progress USING (mirror_id)",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn identity_of(peer: &Peer) -> bunny_postgres::Result<String> {
    let session = open(peer).await?;
    Ok(PeerFacts::gather(&session, peer).await?.server.identity)
}
