//! `POST /v1/mirrors`: everything is validated, then the wish is written down. Slot, publications and
//! topics are capture's to make, from that wish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use bunny_catalog::{LogLevel, Mirror, NewMirror, Peer};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::estimate::{DryRun, estimate};
use super::request::{CreateRequest, without_effect_yet};
use super::{adopt, attach};
use crate::answer::{Created, Either, Under};
use crate::auth::Caller;
use crate::mirror_validation::facts::{Place, place_of};
use crate::mirror_validation::{self, Edge, Facts, Findings};
use crate::refusal::{Refusal, Result};
use crate::request::Body;
use crate::state::Api;

/// How long Kafka may take to show that it is there.
const KAFKA_TIME_MAX: Duration = Duration::from_secs(3);

/// A mirror was created.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CreatedMirror")]
pub(crate) struct Made {
    #[schemars(example = &"Mirror 'prod_to_staging' created successfully")]
    message: String,
    /// What should be known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Either<Created<Made>, Json<DryRun>>> {
    let mut request = CreateRequest::read(fields)?;
    let owner = attach::complete(&api, &mut request).await?;
    refuse(&mirror_validation::check_request(&request))?;
    let peers = Peers::of(&api, &request).await?;
    name_is_free(&api, &request.name).await?;
    let (facts, others, kafka) = tokio::join!(
        Facts::gather(&request, &peers.source, &peers.destination),
        other_mirrors(&api, &peers),
        tokio::time::timeout(KAFKA_TIME_MAX, api.kafka.broker_reachable(KAFKA_TIME_MAX)),
    );
    let mut facts = facts?;
    attach::needs_no_slot(&request, &mut facts);
    let mut findings = mirror_validation::check(&request, &facts, &others?);
    if !matches!(kafka, Ok(Ok(_))) {
        findings
            .warnings
            .push("Kafka cannot be reached at present; the mirror starts when it can".to_owned());
    }
    refuse(&findings)?;
    let attach = match &owner {
        Some(owner) => Some(attach::chosen(&api, &request, owner).await?),
        None => None,
    };
    let adopts = match request.adopt {
        true => Some(adopt::mirror_of(&peers.destination, &request.name).await?),
        false => None,
    };
    if request.dry_run {
        let answer = estimate(&api, &peers.source, &request, &facts, findings).await?;
        return Ok(Either::That(Json(answer)));
    }
    for server in [&facts.source.server, &facts.destination.server] {
        // Before anything depends on it: a peer that mirrors use stays this database.
        api.catalog
            .note_identity(&server.peer, &server.identity)
            .await?;
    }
    let mirror = api
        .catalog
        .create_mirror(&NewMirror {
            attach,
            adopts,
            ..wish(&api, &request, &facts, caller.username)
        })
        .await?;
    write_log(&api, &mirror, &findings).await;
    Ok(Either::This(Under(Made {
        message: format!("Mirror '{}' created successfully", mirror.name),
        warnings: findings.warnings,
    })))
}

fn refuse(findings: &Findings) -> Result<()> {
    let Some(refusal) = findings.refusal() else {
        return Ok(());
    };
    let checks: Vec<&str> = findings
        .problems
        .iter()
        .map(|problem| problem.check)
        .collect();
    tracing::info!(?checks, "a mirror was refused");
    Err(refusal)
}

/// The peers of a request.
pub(super) struct Peers {
    pub(super) source: Peer,
    pub(super) destination: Peer,
}

impl Peers {
    pub(super) async fn of(api: &Api, request: &CreateRequest) -> Result<Self> {
        let (source, destination) = tokio::join!(
            peer(api, "source_peer", &request.source_peer),
            peer(api, "destination_peer", &request.destination_peer),
        );
        match (source, destination) {
            (Ok(source), Ok(destination)) => Ok(Self {
                source,
                destination,
            }),
            (Err(one), Err(two)) if one.status == two.status && one.message != two.message => Err(
                Refusal::new(one.status, format!("{}; {}", one.message, two.message)),
            ),
            (Err(refusal), _) | (_, Err(refusal)) => Err(refusal),
        }
    }
}

async fn peer(api: &Api, field: &str, name: &str) -> Result<Peer> {
    match api.catalog.get_peer(name).await {
        Ok(peer) => Ok(peer),
        Err(bunny_catalog::Error::NotFound { .. }) => Err(Refusal::unprocessable(format!(
            "{field}: there is no peer '{name}'; create it with POST /v1/peers or check the spelling"
        ))),
        Err(error) => Err(error.into()),
    }
}

async fn name_is_free(api: &Api, name: &str) -> Result<()> {
    match api.catalog.get_mirror(name).await {
        Err(bunny_catalog::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err(Refusal::conflict(format!(
            "mirror '{name}' exists already; delete it first or choose another name"
        ))),
    }
}

/// The mappings of the mirrors that exist, with the true database behind each of their peers.
pub(super) async fn other_mirrors(api: &Api, peers: &Peers) -> Result<Vec<Edge>> {
    let tables = api.catalog.tables_in_use().await?;
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for table in &tables {
        for name in [&table.source_peer, &table.destination_peer] {
            if places.contains_key(name) {
                continue;
            }
            let known = [&peers.source, &peers.destination]
                .into_iter()
                .find(|peer| &peer.name == name);
            let place = match known {
                Some(peer) => place_of(peer).await,
                None => place_of(&api.catalog.get_peer(name).await?).await,
            };
            places.insert(name.clone(), place);
        }
    }
    let edges = tables.into_iter().filter_map(|table| {
        let source = places.get(&table.source_peer)?.clone();
        let destination = places.get(&table.destination_peer)?.clone();
        Some(Edge {
            mirror: table.mirror_name,
            source: (source, table.source),
            destination: (destination, table.destination),
        })
    });
    Ok(edges.collect())
}

fn wish(api: &Api, request: &CreateRequest, facts: &Facts, requested_by: String) -> NewMirror {
    NewMirror {
        name: request.name.clone(),
        source_peer: request.source_peer.clone(),
        destination_peer: request.destination_peer.clone(),
        config: request.config.clone(),
        tables: request.tables.clone(),
        prefix: api.topics.prefix().to_owned(),
        replication_slot_name: request.replication_slot_name.clone(),
        slot_given: facts.source.slot.is_some(),
        publication_name: request.publication_name.clone(),
        publication_given: facts.source.publication.is_some(),
        attach: None,
        adopts: None,
        requested_by,
    }
}

/// What the user should find later. The mirror exists by now, so a failure here is only reported.
async fn write_log(api: &Api, mirror: &Mirror, findings: &Findings) {
    let created = format!("mirror '{}' was created", mirror.name);
    let notes = without_effect_yet(&mirror.config);
    let entries = std::iter::once((LogLevel::Info, &created))
        .chain(notes.iter().map(|note| (LogLevel::Info, note)))
        .chain(findings.warnings.iter().map(|note| (LogLevel::Warn, note)));
    for (level, message) in entries {
        if let Err(error) = api.catalog.log(mirror.id, level, message, json!({})).await {
            tracing::warn!(mirror = %mirror.name, %error, "the mirror's log could not be written");
            return;
        }
    }
}
