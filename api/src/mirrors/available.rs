//! `GET /v1/mirrors/{name}/available-tables`: what else the source has to mirror.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::NewMirrorTable;
use bunny_postgres::introspect::TableSummary;
use bunny_postgres::{TableName, introspect};
use schemars::JsonSchema;
use serde::Serialize;

use super::request::CreateRequest;
use crate::mirror_validation::{self, SourceFacts, facts::open};
use crate::refusal::{Refusal, Result};
use crate::request::Path;
use crate::state::Api;

/// A table of the source that is not in the mirror.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AvailableTable {
    #[serde(flatten)]
    table: TableSummary,
    /// Whether it can be mirrored.
    available: bool,
    /// Why not.
    reasons: Vec<String>,
    /// What should be known before.
    warnings: Vec<String>,
}

/// `GET /v1/mirrors/{name}/available-tables`. Of partitions only the root is listed: it brings them
/// along. Each may be mirrored instead of it, under its own name.
pub(crate) async fn available_tables(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<AvailableTable>>> {
    let mirror = api.catalog.get_mirror(&name).await?;
    if let Some(owner) = &mirror.owner {
        return Err(Refusal::conflict(format!(
            "mirror '{name}' is fed by mirror '{}' and its tables cannot be changed in this version; delete it and attach it again with the tables it is to have",
            owner.name
        )));
    }
    let peer = api.catalog.get_peer(&mirror.source_peer).await?;
    let failed = |error: bunny_postgres::Error| {
        Refusal::unprocessable(format!(
            "source peer '{}' could not list its tables: {error}; check it with POST /v1/peers/{0}/test",
            peer.name
        ))
    };
    let session = open(&peer).await.map_err(failed)?;
    let mut summaries = introspect::list_every_table(&session)
        .await
        .map_err(failed)?;
    summaries.retain(|summary| {
        let is_it =
            |name: &TableName| name.schema == summary.schema && name.name == summary.table_name;
        !mirror.tables.iter().any(|table| is_it(&table.source))
    });
    // As if each were asked for under its own name: the checks are those of a create.
    let request = CreateRequest {
        name: mirror.name.clone(),
        attach: None,
        source_peer: mirror.source_peer.clone(),
        destination_peer: mirror.destination_peer.clone(),
        config: mirror.config.clone(),
        tables: summaries
            .iter()
            .map(|summary| {
                let name = TableName::new(summary.schema.clone(), summary.table_name.clone());
                NewMirrorTable {
                    source: name.clone(),
                    destination: name,
                    partition_key: None,
                    exclude_columns: Vec::new(),
                    identity: None,
                }
            })
            .collect(),
        replication_slot_name: None,
        publication_name: mirror
            .publication_given
            .then(|| mirror.publication_name.clone()),
        adopt: false,
        dry_run: true,
    };
    let facts = SourceFacts::gather(&session, &peer, &request)
        .await
        .map_err(failed)?;
    let found = mirror_validation::check_tables(&request, &facts);
    let views = summaries.into_iter().zip(found).map(|(table, findings)| {
        let problems = findings.problems.into_iter();
        let reasons: Vec<String> = problems.map(|problem| problem.message).collect();
        AvailableTable {
            table,
            available: reasons.is_empty(),
            reasons,
            warnings: findings.warnings,
        }
    });
    Ok(Json(views.collect()))
}
