//! Mirrors: created, looked at, deleted.

mod adopt;
mod attach;
mod available;
mod create;
mod estimate;
mod patch;
mod pausing;
mod replay;
pub(crate) mod request;
mod resync;
mod schema_sync;
mod shown;
mod table_list;
mod view;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::{
    Catalog, Desired, LogLevel, LogQuery, Mirror, Reports, StatusView, derive, lag,
};
use bunny_postgres::TableName;

use crate::answer::{Accepted, Under};
use crate::auth::Caller;
use crate::refusal::Result;
use crate::request::{Body, Fields, Path, Query};
use crate::state::Api;

pub(crate) use adopt::adopt;
pub(crate) use available::available_tables;
pub(crate) use create::create;
pub(crate) use patch::{patch, read_patch};
pub(crate) use pausing::{pause, read_pause, resume};
pub(crate) use replay::{checkpoint, read_checkpoint, read_replay, replay};
pub(crate) use resync::{read_resync, read_resync_table, resync, resync_table};
pub(crate) use schema_sync::{read_sync_schema, sync_schema};
pub(crate) use table_list::{read_tables, set_tables};
#[cfg(test)]
pub(crate) use view::tests as testing;

const LOGS_DEFAULT: i64 = 100;
const LOGS_MAX: i64 = 500;

/// A mirror with all that is said of it, read at about one moment.
pub(crate) struct Seen {
    pub(crate) mirror: Mirror,
    pub(crate) reports: Reports,
    pub(crate) status: StatusView,
}

pub(crate) async fn see(catalog: &Catalog, mirror: Mirror) -> bunny_catalog::Result<Seen> {
    let reports = catalog.reports(mirror.id).await?;
    let commands = catalog.open_commands(mirror.id).await?;
    let status = derive(&mirror, &reports, &commands, reports.read_at);
    Ok(Seen {
        mirror,
        reports,
        status,
    })
}

/// `GET /v1/mirrors`.
pub(crate) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<shown::Brief>>> {
    let mirrors = api.catalog.list_mirrors().await?;
    let mut views = Vec::with_capacity(mirrors.len());
    for mirror in mirrors {
        let seen = see(&api.catalog, mirror).await?;
        views.push(view::brief(&seen.mirror, &seen.reports, &seen.status));
    }
    Ok(Json(views))
}

/// `GET /v1/mirrors/{name}`.
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<shown::Full>> {
    let mirror = api.catalog.get_mirror(&name).await?;
    let seen = see(&api.catalog, mirror).await?;
    Ok(Json(view::full(&seen.mirror, &seen.reports, &seen.status)))
}

/// `GET /v1/mirrors/{name}/tables`: the mappings alone.
pub(crate) async fn tables(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<shown::Table>>> {
    let mirror = api.catalog.get_mirror(&name).await?;
    let reports = api.catalog.reports(mirror.id).await?;
    Ok(Json(view::tables(&mirror, &reports)))
}

/// `GET /v1/mirrors/{name}/metrics`.
pub(crate) async fn metrics(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<shown::Metrics>> {
    let mirror = api.catalog.get_mirror(&name).await?;
    let seen = see(&api.catalog, mirror).await?;
    let lag = lag(&seen.reports, seen.mirror.created_at, seen.reports.read_at);
    let topic = api.topics.changes(seen.mirror.topics_slug());
    Ok(Json(view::metrics(
        &seen.mirror,
        &seen.status,
        &lag,
        &topic,
    )))
}

/// `GET /v1/mirrors/{name}/logs?limit&offset&search&level`.
pub(crate) async fn logs(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    query: Query,
) -> Result<Json<shown::Logs>> {
    let wanted = read_logs(query)?;
    let mirror = api.catalog.get_mirror(&name).await?;
    let (logs, total) = api.catalog.list_logs(mirror.id, &wanted).await?;
    Ok(Json(shown::Logs {
        logs,
        total,
        offset: wanted.offset,
        limit: wanted.limit,
    }))
}

/// Which entries of a log are asked for.
pub(crate) fn read_logs(mut query: Query) -> Result<LogQuery> {
    let limit = query.integer("limit", 1..=LOGS_MAX, LOGS_DEFAULT);
    let offset = query.integer("offset", 0..=i64::from(i32::MAX), 0);
    let search = query.text("search");
    let level = query
        .choice("level", &["debug", "info", "warn", "error"])
        .and_then(|word| level_of(&word));
    query.finish()?;
    Ok(LogQuery {
        limit,
        offset,
        search,
        level,
    })
}

fn level_of(word: &str) -> Option<LogLevel> {
    [
        LogLevel::Debug,
        LogLevel::Info,
        LogLevel::Warn,
        LogLevel::Error,
    ]
    .into_iter()
    .find(|level| level.as_str() == word)
}

/// `DELETE /v1/mirrors/{name}?keep_topics=&force=`: 202 and the command to watch.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    query: Query,
    caller: Caller,
) -> Result<Accepted<shown::Command>> {
    let (keep_topics, force) = read_delete(query)?;
    let command_id = api
        .catalog
        .request_delete(&name, keep_topics, force, &caller.username)
        .await?;
    Ok(accepted(
        format!("Mirror '{name}' is being deleted"),
        command_id,
    ))
}

/// Whether to keep the topics, and whether to leave behind what cannot be reached.
pub(crate) fn read_delete(mut query: Query) -> Result<(bool, bool)> {
    let keep_topics = query.boolean("keep_topics", false);
    let force = query.boolean("force", false);
    query.finish()?;
    Ok((keep_topics, force))
}

/// `POST /v1/mirrors/{name}/retry` with `{"table_name"?}`: 202 and the command to watch.
pub(crate) async fn retry(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<shown::Command>> {
    let table = read_retry(fields)?;
    let command_id = api
        .catalog
        .request_retry(&name, table.as_ref(), &caller.username)
        .await?;
    let what = match table {
        Some(table) => format!("Table {table} of mirror '{name}'"),
        None => format!("Mirror '{name}'"),
    };
    Ok(accepted(format!("{what} is being tried again"), command_id))
}

/// The table, if only one is meant.
pub(crate) fn read_retry(mut fields: Fields) -> Result<Option<TableName>> {
    let table = request::table_name(&mut fields, "table_name");
    fields.finish()?;
    Ok(table)
}

/// How to say that something is done at the destination, and what it waits for: now, or once a
/// paused mirror is resumed.
fn when(mirror: &Mirror, now: &'static str, later: &'static str) -> (&'static str, &'static str) {
    match mirror.desired {
        Desired::Paused => (
            later,
            "; the mirror is paused, and this begins when it is resumed",
        ),
        _ => (now, ""),
    }
}

fn accepted(message: String, command_id: uuid::Uuid) -> Accepted<shown::Command> {
    Under(shown::Command {
        message,
        command_id,
    })
}
