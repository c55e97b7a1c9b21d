//! `POST /v1/mirrors/{name}/resync` and `/resync/{table}`: tables are loaded again while the
//! others go on, emptied first (`truncate`) or kept for readers until their rows are
//! exchanged (`swap`). The slot and the stream are left alone, except where a mirror has lost
//! its history: then another generation begins.

use std::sync::Arc;

use axum::extract::State;
use bunny_catalog::ResyncStrategy;
use bunny_postgres::TableName;

use super::request::{RESYNC_STRATEGIES, table_name};
use super::shown::Command;
use super::{accepted, when};
use crate::answer::Accepted;
use crate::auth::Caller;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields, Path};
use crate::state::Api;

/// The whole mirror, or `{"table_name": …}`.
pub(crate) async fn resync(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let (table, strategy) = read_resync(fields)?;
    start(&api, &name, table, strategy, &caller).await
}

/// One table, by its source name.
pub(crate) async fn resync_table(
    State(api): State<Arc<Api>>,
    Path((name, table)): Path<(String, String)>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let strategy = read_resync_table(fields)?;
    let table = TableName::parse(&table)
        .map_err(|error| Refusal::bad_request(format!("the table in the path: {error}")))?;
    start(&api, &name, Some(table), strategy, &caller).await
}

/// The table, if only one is meant, and the strategy, if not the mirror's.
pub(crate) fn read_resync(
    mut fields: Fields,
) -> Result<(Option<TableName>, Option<ResyncStrategy>)> {
    let table = table_name(&mut fields, "table_name");
    let strategy = strategy(&mut fields);
    fields.finish()?;
    Ok((table, strategy))
}

/// The strategy, if not the mirror's.
pub(crate) fn read_resync_table(mut fields: Fields) -> Result<Option<ResyncStrategy>> {
    let strategy = strategy(&mut fields);
    fields.finish()?;
    Ok(strategy)
}

fn strategy(fields: &mut Fields) -> Option<ResyncStrategy> {
    fields.choice("strategy", &RESYNC_STRATEGIES)
}

async fn start(
    api: &Api,
    name: &str,
    table: Option<TableName>,
    strategy: Option<ResyncStrategy>,
    caller: &Caller,
) -> Result<Accepted<Command>> {
    let mirror = api.catalog.get_mirror(name).await?;
    let strategy = strategy.unwrap_or(mirror.config.resync_strategy);
    let command_id = api
        .catalog
        .request_resync(name, table.as_ref(), strategy, &caller.username)
        .await?;
    let what = match table {
        Some(table) => format!("Table {table} of mirror '{name}'"),
        None => format!("Every table of mirror '{name}'"),
    };
    let (is, when) = when(&mirror, "is being", "will be");
    let how = match strategy {
        ResyncStrategy::Truncate => "emptied and loaded again",
        ResyncStrategy::Swap => "loaded beside what it holds, which is exchanged then",
    };
    Ok(accepted(format!("{what} {is} {how}{when}"), command_id))
}
