//! `POST /v1/mirrors/{name}/replay`: tables are rebuilt from the topics. The source is not
//! asked, and need not be there.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use bunny_catalog::{Cure, Mirror, MirrorTable, NewReplay, ResyncStrategy, RetainedSync, Until};
use bunny_postgres::{Lsn, TableName};
use bunny_schemas::control::SyncRecord;
use bunny_schemas::reader::last_change;
use bunny_schemas::retained::{Missing, Retained};
use chrono::{DateTime, SecondsFormat};

use super::request::RESYNC_STRATEGIES;
use super::shown::Command;
use super::{accepted, when};
use crate::answer::Accepted;
use crate::auth::Caller;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields, Path};
use crate::state::Api;

/// What a replay is asked for with.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Request {
    /// None: all of the mirror's.
    tables: Option<Vec<TableName>>,
    /// If not the mirror's.
    strategy: Option<ResyncStrategy>,
    /// Where the tables stand still afterwards.
    until: Option<Until>,
}

/// 202 and the command to watch; 409 with every table that the topics cannot rebuild.
pub(crate) async fn replay(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let request = read_replay(fields)?;
    let mirror = api.catalog.get_mirror(&name).await?;
    let strategy = request.strategy.unwrap_or(mirror.config.resync_strategy);
    if strategy == ResyncStrategy::Swap && request.until.is_some() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "a moment (\"until\") cannot be had by swap: the tables would go there one after the other under their readers. Ask with {\"strategy\": \"truncate\"}, which empties them, so that readers miss their rows until they are loaded again",
        ));
    }
    let meant = meant(&mirror, request.tables.as_deref())?;
    if !mirror.generation_ready {
        return Err(Refusal::conflict(format!(
            "mirror '{name}' is being set up: there is nothing in its topics yet"
        )));
    }
    let mut retained = Retained::read(&api.kafka, &api.topics, mirror.topics_slug())
        .await
        .map_err(unreadable)?;
    let given_up = api.catalog.log_given_up(&mirror).await?;
    retained.changes.0 = retained.changes.0.max(given_up);
    if let Some(until) = request.until {
        refuse_future(&api, &mirror, until, &retained).await?;
    }
    let found = find(&mirror, &meant, request.until, &retained)?;
    let unseen = match request.until {
        Some(until) => unseen(&found, until, &api.catalog.cures(&mirror).await?, &retained),
        None => String::new(),
    };
    let replay = NewReplay {
        named: request.tables,
        tables: found,
        strategy,
        until: request.until,
    };
    let command_id = api
        .catalog
        .request_replay(&name, &replay, &caller.username)
        .await?;
    let what = match &replay.named {
        Some(tables) if tables.len() == 1 => format!("Table {} of mirror '{name}'", tables[0]),
        Some(tables) => format!("{} tables of mirror '{name}'", tables.len()),
        None => format!("Every table of mirror '{name}'"),
    };
    let then = match (replay.until, strategy) {
        (Some(_), _) => " up to the moment asked for, where the mirror is paused then",
        (None, ResyncStrategy::Swap) => " beside what it holds, which is exchanged then",
        (None, ResyncStrategy::Truncate) => "",
    };
    // One up to a moment runs in a paused mirror too.
    let (is, when) = match replay.until {
        Some(_) => ("is being", ""),
        None => when(&mirror, "is being", "will be"),
    };
    Ok(accepted(
        format!("{what} {is} rebuilt from the topics{then}{when}{unseen}"),
        command_id,
    ))
}

/// `POST /v1/mirrors/{name}/checkpoint` with `{"tables": […]?}`: 202 and the command to
/// watch. No destination is concerned.
pub(crate) async fn checkpoint(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let tables = read_checkpoint(fields)?;
    let command_id = api
        .catalog
        .request_checkpoint(&name, tables.as_deref(), &caller.username)
        .await?;
    Ok(accepted(
        format!("Fresh copies of tables of mirror '{name}' are being published"),
        command_id,
    ))
}

/// Which tables; none: all.
pub(crate) fn read_checkpoint(mut fields: Fields) -> Result<Option<Vec<TableName>>> {
    let tables = tables(&mut fields);
    fields.finish()?;
    Ok(tables)
}

fn tables(fields: &mut Fields) -> Option<Vec<TableName>> {
    let mut tables = Vec::new();
    for text in fields.texts("tables") {
        match TableName::parse(&text) {
            Ok(table) if tables.contains(&table) => {
                fields.problem("tables", format!("names {table} twice"));
            }
            Ok(table) => tables.push(table),
            Err(error) => fields.problem("tables", error.to_string()),
        }
    }
    (!tables.is_empty()).then_some(tables)
}

/// Which tables, and how.
pub(crate) fn read_replay(mut fields: Fields) -> Result<Request> {
    let tables = tables(&mut fields);
    let strategy = fields.choice("strategy", &RESYNC_STRATEGIES);
    let until = until(&mut fields);
    fields.finish()?;
    Ok(Request {
        tables,
        strategy,
        until,
    })
}

/// `{"lsn": "0/1A2B3C4"}` or `{"timestamp": "2026-01-24T10:30:00Z"}`.
fn until(fields: &mut Fields) -> Option<Until> {
    let example = r#"{"lsn": "0/1A2B3C4"} or {"timestamp": "2026-01-24T10:30:00Z"}"#;
    let mut nested = fields.object("until", example)?;
    let (lsn, timestamp) = (nested.text("lsn"), nested.text("timestamp"));
    fields.absorb(nested);
    match (lsn, timestamp) {
        (Some(text), None) => match text.parse() {
            Ok(lsn) => Some(Until::Lsn(lsn)),
            Err(_) => {
                let what = format!("is {text:?}; give an LSN as 0/1A2B3C4");
                fields.problem("until.lsn", what);
                None
            }
        },
        (None, Some(text)) => match DateTime::parse_from_rfc3339(&text) {
            Ok(time) => Some(Until::Timestamp(time.to_utc())),
            Err(_) => {
                let what =
                    format!("is {text:?}; give a time with its zone as 2026-01-24T10:30:00Z");
                fields.problem("until.timestamp", what);
                None
            }
        },
        _ => {
            fields.problem("until", "needs either lsn or timestamp");
            None
        }
    }
}

/// What is not published yet may still change what stood there.
async fn refuse_future(
    api: &Api,
    mirror: &Mirror,
    until: Until,
    retained: &Retained,
) -> Result<()> {
    // Of the transaction of the last event some may be missing, but it is not asked for.
    let published = retained.position.as_ref().map_or(Lsn(0), |position| {
        position.confirm_lsn.max(position.commit_lsn)
    });
    match until {
        Until::Lsn(lsn) if lsn <= published => Ok(()),
        Until::Lsn(lsn) => Err(Refusal::conflict(format!(
            "{lsn} is past what is published: the topics of mirror '{}' hold everything up to {published}",
            mirror.name
        ))),
        Until::Timestamp(time) => {
            let registry = api.schemas.registry().await.map_err(unreadable)?;
            let last = last_change(&api.kafka, registry, &api.topics, mirror.topics_slug())
                .await
                .map_err(unreadable)?;
            let last_us = last.map_or(0, |last| last.commit_ts_us);
            if last_us > time.timestamp_micros() {
                return Ok(());
            }
            Err(Refusal::conflict(format!(
                "{} is past what is published: the last change in the topics of mirror '{}' is of {}, so something before the time asked for may still come. Ask for an earlier time, or for an LSN",
                shown(time.timestamp_micros()),
                mirror.name,
                shown(last_us)
            )))
        }
    }
}

/// The mappings that are named, or all.
fn meant<'a>(mirror: &'a Mirror, named: Option<&[TableName]>) -> Result<Vec<&'a MirrorTable>> {
    let Some(named) = named else {
        return Ok(mirror.tables.iter().collect());
    };
    named
        .iter()
        .map(|name| {
            let mut tables = mirror.tables.iter();
            tables.find(|table| table.source == *name).ok_or_else(|| {
                Refusal::not_found(format!(
                    "mirror '{}' has no table {name}; GET /v1/mirrors/{}/tables lists them",
                    mirror.name, mirror.name
                ))
            })
        })
        .collect()
}

/// For every table the sync to load, or all that cannot be had. Pure.
fn find(
    mirror: &Mirror,
    meant: &[&MirrorTable],
    until: Option<Until>,
    retained: &Retained,
) -> Result<Vec<(TableName, Option<uuid::Uuid>, RetainedSync)>> {
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for table in meant {
        match newest(mirror, table, until, retained) {
            Ok(sync) => found.push((table.source.clone(), table.wanted_request(), kept(sync))),
            Err(why) => refused.push(format!("table {}: {why}", table.source)),
        }
    }
    if refused.is_empty() {
        return Ok(found);
    }
    Err(Refusal::conflict(format!(
        "the topics cannot rebuild what was asked for, and nothing was changed. {}",
        refused.join("; ")
    )))
}

fn newest<'a>(
    mirror: &Mirror,
    table: &MirrorTable,
    until: Option<Until>,
    retained: &'a Retained,
) -> Result<&'a SyncRecord, String> {
    let found = retained.newest(
        &table.source,
        mirror.generation,
        &table.copies_since(),
        |sync| until.is_none_or(|until| is_early_enough(sync, until)),
    );
    let anew = "POST …/resync or …/checkpoint makes a new one";
    found.map_err(|missing| match missing {
        Missing::NoSync => {
            format!("no copy of it has finished in this history of the mirror; {anew}")
        }
        Missing::Trimmed => format!("its copies are not in the topics any more; {anew}"),
        Missing::OnlyLater(earliest) => format!(
            "the earliest point that can be had is {}, of {}",
            earliest.lsn,
            shown(earliest.taken_at_us)
        ),
    })
}

/// Whether a moment can be had from a copy. Pure.
fn is_early_enough(sync: &SyncRecord, until: Until) -> bool {
    match until {
        Until::Lsn(lsn) => sync.lsn <= lsn,
        Until::Timestamp(time) => sync.taken_at_us <= time.timestamp_micros(),
    }
}

/// Sentences on changes that are in no event: a moment between such a change and the copy that
/// brought it over shows the rows as they were before it. When it happened nobody knows so well
/// that the moment could be refused. Pure.
fn unseen(
    found: &[(TableName, Option<uuid::Uuid>, RetainedSync)],
    until: Until,
    cures: &[Cure],
    retained: &Retained,
) -> String {
    let mut sentences = String::new();
    for (table, _, begin) in found {
        let of_table = cures.iter().filter(|cure| cure.table == *table);
        let mut later = of_table.filter_map(|cure| {
            let mut syncs = retained.syncs.iter();
            let sync = syncs.find(|sync| sync.request_id == cure.request_id)?;
            let is_later = sync.lsn > begin.lsn && !is_early_enough(sync, until);
            is_later.then_some((sync, cure))
        });
        if let Some((sync, cure)) = later.next() {
            sentences.push_str(&format!(
                ". Table {table} is as it was before a change that no event carries, unless that came after the moment: {}; the copy of {}, of {}, is the first with it",
                cure.reason, sync.lsn, shown(sync.taken_at_us)
            ));
        }
    }
    sentences
}

/// Microseconds since the Unix epoch as people read them.
fn shown(time_us: i64) -> String {
    DateTime::from_timestamp_micros(time_us)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn kept(sync: &SyncRecord) -> RetainedSync {
    RetainedSync {
        sync: sync.request_id,
        attempt: sync.attempt,
        lsn: sync.lsn,
        changes_offset: sync.changes_offset,
        rows: sync.rows,
        bytes: sync.bytes,
    }
}

pub(super) fn unreadable(error: bunny_schemas::Error) -> Refusal {
    tracing::warn!(%error, "the topics cannot be looked at");
    Refusal::unavailable(
        "Kafka cannot be reached to see what the topics hold; try again in a moment",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Request> {
        read_replay(Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn what_is_meant_is_read() {
        assert_eq!(read("{}").unwrap(), Request::default());
        let request =
            read(r#"{"tables": ["public.a", "\"Odd\".b"], "strategy": "truncate"}"#).unwrap();
        let tables = vec![TableName::new("public", "a"), TableName::new("Odd", "b")];
        assert_eq!(request.tables, Some(tables));
        assert_eq!(request.strategy, Some(ResyncStrategy::Truncate));
    }

    #[test]
    fn a_moment_is_an_lsn_or_a_time() {
        let until = |body| read(body).unwrap().until;
        let lsn = until(r#"{"until": {"lsn": "0/14"}}"#);
        assert_eq!(lsn, Some(Until::Lsn(Lsn(20))));
        let time = until(r#"{"until": {"timestamp": "1970-01-01T01:00:01+01:00"}}"#);
        let second = DateTime::from_timestamp_micros(1_000_000).unwrap();
        assert_eq!(time, Some(Until::Timestamp(second)));
        for wrong in [
            "{}",
            r#"{"lsn": "x"}"#,
            r#"{"timestamp": "yesterday"}"#,
            r#"{"lsn": "0/1", "timestamp": "1970-01-01T00:00:00Z"}"#,
            "7",
        ] {
            let refusal = read(&format!(r#"{{"until": {wrong}}}"#)).unwrap_err();
            assert!(refusal.message.contains("until"), "{}", refusal.message);
        }
        let refusal = read(r#"{"until": "0/14"}"#).unwrap_err().message;
        assert!(
            refusal.contains("\"lsn\"") && refusal.contains("\"timestamp\""),
            "{refusal}"
        );
    }

    #[test]
    fn a_moment_before_the_copy_with_an_unseen_change_says_so() {
        let sync = |request, lsn| SyncRecord {
            request_id: uuid::Uuid::from_u128(request),
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state: bunny_schemas::control::SyncState::Finished,
            lsn: Lsn(lsn),
            start_offsets: vec![0],
            generation: uuid::Uuid::nil(),
            changes_offset: 0,
            taken_at_us: i64::try_from(lsn).unwrap(),
            rows: 0,
            bytes: 0,
        };
        let retained = Retained {
            syncs: vec![sync(1, 10), sync(2, 20), sync(3, 30)],
            ..Retained::default()
        };
        let cure = |table: &str, request| Cure {
            table: TableName::new("public", table),
            request_id: uuid::Uuid::from_u128(request),
            reason: format!("reason {request}"),
        };
        let cures = [cure("u", 3), cure("t", 2), cure("t", 3), cure("t", 9)];
        let said = |begin: usize, until| {
            let begin = kept(&retained.syncs[begin]);
            let found = [(TableName::new("public", "t"), None, begin)];
            unseen(&found, until, &cures, &retained)
        };
        let time = |us| Until::Timestamp(DateTime::from_timestamp_micros(us).unwrap());
        for until in [Until::Lsn(Lsn(19)), time(19)] {
            let said = said(0, until);
            assert!(
                said.contains("public.t") && said.contains("reason 2"),
                "{said}"
            );
            assert!(!said.contains("reason 3"), "{said}");
        }
        assert!(said(1, Until::Lsn(Lsn(29))).contains("reason 3"));
        for until in [Until::Lsn(Lsn(30)), time(30)] {
            assert_eq!(said(2, until), "");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refusal = read(r#"{"tables": ["a.a", "a.a"], "table": 1}"#).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        assert!(
            refusal.message.contains("names a.a twice"),
            "{}",
            refusal.message
        );
        assert!(refusal.message.contains("table: is not a known field"));
    }
}
